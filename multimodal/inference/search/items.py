"""Items to embed: the samples of a manifest, or the files of a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from omegaconf import DictConfig, OmegaConf

from multimodal.data.decoding.decode import Limits, Signal, decode
from multimodal.data.errors import DecodeError
from multimodal.data.packing.items import Refusal
from multimodal.data.packing.layouts.walk import walk
from multimodal.data.shards.formats import BY_EXTENSION, KINDS
from multimodal.data.source import Source
from multimodal.inference.embedder import Embedder

MODALITIES = {
    extension: kind
    for extension, kind in BY_EXTENSION.items()
    if kind in ("image", "audio", "text")
}
_SHOWN = 10  # files that are left out and named
ARRAYS = ("npy",)  # may be of any modality: it has to be named


class Item(NamedTuple):
    """One thing to embed, in all its modalities.

    Attributes:
        key: its location in the input.
        name: what it is called.
        values: modality -> decoded value.
    """

    key: str
    name: str
    values: dict[str, Any]


class Items(Protocol):
    """Things to embed, by number."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Item:
        """One of them.

        Raises:
            BadSampleError: if it cannot be read.
        """
        ...

    def place(self, index: int) -> str:
        """Its location, for messages."""
        ...

    def identity(self) -> str:
        """Identifies these items: changes if one is added or changed."""
        ...


class SourceItems:
    """The samples of a source.

    Args:
        source: the samples.
        modalities: those wanted.
    """

    def __init__(self, source: Source, modalities: list[str]) -> None:
        self.source = source
        self.modalities = modalities

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Item:
        """A sample; see `Items`."""
        sample = self.source.decode(index, None, self.modalities)
        named = (sample.metadata.get(key) for key in ("name", "label"))
        name = next((value for value in named if isinstance(value, str)), sample.key)
        return Item(sample.key, name, dict(sample.values))

    def place(self, index: int) -> str:
        """Shard and key."""
        return "/".join(self.source.place(index))

    def identity(self) -> str:
        """The shards' names and sizes, and what is read from them."""
        table = self.source.table
        shards = [
            (table.name(number), int(table.samples[number]), int(table.bytes[number]))
            for number in range(len(table.samples))
        ]
        return repr((self.source.name, self.source.split, sorted(self.modalities), shards))


