"""A query's terms, from an untrusted form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect, Request

from multimodal.core import strict_json
from multimodal.core.strict_json import excerpt, is_text
from multimodal.data.decoding.decode import Limits
from multimodal.data.errors import BadSampleError
from multimodal.inference.search.guard import BodyTooLargeError
from multimodal.inference.search.items import ARRAYS, MODALITIES, extension, from_bytes
from multimodal.inference.search.query import QueryTerm

MAX_TERMS = 8
MAX_RESULTS = 50
MAX_TEXT = 2000
_FILE_NAME = 80  # characters of one that are shown


class RequestError(Exception):
    """A request that is answered with an error status and message."""

    def __init__(self, status: int, message: str) -> None:
        # A name that was sent may hold what no answer can be encoded with.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.status = status
        self.message = message


class Upload(NamedTuple):
    """A file of a form: its name and content."""

    name: str
    data: bytes


class Asked(NamedTuple):
    """A form, read: the terms as they were given, the files beside them, the number of results."""

    terms: list[dict[str, Any]]
    files: dict[str, Upload]
    k: int


async def read_form(request: Request) -> Asked:
    """What a request asks for; nothing in it is decoded yet.

    Raises:
        RequestError: if it is not a form, or lacks what a query has.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(400, "expected a form (multipart/form-data) with the field 'terms'")
    try:
        async with request.form(max_files=MAX_TERMS, max_fields=4) as form:
            files = {
                name: Upload(part.filename or "", await part.read())
                for name, part in form.multi_items()
                if not isinstance(part, str)
            }
            return Asked(_terms(form), files, _number(form))
    except (RequestError, BodyTooLargeError, ClientDisconnect):
        raise
    except Exception as error:  # of damaged forms, the parsers raise all sorts of errors
        detail = str(getattr(error, "message", "")) or type(error).__name__
        raise RequestError(400, f"this is not a form that can be read: {detail[:200]}") from error


def _terms(form: FormData) -> list[dict[str, Any]]:
    asked = form.get("terms")
    if not isinstance(asked, str):
        raise RequestError(400, "the form has no field 'terms'")
    try:
        listed = strict_json.parse(asked, "the field 'terms'")
    except ValueError as error:
        raise RequestError(400, str(error)) from error
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TERMS:
        raise RequestError(400, f"a query has from 1 to {MAX_TERMS} terms")
    if not all(isinstance(entry, dict) for entry in listed):
        raise RequestError(400, "every term must be an object")
    return listed


def _number(form: FormData) -> int:
    number = form.get("k", "8")
    plain = isinstance(number, str) and re.fullmatch(r"[0-9]{1,4}", number)
    if plain and 0 < (k := int(str(number))) <= MAX_RESULTS:
        return k
    raise RequestError(
        400, f"k must be a number from 1 to {MAX_RESULTS}, got {excerpt(number, 20)}"
    )


def weight_of(entry: Mapping[str, Any]) -> float:
    """A term's weight.

    Raises:
        RequestError: if it is not a number that a query can have.
    """
    weight = entry.get("weight", 1)
    good = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not good or not 0 < abs(weight) <= 100:
        raise RequestError(400, "a weight must be a number from -100 to 100, and not 0")
    return float(weight)


def row_of(entry: Mapping[str, Any], count: int) -> int:
    """The row that a term names, of ``count``.

    Raises:
        RequestError: if there is no such row.
    """
    row = entry["row"]
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < count:
        raise RequestError(400, f"the index has no row {excerpt(row)}")
    return row


def value_of(
    entry: Mapping[str, Any],
    files: Mapping[str, Upload],
    modalities: Mapping[str, Any],
    rate_hz: float | None,
    limits: Limits,
) -> QueryTerm:
    """A term's text, or its file decoded.

    Args:
        entry: the term.
        files: those of the form.
        modalities: that the model takes.
        rate_hz: of arrays that are signals.
        limits: sizes that are decoded.

    Raises:
        RequestError: if it has neither, or the file cannot be read.
    """
    weight = weight_of(entry)
    if "text" in entry:
        text = entry["text"]
        if not is_text(text) or not text.strip() or len(text) > MAX_TEXT:
            raise RequestError(400, f"a text must have from 1 to {MAX_TEXT:,} characters")
        return QueryTerm("text", text.strip(), weight)
    file = entry.get("file")
    if not isinstance(file, str) or file not in files:
        raise RequestError(400, "every term needs a 'text', a 'row', or a 'file' that is uploaded")
    name, data = files[file]
    shown = name[:_FILE_NAME]
    if any(mark in name for mark in "/\\\0") or name in ("", ".", ".."):
        raise RequestError(400, f"{shown!r} is a path or nothing; a file needs a plain name")
    modality = entry.get("modality")
    if modality is not None and not (isinstance(modality, str) and modality in modalities):
        raise RequestError(400, f"the model does not take {excerpt(modality)}")
    _check_kind(shown, extension(name), modality)
    try:
        return QueryTerm(*from_bytes(name, data, modality, rate_hz, limits), weight)
    except BadSampleError as error:
        status = 415 if error.reason == "unsupported" else 422
        detail = f"{shown}: cannot be read as .{extension(name)[:12]}: {error}"
        raise RequestError(status, detail) from error


def _check_kind(name: str, kind: str, modality: str | None) -> None:
    """Refuses a file that can never be of the modality that a term names."""
    own = MODALITIES.get(kind, "array" if kind in ARRAYS else modality)
    fixed = {"text", "audio", "image"}
    never = fixed if own == "text" else {"text"} if own == "array" else fixed - {own}
    if modality is not None and modality != own and (own == "text" or modality in never):
        raise RequestError(
            415, f"{name}: a file of type .{kind[:12]} is not of modality {modality!r}"
        )
