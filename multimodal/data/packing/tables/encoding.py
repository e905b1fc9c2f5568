"""The encoding of a text file: by its byte-order mark, its bytes, or a guess that is reported."""

from __future__ import annotations

import codecs
import gzip
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from multimodal.core.strict_json import excerpt

_BLOCK = 1 << 20
_GUESSED_FROM = 1 << 18  # bytes of the lines that are not ASCII
# The longer ones first: UTF-16's mark is the beginning of UTF-32's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_AT_THE_EDGE = set("“”‘’‚„–—…€£§°«»¿¡·•™®©‹›¢¥†‡ºª²³¹½¼¾×±µ ¨´`¸")  # of words, not within
_WORDS = re.compile(r"[^\W\d_]+")
_MIXED = 0.2  # the share of words that may hold two scripts
_MESS = 0.1  # the share of odd neighbours up to which charset-normalizer's reading is taken


class Encoding(NamedTuple):
    """How a file's bytes are read.

    Attributes:
        name: a codec of Python's.
        note: what was guessed, for the user; empty where nothing was.
    """

    name: str
    note: str = ""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked if its name ends in ``.gz``."""
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path) as unpacked:
            yield cast("IO[bytes]", unpacked)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error


def find_encoding(path: Path, given: str | None = None) -> Encoding:
    """The encoding of a text file, all of which can be decoded by it.

    Args:
        path: of the file.
        given: by the user; None infers it.

    Raises:
        ValueError: if the file is not a text in the encoding, or it cannot be inferred; names the
            file, the line and what to do.
    """
    with open_bytes(path) as file:
        head = file.read(_BLOCK)
    if given is not None:
        name = _known(given)
        if name == "utf-8":
            name = "utf-8-sig"
        _refuse_undecodable(path, name)
        return Encoding(name)
    for mark, name in _MARKS:
        if head.startswith(mark):
            _refuse_undecodable(path, name)
            return Encoding(name)
    if b"\0" in head:
        wide = _wide(head)
        if wide is None:
            raise ValueError(f"{path} is not a text: it holds NUL bytes")
        _refuse_undecodable(path, wide)
        return Encoding(wide)
    if first_undecodable(path, "utf-8") is None:
        return Encoding("utf-8")
    return _guess(path)


def first_undecodable(path: Path, encoding: str) -> tuple[int, str] | None:
    """The first line that an encoding does not fit, and its bytes in words; None if it fits all."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with open_bytes(path) as file:
        while True:
            block = file.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, "replace")
                wrong = error.object[error.start : error.end]
                return line + before.count("\n"), f"0x{wrong.hex()}"
            line += text.count("\n")
            if not block:
                return None


