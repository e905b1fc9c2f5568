"""The parser in C reads what OmegaConf's reads, and says of faults what that says."""

import io
from pathlib import Path

import omegaconf._utils
import pytest
import yaml
from omegaconf import OmegaConf

from multimodal.config import config_dir
from multimodal.config.composing import libyaml

# OmegaConf's own; the one that is there by now is ours.
theirs = next(each for each in libyaml._loader().__mro__ if each.__name__ == "OmegaConfLoader")
FILES = sorted(Path(config_dir()).rglob("*.yaml"))


def read(loader, text):
    """What is read, with the type of every value; or the message."""
    try:
        return repr(yaml.load(text, Loader=loader))
    except (yaml.YAMLError, ValueError) as error:
        return str(error)


def test_it_is_the_one_that_omegaconf_takes():
    assert yaml.__with_libyaml__
    assert omegaconf._utils.get_yaml_loader() is libyaml._loader()
    assert OmegaConf.create("a: 1e3").a == 1000.0


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_read_the_same(path):
    text = path.read_text("utf-8")
    assert read(libyaml._loader(), text) == read(theirs, text)


@pytest.mark.parametrize(
    "text",
    [
        "", "# nothing", "a", "3", "[1, 2.0, 1e3, -.5, 0x1F, 0b1, 017, 1_000, 12:30:45, .inf, ~]",
        "[yes, No, on, null, '', \"\\u00e9\", 2024-01-02, 1e, +1, 1.0e+3]",
        "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "a: |\n  two\n  lines\nb: >-\n  folded\n  text",
        "? [1, 2]\n: x", "a: !!python/object/apply:pathlib.PosixPath [b, c]", "日本語: ünïcode",
        "a: ${b}\nb: '${oc.env:X}'", "a: '\x85 \u2028'", "'a b': 1\n\"c\": 2", "- - 1\n  - 2",
    ],
)  # fmt: skip
def test_values_are_read_the_same(text):
    assert read(libyaml._loader(), text) == read(theirs, text)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2", "a: [1, 2", "a: b: c", "\tx: 1", "a: 'open", "a: *gone", "%",
        "a:\n - b\n c: 1",
        "a: !!python/object/apply:os.system [true]", "{a: 1}}", "a: \x01", "--- 1\n--- 2", "a: 099",
        "a: !own 1", "@a",
    ],
)  # fmt: skip
def test_faults_are_said_in_the_same_words(text, tmp_path):
    told = read(libyaml._loader(), text)
    assert told == read(theirs, text)
    (tmp_path / "own.yaml").write_text(text, "utf-8")
    with (tmp_path / "own.yaml").open(encoding="utf-8") as file:
        told = read(libyaml._loader(), file)
    with (tmp_path / "own.yaml").open(encoding="utf-8") as file:
        assert told == read(theirs, file)


def test_bytes_and_streams():
    for given in (b"a: \xc3\xa9", "\ufeffa: 1", "a: é".encode("utf-16")):
        assert read(libyaml._loader(), given) == read(theirs, given)
    assert read(libyaml._loader(), io.StringIO("a: 1")) == "{'a': 1}"
