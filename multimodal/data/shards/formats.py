"""What files hold, by their extensions and by their first bytes. A new format is one line."""

from __future__ import annotations

import re
from typing import NamedTuple

KINDS = ("image", "video", "depth", "audio", "imu", "array", "text", "json")


class Format(NamedTuple):
    """A file format.

    Attributes:
        kind: what it holds, one of ``KINDS``, unless the member's name or the manifest says more.
        decoder: which of those in ``multimodal.data.decoding.decode`` reads it.
    """

    kind: str
    decoder: str


_PICTURE = Format("image", "picture")
_SOUND = Format("audio", "sound")
_VIDEO = Format("video", "video")

# Extension, in lower case -> its format.
FORMATS: dict[str, Format] = {
    **dict.fromkeys(("png", "jpg", "jpeg", "webp", "gif", "bmp", "avif", "jp2", "j2k"), _PICTURE),
    **dict.fromkeys(("tif", "tiff"), _PICTURE),
    **dict.fromkeys(("heic", "heif", "hif"), _PICTURE),
    **dict.fromkeys(("dcm", "dicom"), Format("image", "dicom")),
    **dict.fromkeys(("ogg", "oga", "opus", "wav", "flac", "mp3", "aiff", "aif", "m4a"), _SOUND),
    **dict.fromkeys(("mp4", "m4v", "webm", "mkv", "avi", "mov"), _VIDEO),
    "npy": Format("array", "array"),
    "ply": Format("array", "points"),
    "txt": Format("text", "text"),
    "json": Format("json", "json"),
}
BY_EXTENSION = {extension: entry.kind for extension, entry in FORMATS.items()}
_WORDS = ("text", "json")
# The first bytes -> extension, for content without a name.
_MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "webp"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL), "bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "tif"),
    (re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n"), "jp2"),
    (re.compile(rb"\xff\x4f\xff\x51"), "j2k"),
    (re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL), "avif"),
    (re.compile(rb".{4}ftyp(hei[cxms]|hevc|mif1)", re.DOTALL), "heic"),
    (re.compile(rb".{128}DICM", re.DOTALL), "dcm"),
    (re.compile(rb"ply\r?\n"), "ply"),
    (re.compile(rb"(RIFF|RF64).{4}WAVE", re.DOTALL), "wav"),
    (re.compile(rb"FORM.{4}AIF[FC]", re.DOTALL), "aiff"),
    (re.compile(rb"RIFF.{4}AVI ", re.DOTALL), "avi"),
    (re.compile(rb"fLaC"), "flac"),
    (re.compile(rb"OggS"), "ogg"),
    (re.compile(rb"ID3|\xff[\xfb\xf3\xf2]"), "mp3"),
    (re.compile(rb".{4}ftypqt", re.DOTALL), "mov"),
    (re.compile(rb".{4}ftypM4[AB]", re.DOTALL), "m4a"),
    (re.compile(rb".{4}ftyp(isom|iso\d|mp4\d|avc1|M4V)", re.DOTALL), "mp4"),
    (re.compile(rb"\x1a\x45\xdf\xa3.{0,64}webm", re.DOTALL), "webm"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "mkv"),
    (re.compile(rb"\x93NUMPY"), "npy"),
)


def kind_in_name(member: str) -> str | None:
    """What a member holds by its first part (``depth.png``) or extension; None if neither says."""
    first, _, rest = member.partition(".")
    if rest and first in KINDS:
        return first
    return BY_EXTENSION.get(extension_of(f"x.{member}"))


def extension_of(name: str) -> str:
    """What follows the last dot of a name, in lower case; empty where there is none."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return extension.lower() if dot and stem else ""


def is_media_name(name: str) -> bool:
    """Whether a text names a file that holds pictures, sounds or the like, by its extension."""
    if len(name) > 4096 or "\n" in name:
        return False
    if "://" in name:
        name = re.split("[?#]", name, maxsplit=1)[0]
    return BY_EXTENSION.get(extension_of(name.strip()), "text") not in _WORDS


def is_media(extension: str) -> bool:
    """Whether a file of this extension holds pictures, sounds or the like: no text, no JSON."""
    return BY_EXTENSION.get(extension, "text") not in _WORDS


def sniff(data: bytes) -> str | None:
    """The extension of what these bytes are; None if they are nothing that is known."""
    return next((extension for magic, extension in _MAGIC if magic.match(data)), None)
