"""The headers of an untrusted tar, from a memory map or a stream alike.

Formats: POSIX.1-1988 ustar, POSIX.1-2001 pax (``path`` and ``size`` records) and GNU long names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from multimodal.data.errors import ShardError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_LONGEST_HEADER = 1 << 20  # bytes of a pax or long-name header; real ones have hundreds
_LONGEST_NAME = 4096  # characters; no file system takes more
_MAX_DIGITS = 20  # of a size in a pax header: 2^64 has as many
_OCTAL = re.compile(rb"[0-7]*")
_FILE, _FOLDER = b"0\0007", b"5"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_EXTENDED = (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK)

ReadAt = Callable[[int, int], bytes]  # (position, size) -> that many bytes, or fewer at the end


class Member(NamedTuple):
    """One file in a tar."""

    name: str
    header: int  # byte at which its header begins, for messages
    start: int
    size: int


def walk(read_at: ReadAt, path: str, length: int | None = None) -> Iterator[Member]:
    """The files of a tar, in order, up to its end mark.

    Args:
        read_at: asked for rising positions only.
        path: names the tar in messages.
        length: of the tar in bytes; None where that is unknown: a cut inside a member then shows
            as an end without an end mark.

    Raises:
        ShardError: if the tar is cut, a header is broken, or a member is neither a file nor a
            folder.
    """
    position = 0
    extended: dict[str, str] = {}  # what pax and long-name headers say of the next member
    while True:
        header = read_at(position, BLOCK)
        if len(header) < BLOCK:
            end = position + len(header) if length is None else length
            detail = "cut: ends without an end mark"
            raise ShardError(path, min(position, end), detail, "shard_cut")
        if header == _ZEROS:
            return
        kind, size, name = _parse_header(header, path, position)
        if kind not in _EXTENDED:
            size = _pax_size(extended.get("size"), size, path, position)
            name = extended.get("path", name)
            extended = {}
            if len(name) > _LONGEST_NAME:
                raise ShardError(path, position, f"a name of {len(name):,} characters")
        start = position + BLOCK
        if kind in _EXTENDED and size > _LONGEST_HEADER:
            raise ShardError(path, position, f"an extended header of {size} bytes")
        if length is not None and start + size > length:
            detail = f"cut: {start + size - length} bytes of {_short(name)} are missing"
            raise ShardError(path, position, detail, "shard_cut")
        if kind in _EXTENDED:
            content = read_at(start, size)
            if len(content) < size:
                raise ShardError(path, position, "cut: ends in an extended header", "shard_cut")
            if kind == _PAX:
                extended.update(_parse_pax(content, path, position))
            elif kind == _LONG_NAME:
                extended["path"] = _text(content.rstrip(b"\0"))
        elif kind in _FILE:
            yield Member(name, position, start, size)
        elif kind != _FOLDER:
            detail = f"{_short(name)} is of type {kind!r}: only files can be read"
            raise ShardError(path, position, detail)
        position = start + -(-size // BLOCK) * BLOCK


def _parse_header(header: bytes, path: str, position: int) -> tuple[bytes, int, str]:
    """Type, content size and name; the checksum identifies a header."""
    expected = _number(header[148:156])
    # The sum is taken with the checksum field itself read as eight spaces.
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if expected != actual:
        raise ShardError(path, position, f"no tar header here (begins with {header[:16]!r})")
    size = _number(header[124:136])
    if size is None or size < 0:
        raise ShardError(path, position, f"a header gives the size {header[124:136]!r}")
    name = _text(header[:100].split(b"\0", 1)[0])
    if header[257:263] == b"ustar\0":  # GNU's magic differs and keeps other things in the prefix
        prefix = _text(header[345:500].split(b"\0", 1)[0])
        name = f"{prefix}/{name}" if prefix else name
    return header[156:157], size, name


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 where the top bit is set; None for anything else."""
    if field[0] & 0x80:
        if field[0] & 0x40:  # negative, in two's complement
            return int.from_bytes(field, "big", signed=True)
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if _OCTAL.fullmatch(digits) else None


def _parse_pax(content: bytes, path: str, position: int) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n", where LENGTH counts the whole record."""
    records: dict[str, str] = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + _MAX_DIGITS].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : at + length].partition(b"=")
        if not equals or value[-1:] != b"\n" or at + length > len(content):
            raise ShardError(path, position, "a broken pax header")
        if key.startswith(b"GNU.sparse"):
            raise ShardError(path, position, "a sparse member: only plain files can be read")
        records[_text(key)] = _text(value[:-1])
        at += length
    return records


def _pax_size(text: str | None, default: int, path: str, position: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise ShardError(path, position, f"a pax header gives the size {_short(text)}")
    return int(text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
