"""Folders of files: pairs that share a stem, class folders."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from multimodal.data.packing.contents import Content, InFile
from multimodal.data.packing.items import Item, Refusal, Samples, Say
from multimodal.data.packing.layouts.names import MemberNames, Split
from multimodal.data.packing.layouts.walk import Found
from multimodal.data.packing.tables.reading import Reading
from multimodal.data.packing.tables.splits import split_named
from multimodal.data.shards.formats import BY_EXTENSION, extension_of, is_media

LABEL = "label"  # key of the class that a folder names
_WORDS = ("text", "json")
_FOLDERS = ("depth", "imu")  # folders whose name is the kind of what is in them
_MOSTLY = 0.8  # of the names that folders side by side have in common


class _Sample(NamedTuple):
    """Files of one stem.

    Attributes:
        name: the stem, in its folder.
        members: member -> its files, of which there should be one.
        unread: files that nothing reads.
    """

    name: str
    members: dict[str, list[Found]]
    unread: list[Found]


def pairs(files: Sequence[Found], reading: Reading, say: Say) -> Samples:
    """A sample for each stem; files that nothing reads are left out."""
    samples, refusals = _by_stem(files, reading)
    yield from refusals
    split_of = _split_folders(samples) or {}
    _say_splits(split_of, say)
    count = Counter(member for sample in samples for member in sample.members)
    members = ", ".join(f"{name} ({n})" for name, n in count.most_common(8))
    say(f"files that share a stem: {len(samples)} samples of {members} (--layout, --members)")
    for sample in samples:
        yield from _item(sample, reading, {}, split_of.get(_top(sample.name)))


def classes(files: Sequence[Found], reading: Reading, say: Say) -> Samples:
    """A sample for each file, with the name of its folder as its label."""
    samples, refusals = _by_stem(files, reading)
    yield from refusals
    split_of = _split_folders([sample for sample in samples if "/" in sample.name]) or {}
    _say_splits(split_of, say)
    count = Counter(_class_of(sample.name, split_of) for sample in samples)
    names = ", ".join(f"{name} ({n})" for name, n in count.most_common(8) if name)
    more = ", ..." if len(count) > 8 else ""
    say(
        f"class folders: {names}{more}; the key {LABEL!r} holds the class (--layout pairs: without)"
    )
    for sample in samples:
        label = _class_of(sample.name, split_of)
        if not label:
            for file in (*sample.unread, *(f for each in sample.members.values() for f in each)):
                yield Refusal(file.name, "no_class", f"{file.path} is in no class's folder")
            continue
        yield from _item(sample, reading, {LABEL: label}, split_of.get(_top(sample.name)))


def are_classes(files: Iterable[Found], reading: Reading) -> bool:
    """Whether a folder holds folders of single media files: one folder for each class.

    Texts beside those folders, a README say, are about all of them.
    """
    every, _ = _by_stem(list(files), reading)
    samples = [s for s in every if "/" in s.name or any(map(_is_media_member, s.members))]
    split_of = _split_folders(samples) or {}
    classes = {_class_of(sample.name, split_of) for sample in samples}
    if len(classes) < 2 or "" in classes:
        return False
    return all(
        len(sample.members) == 1 and not sample.unread and is_media(next(iter(sample.members)))
        for sample in samples
    )


def _by_stem(files: Sequence[Found], reading: Reading) -> tuple[list[_Sample], list[Refusal]]:
    names = MemberNames((file.name for file in files), reading.members, reading.expected)
    samples: dict[str, _Sample] = {}
    refusals = []
    splits = [names.split(file.name) for file in files]
    beside = _side_by_side(split for split in splits if split is not None)
    splits = [split and _without_folder(split, beside) for split in splits]
    stems = _stems(split for split in splits if split is not None)
    for file, split in zip(files, splits, strict=True):
        if split is None:
            refusals.append(Refusal(file.name, "no_field", "a file without an extension"))
            continue
        stem = stems.get(split.sample, split.sample)
        sample = samples.setdefault(stem, _Sample(stem, {}, []))
        if extension_of(f"x.{split.member}") in BY_EXTENSION:
            sample.members.setdefault(split.member, []).append(file)
        else:
            sample.unread.append(file)
    return list(samples.values()), refusals


def _side_by_side(splits: Iterable[Split]) -> set[str]:
    """Outermost folders that hold the parts of the same samples: ``images/1.jpg``, ``texts/1.txt``.

    Those that hold different kinds of members, under mostly the same names.
    """
    names: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, set[str]] = defaultdict(set)
    for split in splits:
        top, slash, name = split.sample.partition("/")
        if slash:
            names[top].add(name)
            kinds[top].add(top if top in _FOLDERS else _kind_or_none(split.member))
    for one, other in itertools.combinations(names, 2):
        common = len(names[one] & names[other])
        if kinds[one] & kinds[other] or common < _MOSTLY * min(len(names[one]), len(names[other])):
            return set()
    return set(names) if len(names) > 1 else set()


def _without_folder(split: Split, beside: Collection[str]) -> Split:
    """A member of folders side by side by its sample's name alone."""
    top, _, name = split.sample.partition("/")
    if top not in beside or not name:
        return split
    named = top in _FOLDERS and not split.member.startswith(f"{top}.")
    return Split(name, f"{top}.{split.member}" if named else split.member)


