"""Sharded checkpoints: folders that all ranks write, atomically.

The tensors are in the files of ``torch.distributed.checkpoint`` (DCP), each rank its own; all else
is in `rest.pt`, a checkpoint of one file without its tensors; `sha256.json` has every file's hash.
"""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from multimodal.core import strict_json
from multimodal.core.distributed import all_gather_object, rank
from multimodal.core.files import TEMPORARY, free_megabytes, sha256, sync_folder, write_text
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.weights import STATE

REST, HASHES, METADATA = "rest.pt", "sha256.json", ".metadata"
_MODEL, _OPTIMIZER, AVERAGE = "state_dict", "optimizer", STATE

# The classes in DCP's tensor metadata, which is a pickle that could execute code.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {
        str(value).removeprefix("torch.")
        for value in vars(torch).values() if isinstance(value, torch.dtype)
    },
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}  # fmt: skip


def flatten(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of weights, averages and optimizers by flat names, and the rest."""
    apart = ("state_dict", "optimizer_states", STATE)
    rest = {key: value for key, value in checkpoint.items() if key not in apart}
    tensors = {f"{_MODEL}/{name}": value for name, value in checkpoint["state_dict"].items()}
    tensors |= {f"{AVERAGE}/{name}": value for name, value in checkpoint.get(STATE, {}).items()}
    rest["optimizers"] = []
    for number, state in enumerate(checkpoint.get("optimizer_states", ())):
        plain: dict[int, dict[str, Any]] = {}
        for index, values in state["state"].items():
            plain[index] = {}
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}/{number}/{index}/{key}"] = value
                else:
                    plain[index][key] = value
        rest["optimizers"].append({"plain": plain, "param_groups": state["param_groups"]})
    return tensors, rest


def unflatten(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint that `flatten` has taken apart."""
    checkpoint = {name: value for name, value in rest.items() if name != "optimizers"}
    checkpoint["state_dict"] = {
        name.removeprefix(f"{_MODEL}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{_MODEL}/")
    }
    average = {
        name.removeprefix(f"{AVERAGE}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{AVERAGE}/")
    }
    if average:
        checkpoint[STATE] = average
    checkpoint["optimizer_states"] = []
    for number, saved in enumerate(rest["optimizers"]):
        states = {index: dict(values) for index, values in saved["plain"].items()}
        for name, value in tensors.items():
            kind, _, place = name.partition("/")
            if kind == _OPTIMIZER and place.startswith(f"{number}/"):
                _, index, key = place.split("/", 2)
                states[int(index)][key] = value
        checkpoint["optimizer_states"].append(
            {"state": states, "param_groups": saved["param_groups"]}
        )
    return checkpoint


def write(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Saves into a temporary folder beside ``path``, hashes, syncs, and renames; all ranks call.

    The folder has to be on a file system that all ranks see.

    Raises:
        CheckpointError: on all ranks, if any of them could not write its part.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}{TEMPORARY}")
    tensors, rest = flatten(checkpoint)

    def begin() -> None:
        if rank() == 0:
            target.parent.mkdir(parents=True, exist_ok=True)
            if temporary.exists():
                checkpoint_file.remove(temporary)
            temporary.mkdir()

    def write_tensors() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP's, of a run of one process
            save_shards(tensors, storage_writer=FileSystemWriter(temporary, sync_files=True))

    def hash_own() -> dict[str, str]:
        if rank() == 0:
            checkpoint_file.write_atomically(rest, temporary / REST)
        own = sorted(temporary.glob(f"__{rank()}_*"))
        own += [temporary / REST, temporary / METADATA] if rank() == 0 else []
        return {file.name: sha256(file).hex() for file in own}

    def finish() -> None:
        if rank() == 0:
            hashes = {name: value for each in own_hashes for name, value in each.items()}
            write_text(temporary / HASHES, json.dumps(hashes, indent=1))
            put_in_place(temporary, target)

    try:
        _together(begin, target)
        _together(write_tensors, target)
        own_hashes = _together(hash_own, target)
        _together(finish, target)
    except CheckpointError:
        if rank() == 0 and temporary.exists():
            checkpoint_file.remove(temporary)
        raise


def _together(part: Callable[[], Any], target: Path) -> list[Any]:
    """The results of ``part`` of all ranks; an error of one is raised on all."""
    result, problem = None, None
    try:
        result = part()
    # Any error, so that the other ranks do not wait; DCP's own is not an `Exception`.
    except (Exception, CheckpointException) as error:
        problem = f"rank {rank()}: {_last(error)}"
    gathered = all_gather_object((result, problem))
    problems = [problem for _, problem in gathered if problem is not None]
    if problems:
        free = free_megabytes(target.parent)
        raise CheckpointError(
            f"cannot save {target}: {problems[0]}. {free:.1f} MB are free there. The checkpoints "
            "that were there are untouched"
        )
    return [result for result, _ in gathered]


def _last(error: BaseException) -> str:
    """The message of an error; of DCP's, which contains a traceback, the last line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def put_in_place(temporary: Path, target: Path) -> None:
    """Renames; what had that name is removed after it is replaced."""
    aside = target.with_name(f".{target.name}.old{TEMPORARY}")
    if target.exists():
        os.replace(target, aside)
    os.replace(temporary, target)
    sync_folder(target.parent)
    if aside.exists():
        checkpoint_file.remove(aside)


def head(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All but the tensors, after every file's hash was verified.

    Raises:
        CheckpointError: if a file is missing or damaged, or it is not a checkpoint of ours.
    """
    folder = Path(path)
    hashes = _hashes(folder)
    for name, recorded in hashes.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        if (actual := sha256(file).hex()) != recorded:
            raise CheckpointError(
                f"hash mismatch: {file} cannot be trusted. It was saved as sha256 "
                f"{recorded[:16]}..., and is {actual[:16]}... now: the file was damaged after it "
                "was written"
            )
    rest = checkpoint_file.load_plain(folder / REST)
    if "optimizers" not in rest:
        raise CheckpointError(f"{folder} is not a sharded checkpoint of this framework")
    return rest


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The whole checkpoint on the CPU, as one of a single file; needs no other process.

    Raises:
        CheckpointError: as `head`.
    """
    rest = head(path)
    reader = Reader(path)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.entries().items()
    }
    load(tensors, reader, alone=True)
    return unflatten(tensors, rest)


def load(tensors: dict[str, Any], reader: Reader, alone: bool = False) -> None:
    """Fills ``tensors`` in place, each with that part of the saved one which it holds.

    Raises:
        CheckpointError: if a name or shape is not that of the saved tensors.
    """
    saved = reader.entries()
    for name, tensor in tensors.items():
        there = saved[name].size if name in saved else None
        if there != tensor.shape:
            raise CheckpointError(
                f"{reader.folder}: {name}: checkpoint has "
                f"{'none' if there is None else list(there)}, this run has {list(tensor.shape)}"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_shards(tensors, storage_reader=reader, no_dist=alone)
        except CheckpointException as error:
            raise CheckpointError(f"{reader.folder} cannot be read: {_last(error)}") from error


class Reader(FileSystemReader):
    """DCP's reader, which executes nothing, and opens no file but those with a hash."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.folder = Path(path)

    def entries(self) -> dict[str, Any]:
        """Name of a tensor -> its metadata."""
        return dict(self.read_metadata().state_dict_metadata)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the tensors.

        Raises:
            CheckpointError: if there is more in it.
        """
        try:
            with (self.folder / METADATA).open("rb") as file:
                metadata = _Unpickler(file).load()
        except CheckpointError:
            raise
        except Exception as error:  # unpickling raises many kinds
            raise CheckpointError(f"{self.folder / METADATA} cannot be read: {error}") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{self.folder / METADATA} is not valid tensor metadata")
        known = _hashes(self.folder)
        unhashed = {str(info.relative_path) for info in metadata.storage_data.values()} - set(known)
        if unhashed:
            raise CheckpointError(f"{self.folder} names files without a hash: {sorted(unhashed)}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name not in _ALLOWED.get(module_name, ()):
            raise CheckpointError(
                f"a sharded checkpoint must not name {module_name}.{global_name}: it may contain "
                "malicious code; nothing of it was executed"
            )
        return super().find_class(module_name, global_name)


def _hashes(folder: Path) -> dict[str, str]:
    if not (folder / HASHES).exists():
        raise CheckpointError(
            f"{folder} is not a sharded checkpoint: it has no {HASHES}; expected a checkpoint's "
            "file, or a folder that trainer=fsdp wrote"
        )
    try:
        hashes = strict_json.read(folder / HASHES)
        if {REST, METADATA} <= hashes.keys() and all(Path(name).name == name for name in hashes):
            return dict(hashes)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a sharded checkpoint: {HASHES}: {error}") from error
    raise CheckpointError(f"{folder} is not a sharded checkpoint: {HASHES} does not name its files")
