"""Which layout an input has: inferred from its files, or as the user says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multimodal.core.suggest import suggest
from multimodal.data.packing.items import DONE, Item, Refusal, Samples, Say
from multimodal.data.packing.layouts.captions import (
    coco,
    is_coco,
    is_karpathy,
    is_token_file,
    karpathy,
    token_file,
)
from multimodal.data.packing.layouts.folder import are_classes, classes, pairs
from multimodal.data.packing.layouts.metadata_folder import (
    describes,
    metadata_files,
    metadata_folder,
)
from multimodal.data.packing.layouts.saved import is_saved, saved_tables, tables_of
from multimodal.data.packing.layouts.tars import tars
from multimodal.data.packing.layouts.walk import Found, walk
from multimodal.data.packing.tables.json_rows import load_json, read_document
from multimodal.data.packing.tables.open_table import TABLES, open_table, table_suffix
from multimodal.data.packing.tables.reading import Reading
from multimodal.data.packing.tables.roles import names_files
from multimodal.data.packing.tables.samples import samples_of
from multimodal.data.shards.formats import is_media_name
from multimodal.data.shards.manifest import FORMAT, TABLE_SUFFIX

LAYOUTS = {
    "pairs": "a folder of files that share a stem",
    "classes": "a folder with a folder for each class",
    "metadata": "a folder with a table about its files (metadata.csv, .jsonl, .parquet)",
    "table": "a table, or a folder of tables of one kind",
    "rows": "a table, with a sample for each row also where files come back",
    "captions": "COCO's or Karpathy's JSON, or Flickr30k's token file",
    "saved": "a folder that `datasets` has saved",
    "tars": "WebDataset tars",
}
_TEXTS = (".txt", ".token")
_FEW = 5  # tables in a folder of other files, that may be about them
_ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")


def items_of(source: Path, reading: Reading | None = None, say: Say = lambda line: None) -> Samples:
    """The samples of an input in a fixed order, or why they are not samples.

    Args:
        source: a folder or a file of any layout in ``LAYOUTS``.
        reading: what the user says of it.
        say: prints what was inferred, and what was guessed.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if nothing can read it, or not as ``reading`` says; names file and line.
    """
    reading = reading or Reading()
    if reading.layout is not None and reading.layout not in LAYOUTS:
        raise ValueError(
            f"there is no layout {reading.layout!r}; {suggest(reading.layout, LAYOUTS)}"
        )
    if not source.exists():
        link = " (a link that leads nowhere)" if source.is_symlink() else ""
        raise FileNotFoundError(
            f"no {source}{link}: expected a folder, a table or a folder of tars"
        )
    yield from _file(source, reading, say) if source.is_file() else _folder(source, reading, say)


def _file(path: Path, reading: Reading, say: Say) -> Samples:
    suffix = table_suffix(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    if suffix == ".tar":
        _refuse_columns(path, reading)
        yield from tars([path], reading, say)
    elif suffix == ".json":
        yield from _json(path, reading, say)
    elif suffix in _TEXTS and is_token_file(path):
        yield from token_file(path, reading, say)
    elif suffix in (*TABLES, *_TEXTS):
        yield from samples_of([open_table(path, reading)], reading, say)
    elif path.suffix.lower() in _ARCHIVES:
        raise ValueError(f"{path} is an archive: unpack it, and give the folder")
    else:
        raise ValueError(
            f"{path}: expected a folder or one of .json, .tar, .token, {', '.join(TABLES)}"
        )


def _json(path: Path, reading: Reading, say: Say) -> Samples:
    content = load_json(path, reading)
    if is_coco(content):
        yield from coco(path, content, reading, say)
    elif is_karpathy(content):
        yield from karpathy(path, content, reading, say)
    else:
        yield from samples_of([read_document(path, content)], reading, say)


def _folder(folder: Path, reading: Reading, say: Say) -> Samples:
    if reading.layout == "saved" or (reading.layout is None and is_saved(folder)):
        yield from samples_of(saved_tables(folder), reading, say)
        return
    files: list[Found] = []
    for entry in walk(folder):
        if isinstance(entry, Refusal):
            if entry.key != DONE:
                yield entry
        else:
            files.append(entry)
    if not files:
        raise ValueError(f"{folder} holds no files")
    layout = reading.layout or _layout(files, folder, reading)
    if layout in ("pairs", "classes", "tars"):
        _refuse_columns(folder, reading)
    if layout == "tars":
        ours = [f for f in files if f.path.suffix.lower() == ".tar" or _is_ours(f)]
        yield from _beside(files, ours, layout)
        paths = [file.path for file in files if file.path.suffix.lower() == ".tar"]
        yield from tars(paths, reading, say)
    elif layout == "metadata":
        yield from metadata_folder(files, reading, say)
    elif layout in ("table", "rows", "captions"):
        yield from _by_tables(files, folder, reading, say)
    elif layout == "classes":
        yield from classes(files, reading, say)
    else:
        yield from pairs(files, reading, say)


def _layout(files: Sequence[Found], folder: Path, reading: Reading) -> str:
    media = [file for file in files if is_media_name(file.name)]
    about = metadata_files(files)
    if any(describes(file, reading) for file in about):
        return "metadata"
    if not media and any(file.path.suffix.lower() == ".tar" for file in files):
        return "tars"
    if _tables(files, media, folder, reading):
        return "table"
    if about:  # it says what is missing
        return "metadata"
    return "classes" if are_classes(files, reading) else "pairs"


def _tables(
    files: Sequence[Found], media: Sequence[Found], folder: Path, reading: Reading
) -> list[Found]:
    """The tables of a folder: all, if it holds nothing else; else those about its files."""
    tables = [file for file in files if table_suffix(file.path) in TABLES]
    if not media:
        return tables
    alone = [file for file in files if file.path.suffix.lower() in (".json", *_TEXTS)]
    stems = {file.name.partition(".")[0] for file in media}
    tables += [file for file in alone if file.name.partition(".")[0] not in stems]
    return [f for f in tables if _is_about(f.path, reading)] if len(tables) <= _FEW else []


def _is_about(path: Path, reading: Reading) -> bool:
    """Whether a table, or what may be one, names files of its folder."""
    try:
        if path.suffix.lower() == ".json":
            content = load_json(path, reading)
            if is_coco(content) or is_karpathy(content):
                return True
            return names_files(read_document(path, content), path.parent)
        if path.suffix.lower() in _TEXTS and is_token_file(path):
            return True
        return names_files(open_table(path, reading), path.parent)
    except ValueError as error:
        if table_suffix(path) in TABLES:
            raise ValueError(f"{error} (--layout pairs packs the folder without it)") from error
        return False


def _by_tables(files: Sequence[Found], folder: Path, reading: Reading, say: Say) -> Samples:
    media = [file for file in files if is_media_name(file.name)]
    chosen = _tables(files, media, folder, reading)
    if not chosen:
        raise ValueError(f"{folder} holds no table that names its files")
    yield from _beside(files, [*chosen, *media], "table")
    if not media:
        yield from samples_of(tables_of([f.path for f in chosen], folder, reading), reading, say)
        return
    if len(chosen) > 1:
        names = ", ".join(file.name for file in chosen)
        raise ValueError(f"{folder}: several tables name its files ({names}): give the one to pack")
    used: set[Path | None] = set()
    for sample in _file(chosen[0].path, reading, say):
        if isinstance(sample, Item):
            used.update(getattr(content, "path", None) for content in sample.members.values())
        yield sample
    for file in media:
        if file.path not in used:
            yield Refusal(file.name, "not_listed", f"{chosen[0].name} does not name {file.path}")


def _beside(files: Sequence[Found], taken: Sequence[Found], layout: str) -> Samples:
    names = {file.name for file in taken}
    for file in files:
        if file.name not in names:
            yield Refusal(file.name, "beside", f"{file.path} is not one of the {layout}'s files")


def _is_ours(file: Found) -> bool:
    """Whether a file beside tars is a manifest, or another that packing writes."""
    if file.name in ("report.json", "refused.jsonl") or f"{TABLE_SUFFIX}/" in file.name:
        return True
    with file.path.open("rb") as opened:
        return file.name.endswith(".json") and FORMAT.encode() in opened.read(4096)


def _refuse_columns(path: Path, reading: Reading) -> None:
    if reading.named_columns:
        raise ValueError(f"{path} is not a table: columns are for tables ({', '.join(TABLES)})")
