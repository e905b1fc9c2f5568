"""Items in brackets: split at commas, but for those in quotes and blocks."""

import pytest

from multimodal.config.composing.text_values import written


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b", "a, b"),
        ("[a, b]", ["a", "b"]),
        (" [ a ,b ] ", ["a", "b"]),
        ("[it's, a 'dog', here]", ["it's", "a 'dog'", "here"]),
        ("['a, b', c]", ["a, b", "c"]),
        ("['tis, it]", ["'tis", "it"]),
        ("[+'a, b', -\"c, d\"]", ["+a, b", "-c, d"]),
        ("[a, {value: b, c, weight: 2}, d]", ["a", {"value": "b, c", "weight": "2"}, "d"]),
        ("{value: 'a, b', weight: 2}", [{"value": "a, b", "weight": "2"}]),
        ("{not a block}", "{not a block}"),
        ("[{not a block}]", ["{not a block}"]),
        ("[]", "[]"),
        ("[a, ]", ["a", ""]),
        ("[a", "[a"),
        ("{value:x}", "{value:x}"),
        ("[[a], b]", ["[a]", "b"]),
    ],
)
def test_what_is_written(text, items):
    assert written(text) == items