def _kind_or_none(member: str) -> str:
    return BY_EXTENSION.get(extension_of(f"x.{member}"), "")


def _stems(splits: Iterable[Split]) -> dict[str, str]:
    """Stem -> the one it is written as: capitals and Unicode forms do not part a pair.

    They do where each of them has the same member: those are two samples.
    """
    groups: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for split in splits:
        folded = unicodedata.normalize("NFC", split.sample).casefold()
        groups[folded].setdefault(split.sample, set()).add(split.member)
    joined = {}
    for group in groups.values():
        members = [member for each in group.values() for member in each]
        if len(group) > 1 and len(members) == len(set(members)):
            joined.update(dict.fromkeys(group, min(group)))
    return joined


def _item(
    sample: _Sample, reading: Reading, metadata: Mapping[str, str], split: str | None
) -> Iterator[Item | Refusal]:
    for file in sample.unread:
        detail = f"nothing reads .{extension_of(file.name)} files"
        yield Refusal(file.name, "unsupported", f"{file.path}: {detail}")
    if not any(map(_is_media_member, sample.members)) and sample.unread:
        if sample.members:
            beside = " and ".join(each.path.name for each in sample.unread)
            yield Refusal(sample.name, "unsupported", f"what it describes cannot be read: {beside}")
        return
    if fault := _ambiguous(sample, reading):
        yield Refusal(sample.name, "ambiguous", fault)
        return
    members: dict[str, Content] = {
        member: InFile(file.path, file.size, _kind(member) in _WORDS, reading.text.encoding)
        for member, (file,) in sample.members.items()
    }
    yield Item(sample.name, members, metadata, split)


def _ambiguous(sample: _Sample, reading: Reading) -> str | None:
    """Why it is not clear which files are the sample's; None if it is."""
    for member, files in sample.members.items():
        if len(files) > 1:
            return f"several files are its {member!r}: {', '.join(str(f.path) for f in files)}"
    kinds: dict[str, list[str]] = defaultdict(list)
    for member in sample.members:
        if "." not in member and member not in (*reading.members, *reading.expected):
            kinds[_kind(member)].append(member)
    for kind, members in kinds.items():
        if len(members) > 1:
            names = ", ".join(sample.members[member][0].path.name for member in members)
            return f"{len(members)} files of one kind, {kind}: {names} (--members names both)"
    return None


def _kind(member: str) -> str:
    return BY_EXTENSION[extension_of(f"x.{member}")]


def _is_media_member(member: str) -> bool:
    return _kind(member) not in _WORDS


def _top(name: str) -> str:
    return name.partition("/")[0]


def _class_of(name: str, split_of: Mapping[str, str]) -> str:
    """The folder of a class: all of the name's, below that of a split."""
    parts = name.split("/")[:-1]
    return "/".join(parts[1:] if parts and parts[0] in split_of else parts)


def _split_folders(samples: Iterable[_Sample]) -> dict[str, str] | None:
    """Folder -> split, where the outermost folders are all named like splits, none twice."""
    tops = {_top(sample.name) if "/" in sample.name else "" for sample in samples}
    named = {top: split_named(top) for top in tops}
    splits = [split for split in named.values() if split is not None]
    if not splits or len(splits) < len(named) or len(set(splits)) < len(splits):
        return None
    return {top: split for top, split in named.items() if split is not None}


def _say_splits(split_of: Mapping[str, str], say: Say) -> None:
    if split_of:
        named = ", ".join(f"{folder}/ is {split}" for folder, split in sorted(split_of.items()))
        say(f"splits by folders: {named} (--split changes that)")
