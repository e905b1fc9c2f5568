"""Whatever a person types reaches the program as it was typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from multimodal.cli.search import _plain
from multimodal.config import ConfigError, compose_or_explain, normalize_args
from multimodal.inference.search import query

SEARCH = ["checkpoint=a", "index=b"]


def terms(text: str) -> list[tuple[str, float]]:
    """(value, weight) of a query, from the command line to what is embedded."""
    words = normalize_args([*SEARCH, f"query={text}"], ["query"], ["checkpoint", "index"])
    cfg = compose_or_explain(words, "search")
    assert cfg is not None
    return [(term.value, term.weight) for term in query.parse(_plain(cfg.query))]


@pytest.mark.parametrize(
    "text",
    [
        "2024", "null", "true", "1e3", "what's this?", "Straße", "日本語の犬", "a red dog, sitting",
        "a = b", "(laughs)", "[sic] dog", "{smiling}", "costs $5", "${oc.env:HOME}", "50 %",
        "glob(*)", "back\\slash", "ends in \\", "dog!", '12" wheel', "'tis it, isn't it'",
        "ten: a dog", "# one", "🐕 im Park", "two\nlines", "@home", "a;b|c&d<e>", "~", "*",
    ],
)  # fmt: skip
def test_any_query_is_what_was_typed(text):
    assert terms(text) == [(text, 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'null'", [("null", 1)]),
        ('"a dog, sitting"', [("a dog, sitting", 1)]),
        ("{value: a red dog, weight: 1.0}", [("a red dog", 1)]),
        ("{value: a dog, sitting, weight: -0.5}", [("a dog, sitting", -0.5)]),
        ("[a red chair,-a lamp]", [("a red chair", 1), ("a lamp", -1)]),
        ("[2024, +null, -true]", [("2024", 1), ("null", 1), ("true", -1)]),
        ("[what's this?, it's, -日本語]", [("what's this?", 1), ("it's", 1), ("日本語", -1)]),
        ("['a dog, sitting', -\"a cat, too\"]", [("a dog, sitting", 1), ("a cat, too", -1)]),
        ("[a dog, {value: what?, weight: 2}]", [("a dog", 1), ("what?", 2)]),
        ("[${x}, ten: a dog]", [("${x}", 1), ("ten: a dog", 1)]),
        (r"[a\, b, c]", [("a, b", 1), ("c", 1)]),
    ],
)
def test_lists_and_blocks(text, expected):
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a text"), ("   ", "expected a text"), ("[]", None),
        ("[-]", "expected a text"),
        ("{valu: dog}", "got {'valu': 'dog'}"), ("[{weight: 2}]", "expected a text"),
        ("{value: dog, weight: heavy}", "weight=heavy: expected a number"),
        ("{value: dog, weight: nan}", "weight=nan"), ("{value: dog, weight: 0}", "weight=0"),
        ("[dog.jpg]", "there is no file dog.jpg"),
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused_by_name(text, message):
    if message is None:
        assert terms(text) == [(text, 1)]
        return
    with pytest.raises(ValueError, match="query: ") as refused:
        terms(text)
    assert message in str(refused.value)


def through(word: str, **options) -> object:
    (normal,) = normalize_args([word], **options)
    override = OverridesParser.create().parse_override(normal)
    assert not override.is_sweep_override()
    content = OmegaConf.to_container(OmegaConf.create({"key": override.value()}), resolve=True)
    return content["key"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text("\\$'\"{}[] a,=("))
def test_no_text_is_changed(text):
    if text.strip()[:1] not in ("[", "{", "'", '"'):
        assert through(f"key={text}", texts=["key"]) == text
        if text not in ("", "null"):
            assert through(f"key={text}", paths=["key"]) == text


def test_paths_are_literal_but_in_a_sweep():
    for path in ("2024.10", "a, b/c.ckpt", "[2024]/x", "Müller's/step=8.ckpt", "007", "a:b"):
        assert through(f"key={path}", paths=["key"]) == path
    assert through("key=null", paths=["key"]) is None
    assert through("key='a, b'", paths=["key"]) == "a, b"
    assert normalize_args(["-m", "key=a,b"], paths=["key"]) == ["-m", "key=a,b"]


def test_other_keys_are_quoted_where_the_grammar_has_no_place_for_them():
    for value in ("Straße", "what's new", "/data/Müller/a=b.json"):
        assert through(f"name={value}") == value
    kept = ["seed=0,1", "a=[1,2]", "b={x: 1}", "c=range(1,3)", "d=${seed}", "e=1e-3", "f=null"]
    assert normalize_args(kept) == kept


def test_a_word_that_cannot_be_read_says_how_to_write_it():
    with pytest.raises(ConfigError) as refused:
        compose_or_explain(normalize_args(["name=[Straße"]), "train")
    (problem,) = refused.value.problems
    assert problem.where == "name=[Straße"
    assert problem.message.endswith("a text that holds anything is name=\"'[Straße'\"")
