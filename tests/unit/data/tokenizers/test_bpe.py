from __future__ import annotations

import gzip
import json
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from data_helpers import write_source

from multimodal.data.source import Source
from multimodal.data.tokenizers.bpe import END, PAD, START, load_tokenizer, train_bpe
from multimodal.data.tokenizers.clip import FILE, NUM_MERGES, CLIPTokenizer, find_vocabulary
from multimodal.data.tokenizers.corpus import CorpusTokenizer
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.data.transforms.text import TextTransform

VECTORS = Path(__file__).parents[3] / "vectors"

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


def test_a_vocabulary_too_small_for_the_bytes_is_rejected():
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


# CLIP's


@pytest.fixture(scope="session")
def clip_vocabulary(request, tmp_path_factory):
    """The vocabulary's file, out of the package that carries it (1.5 MB, fetched once)."""
    cache = getattr(request.config, "cache", None)  # pytest's own, unless it is switched off
    folder = Path((cache.mkdir if cache else tmp_path_factory.mktemp)("clip_vocabulary"))
    file = folder / FILE
    if not file.exists():
        try:
            return find_vocabulary(None)
        except FileNotFoundError:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
            done = subprocess.run([*command, "open_clip_torch"], timeout=120, capture_output=True)
        if done.returncode:
            pytest.skip("needs a package index, to fetch open_clip_torch from")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(f"open_clip/{FILE}"))
        wheel.unlink()
    return file


def test_clips_tokenizer_gives_the_reference_ids(clip_vocabulary):
    tokenizer = CLIPTokenizer(str(clip_vocabulary))
    assert (tokenizer.vocab_size, tokenizer.start, tokenizer.end) == (49408, 49406, 49407)
    cases = json.loads((VECTORS / "clip_tokens.json").read_text())
    assert len(cases) >= 6
    for expected in cases:
        ids = [tokenizer.start, *tokenizer.encode(expected["text"]), tokenizer.end]
        assert ids + [0] * (77 - len(ids)) == expected["ids"], expected["text"]
    transform = TextTransform(tokenizer, 77, fill=True)
    ids, mask = transform.collate([transform(cases[0]["text"], None)])
    assert ids[0].tolist() == cases[0]["ids"]
    assert mask.sum() == cases[0]["ids"].index(49407) + 1


def test_clips_tokenizer_cuts_a_long_text_before_its_end(clip_vocabulary):
    transform = TextTransform(CLIPTokenizer(str(clip_vocabulary)), 77)
    ids = transform("word " * 100, None).tolist()
    assert len(ids) == 77
    assert ids[-1] == 49407
    assert len(set(ids[1:-1])) == 1


def test_clips_tokenizer_agrees_with_transformers(clip_vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers")
    lines = gzip.decompress(clip_vocabulary.read_bytes()).decode().split("\n")[: NUM_MERGES + 1]
    merges = tmp_path / "merges.txt"
    merges.write_text("\n".join(lines))
    tokenizer = CLIPTokenizer(str(merges))  # the other file that is taken
    pairs = [tuple(line.split()) for line in lines[1:]]
    vocabulary = tokenizer._tokenizer.get_vocab()
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs)
    for text in ("A photo of 3 dogs, isn't it?", "x" * 30, "Ünïcode -- done!", "a\u00a0b"):
        assert tokenizer.encode(text) == theirs.encode(text)[1:-1], text


def test_without_a_vocabulary_the_error_names_the_three_ways(monkeypatch, tmp_path):
    monkeypatch.setattr("multimodal.data.tokenizers.clip.PACKAGES", ())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"\(1\) a local file.*\(2\) an installed.*\(3\)"):
        CLIPTokenizer(None)
    with pytest.raises(FileNotFoundError, match=r"looked at .*none\.gz"):
        CLIPTokenizer(str(tmp_path / "none.gz"))
    (tmp_path / "bad.txt").write_text("#version\na b\n")
    with pytest.raises(ValueError, match="48894 merges were expected"):
        CLIPTokenizer(str(tmp_path / "bad.txt"))


# Of the corpus at hand


def test_a_tokenizer_of_the_corpus_is_trained_once_and_kept(tmp_path):
    captions = ["a red chair", "a green chair", "two zebras"]
    samples = [(f"s{i}", {"txt": text.encode()}) for i, text in enumerate(captions * 4)]
    manifest = write_source(tmp_path / "shards", {"train": [samples]})
    sources = {"made": Source(str(manifest), {"text": {"member": "txt"}})}
    file = tmp_path / "run" / "tokenizer.json"
    tokenizer = CorpusTokenizer(str(file), sources, 300)
    assert len(tokenizer.encode("chair")) == 1
    assert tokenizer.vocab_size <= 300
    written = file.read_bytes()
    again = CorpusTokenizer(str(file), {}, 300)  # read, not trained: there is nothing to train on
    assert again.encode("two zebras") == tokenizer.encode("two zebras")
    file.unlink()
    CorpusTokenizer(str(file), sources, 300)
    assert file.read_bytes() == written
    with pytest.raises(ValueError, match="no source has 'text'"):
        CorpusTokenizer(str(tmp_path / "none.json"), {}, 300)
    with pytest.raises(ValueError, match="over vocab_size=259"):
        CorpusTokenizer(str(file), sources, 259)


# Of transformers


def test_any_tokenizer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "chair", "a", "[MASK]"]
    bert = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    bert.save_pretrained(tmp_path / "bert")
    tokenizer = HuggingFaceTokenizer(str(tmp_path / "bert"))
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (2, 3, 0)
    assert tokenizer.vocab_size == len(words)
    transform = TextTransform(tokenizer, 5)
    assert transform("a red chair", None).tolist() == [2, 6, 4, 5, 3]
    assert transform("red chair red chair", None).tolist() == [2, 4, 5, 4, 3]
    canonical = HuggingFaceTokenizer(str(tmp_path / "bert"), canonical=True)
    assert canonical.encode("A,  RED_chair!") == [6, 4, 5]
    with pytest.raises(FileNotFoundError, match=r"no tokenizer .*nowhere.*offline=false"):
        HuggingFaceTokenizer("nowhere/none")