def decode_text(data: bytes, encoding: str | None) -> bytes:
    """A text in UTF-8 without a mark, of bytes in ``encoding`` or with a mark of their own.

    Bytes without a mark are returned as they are where no encoding is given.

    Raises:
        ValueError: if they are not in this encoding, or no UTF-8 where none is given.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            encoding = name
            break
    try:
        return data.decode(encoding or "utf-8").encode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = data[error.start : error.end].hex()
        raise ValueError(
            f"line {line}: the bytes 0x{wrong} are not {encoding or 'UTF-8'}; repair the file, or "
            "name the texts' encoding (--encoding cp1252)"
        ) from error


def _known(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        raise ValueError(
            f"there is no encoding {name!r}: utf-8, cp1252 (Western Windows), latin-1, cp1250, "
            "utf-16, shift_jis and gb18030 are some"
        ) from None


def _refuse_undecodable(path: Path, encoding: str) -> None:
    if (undecodable := first_undecodable(path, encoding)) is not None:
        line, content = undecodable
        raise ValueError(
            f"{path}, line {line}: the bytes {content} are not {encoding}; repair the file, or "
            "name its encoding (--encoding cp1252)"
        )


def _wide(head: bytes) -> str | None:
    """UTF-16 without a mark: of its two orders, the one in which line breaks are line breaks."""
    head = head[: len(head) // 2 * 2]
    for name in ("utf-16-le", "utf-16-be"):
        # An end in the middle of a pair is not a fault of the file.
        text = head.decode(name, "replace").rstrip("\ufffd")
        odd = sum(unicodedata.category(c) in ("Cn", "Cc") and c not in "\t\r\n" for c in text)
        if "\n" in text and not odd and "\ufffd" not in text:
            return name
    return None


def _guess(path: Path) -> Encoding:
    """The encoding of a file that is neither UTF-8 nor marked."""
    lines = _telling_lines(path)
    sample = b"\n".join(lines.values())
    _refuse_damaged(path, sample)
    number, line = next(iter(lines.items()))
    western = sample.decode("cp1252", "replace")
    if _is_western(western):
        return _noted(path, "cp1252", number, line)
    from charset_normalizer import from_bytes

    matches = list(from_bytes(sample, threshold=_MESS))
    if matches and _is_of_one_script(str(matches[0])):
        return _noted(path, matches[0].encoding, number, line)
    readings = {line.decode(m.encoding, "replace").strip(): m.encoding for m in matches}
    shown = [f"{name} ({excerpt(text)})" for text, name in list(readings.items())[:4]]
    guesses = f"; line {number} reads as {', '.join(shown)}" if shown else ""
    raise ValueError(
        f"{path}, line {number}: not UTF-8, and several encodings are possible{guesses}: name the "
        "right one (--encoding)"
    )


def _telling_lines(path: Path) -> dict[int, bytes]:
    lines, size = {}, 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isascii():
                lines[number] = line
                size += len(line)
                if size > _GUESSED_FROM:
                    break
    return lines


def _refuse_damaged(path: Path, sample: bytes) -> None:
    """UTF-8 with some broken characters is damaged; it is not something else."""
    text = sample.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = sum(not c.isascii() for c in text) - broken
    if whole >= broken:
        _refuse_undecodable(path, "utf-8")


def _noted(path: Path, encoding: str, number: int, line: bytes) -> Encoding:
    _refuse_undecodable(path, encoding)
    read = excerpt(line.decode(encoding, "replace").strip())
    note = f"{path.name} is not UTF-8: read as {encoding}, line {number} is {read}"
    return Encoding(encoding, f"{note} (--encoding changes that)")


def _is_of_one_script(text: str) -> bool:
    """Whether a text is in another script than Latin, and does not mix the two within words.

    Of Polish or Czech, read as Chinese, are left words like ``鄴速y``; of Russian in KOI8, read as
    Japanese, half-width kana like ``ﾇﾏﾒﾏﾄ``, in which nobody writes captions.
    """
    runs = [run for run in _WORDS.findall(text) if not run.isascii()]
    mixed = sum(any(c.isascii() for c in run) for run in runs)
    narrow = sum("\uff61" <= c <= "\uff9f" for c in text)
    if narrow > sum(c.isalpha() and not c.isascii() for c in text) / 2:
        return False
    return not _control(text) and not _is_latin(text) and mixed <= _MIXED * len(runs)


def _is_latin(text: str) -> bool:
    letters = [c for c in text if not c.isascii() and c.isalpha()]
    return sum("LATIN" in unicodedata.name(c, "") for c in letters) > len(letters) / 2


def _control(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\r\n" for c in text)


def _is_western(text: str) -> bool:
    """Whether a text could have been written so: no signs within words, no capitals at their end.

    Of other encodings, read as cp1252, are left words like ``¿ó³ty`` and ``cafŽ``.
    """
    if "\ufffd" in text or _control(text):
        return False
    for before, char, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if char.isascii() or char == "’":
            continue
        if char in _AT_THE_EDGE:
            if before.isalpha() and after.isalpha() and char not in "–—…·":
                return False
            if char in "¨´¸ˆ˜":
                return False
        elif not char.isalpha() or (char.isupper() and before.islower()):
            return False
    words = [word for word in text.split() if not word.isascii()]
    foreign = sum(sum(not c.isascii() and c.isalpha() for c in word) > len(word) / 2
                  for word in words if len(word) > 3)  # fmt: skip
    return foreign <= len(words) / 4