class FolderItems:
    """The files of a folder and of those in it, by name, each of one modality.

    Args:
        folder: to look in.
        modality: of all of its files; None infers it from the extension.
        rate_hz: makes arrays into signals (IMU) of this rate.
        limits: sizes that are decoded.

    Attributes:
        files: those that are embedded.
        left_out: the others, and why.

    Raises:
        ValueError: if there is no such folder, or nothing in it that can be embedded.
    """

    def __init__(
        self,
        folder: Path,
        modality: str | None = None,
        rate_hz: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not folder.is_dir():
            raise ValueError(f"input: there is no folder {folder}")
        self.folder = folder
        self.modality = modality
        self.rate_hz = rate_hz
        self.limits = limits or Limits()
        known = {*MODALITIES, *(ARRAYS if modality else ())}
        self.files, self.left_out = [], []
        for file in walk(folder):
            if isinstance(file, Refusal):
                self.left_out.append(f"{file.key}: {file.detail}")
            elif extension(file.name) in known:
                self.files.append(file.path)
            else:
                self.left_out.append(f"{file.name}: no such files are embedded")
        if not self.files:
            hint = "" if modality else "; arrays (npy) need modality=NAME"
            raise ValueError(f"input: {folder} holds no file of {', '.join(sorted(known))}{hint}")

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Item:
        """A file; see `Items`."""
        path = self.files[index]
        if path.stat().st_size > self.limits.max_bytes:
            raise DecodeError("too_large", f"over max_bytes={self.limits.max_bytes}")
        modality, value = from_bytes(
            path.name, path.read_bytes(), self.modality, self.rate_hz, self.limits
        )
        name = value if isinstance(value, str) else path.stem
        return Item(self.place(index), name[:200], {modality: value})

    def place(self, index: int) -> str:
        """The path inside the folder."""
        return self.files[index].relative_to(self.folder).as_posix()

    def identity(self) -> str:
        """Every file's path, size and time."""
        stats = [(self.place(i), path.stat()) for i, path in enumerate(self.files)]
        return repr([(place, stat.st_size, stat.st_mtime_ns) for place, stat in stats])


def extension(name: str) -> str:
    """The last one, in lower case."""
    return name.rpartition(".")[2].lower()


def from_bytes(
    name: str, data: bytes, modality: str | None, rate_hz: float | None, limits: Limits
) -> tuple[str, Any]:
    """(modality, value) of an untrusted file; its name only selects the decoder.

    Raises:
        DecodeError: if it is of no known kind, too large, or not what its extension says.
    """
    kind = extension(name)
    modality_ = modality or MODALITIES.get(kind)
    if modality_ is None:
        known = ", ".join([*MODALITIES, *ARRAYS])
        hint = "name its modality" if kind in ARRAYS else f"expected one of {known}"
        raise DecodeError("unsupported", f"a file of type .{kind}: {hint}")
    value = decode(f"file.{kind}", data, limits, kind=modality if modality in KINDS else None)
    if kind in ARRAYS and rate_hz is not None:
        value = Signal(value, rate_hz)
    return modality_, value


def by_modality(items: list[Item]) -> Mapping[str, list[int]]:
    """Modality -> places of the items that have it, modalities in the order of their names."""
    names = sorted({name for item in items for name in item.values})
    return {name: [i for i, item in enumerate(items) if name in item.values] for name in names}


def items_of(cfg: DictConfig, run_cfg: DictConfig, embedder: Embedder) -> Items:
    """What ``cfg.input`` holds, in the modalities that the model takes.

    Raises:
        ValueError: if it is neither a folder nor a manifest, or nothing of it can be embedded.
    """
    given = str(cfg.input)
    if not given.endswith(".json"):
        if cfg.modality is not None and cfg.modality not in embedder.transforms:
            known = ", ".join(embedder.transforms)
            raise ValueError(f"modality={cfg.modality}: the model takes {known}")
        items = FolderItems(Path(given), cfg.modality, cfg.rate_hz)
        for line in items.left_out[:_SHOWN]:
            print(f"left out: {line}", file=sys.stderr)
        if (more := len(items.left_out) - _SHOWN) > 0:
            print(f"left out: {more} more files", file=sys.stderr)
        return items
    source = source_of(cfg, run_cfg)
    wanted = [name for name in source.modalities if name in embedder.transforms]
    if not wanted:
        raise ValueError(f"the model takes none of {', '.join(source.modalities)}")
    return SourceItems(source, wanted)


def source_of(cfg: DictConfig, run_cfg: DictConfig) -> Source:
    """The samples of the manifest ``cfg.input``, read as ``cfg`` says, or as the run read them.

    Raises:
        ValueError: if neither says how.
    """
    given = str(cfg.input)
    modalities = OmegaConf.to_container(cfg.modalities) if cfg.modalities else None
    modalities = modalities or _as_the_run_reads(given, run_cfg)
    if modalities is None:
        raise ValueError(
            f"the checkpoint's run never read {given}: say what of it to embed, as "
            "modalities='{image: {member: NAME.png}}'"
        )
    positive_key = cfg.get("positive_key")
    return Source(given, modalities, split=cfg.split, positive_key=positive_key)  # type: ignore[arg-type]


def _as_the_run_reads(manifest: str, run_cfg: DictConfig) -> dict[str, Any] | None:
    """The modalities of the run's sources of that manifest, the evaluation's first."""
    modalities: dict[str, Any] = {}
    evaluated = OmegaConf.select(run_cfg, "evaluation.sets") or {}
    nodes = [entry.get("source") for entry in evaluated.values() if entry]
    nodes += list(run_cfg.data.sources.values())
    for node in nodes:
        if node and _same(str(node.manifest), manifest):
            given: Any = OmegaConf.to_container(node.modalities, resolve=True)
            for name, entry in given.items():
                modalities.setdefault(str(name), entry)
    return modalities or None


def _same(a: str, b: str) -> bool:
    return a == b or ("://" not in a and "://" not in b and Path(a).resolve() == Path(b).resolve())
