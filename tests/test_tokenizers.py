from __future__ import annotations

import json
import unicodedata

import pytest

from multimodal.data.tokenizers import END, PAD, START, load_tokenizer, train_bpe

TEXTS = [
    "Grinning Face",
    "grinning face with big eyes",
    "cat face",
    "cat with tears of joy",
    "flag: Côte d'Ivoire",
    "wooden chair, chair, seat, furniture",
] * 3


def test_special_tokens_have_the_first_and_the_last_two_ids():
    tokenizer = train_bpe(TEXTS, 300)
    size = tokenizer.get_vocab_size()
    assert size == 300
    assert tokenizer.token_to_id(PAD) == 0
    assert (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) == (size - 2, size - 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))


def test_a_small_corpus_gives_fewer_entries_and_the_specials_stay_last():
    tokenizer = train_bpe(["a b c"], 4096)
    assert tokenizer.get_vocab_size() < 300
    assert tokenizer.token_to_id(END) == tokenizer.get_vocab_size() - 1


@pytest.mark.parametrize(
    "text",
    [
        "grinning face",
        "Grinning  FACE\n",
        "grinning🙂face",
        "שלום עולם",
        "e\u0301te\u0301",
        "Ünïcode!",
        "",
    ],
)
def test_text_survives_a_round_trip_up_to_case_spacing_and_normal_form(text):
    tokenizer = train_bpe(TEXTS, 300)
    expected = " ".join(unicodedata.normalize("NFC", text.lower()).split())
    ids = tokenizer.encode(text).ids
    assert (ids[0], ids[-1]) == (tokenizer.token_to_id(START), tokenizer.token_to_id(END))
    assert tokenizer.decode(ids) == expected


def test_training_does_not_depend_on_the_order_of_the_texts():
    first = json.loads(train_bpe(TEXTS, 320).to_str())
    for texts in (TEXTS, list(reversed(TEXTS)), iter(TEXTS)):
        assert json.loads(train_bpe(texts, 320).to_str()) == first


def test_frequent_words_become_one_token():
    ids = train_bpe(TEXTS, 300).encode("face").ids
    assert len(ids) == 3  # start, face, end


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 259"):
        train_bpe(TEXTS, 200)


def test_a_saved_tokenizer_loads_with_the_same_ids(tmp_path):
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode("cat face 🙂").ids == tokenizer.encode("cat face 🙂").ids


def test_a_text_that_spells_a_special_token_is_only_text(tmp_path):
    trained = train_bpe(TEXTS, 300)
    trained.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (trained, load_tokenizer(tmp_path / "tokenizer.json")):
        ids = tokenizer.encode(f"a {END} {START} {PAD} b").ids
        for token in (START, END):
            assert ids.count(tokenizer.token_to_id(token)) == 1
        assert tokenizer.token_to_id(PAD) not in ids


def test_loading_says_what_is_wrong_with_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file .*missing\.json"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizers JSON file"):
        load_tokenizer(tmp_path / "bad.json")
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / "bare.json"))
    with pytest.raises(ValueError, match=r"no token <\|startoftext\|> and no"):
        load_tokenizer(tmp_path / "bare.json")
