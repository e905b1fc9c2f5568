"""What a request of the service asks for; its body is untrusted."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from multimodal.core import strict_json
from multimodal.core.strict_json import excerpt, is_text
from multimodal.data.decoding.decode import Limits
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.search.terms import MAX_TEXT, RequestError, Upload, value_of

MAX_INPUTS = 64
MAX_CLASSES = 512  # times prompts


async def body_of(request: Request, known: set[str]) -> dict[str, Any]:
    """The JSON object of a request, of no other keys than ``known``.

    Raises:
        RequestError: if it is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, "expected a body of application/json")
    try:
        text = (await request.body()).decode("utf-8")
        content = strict_json.parse(text, "the body")
    except (ValueError, RecursionError) as error:
        raise RequestError(400, str(error)[:300] or "the body is not JSON") from error
    if not isinstance(content, dict):
        raise RequestError(400, "expected a JSON object")
    for key in content:
        if key not in known:
            raise RequestError(
                400, f"unknown key {excerpt(key)}; known: {', '.join(sorted(known))}"
            )
    return content


def modality_of(body: Mapping[str, Any], takes: Sequence[str]) -> str:
    """The modality that is asked for.

    Raises:
        RequestError: if the model does not take it.
    """
    modality = body.get("modality")
    if not isinstance(modality, str) or modality not in takes:
        known = ", ".join(takes)
        raise RequestError(400, f"modality: expected one of {known}; got {excerpt(modality)}")
    return modality


def listed(body: Mapping[str, Any], key: str, most: int) -> list[Any]:
    """A list of 1 to ``most`` entries.

    Raises:
        RequestError: if it is none.
    """
    entries = body.get(key)
    if not isinstance(entries, list) or not 0 < len(entries) <= most:
        raise RequestError(400, f"{key}: expected a list of 1 to {most} entries")
    return entries


def texts(body: Mapping[str, Any], key: str, most: int) -> list[str]:
    """A list of 1 to ``most`` texts.

    Raises:
        RequestError: if it is none.
    """
    return [_text(each, key) for each in listed(body, key, most)]


def number(body: Mapping[str, Any], key: str, most: int, usual: int | None) -> int | None:
    """A whole number from 1 to ``most``.

    Raises:
        RequestError: if it is none.
    """
    value = body.get(key, usual)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RequestError(400, f"{key}: expected a number from 1 to {most}; got {excerpt(value)}")
    return value


def _text(given: Any, where: str) -> str:
    if not is_text(given) or not given.strip() or len(given) > MAX_TEXT:
        raise RequestError(400, f"{where}: a text must have from 1 to {MAX_TEXT:,} characters")
    return str(given).strip()


def decoded(
    given: Any, modality: str, transforms: Mapping[str, Transform], rate_hz: float | None,
    limits: Limits,
) -> Any:  # fmt: skip
    """One input: a text, or a file ``{name, base64}`` decoded.

    Raises:
        RequestError: if it is neither, or not of the modality.
    """
    if isinstance(transforms[modality], TextTransform):
        return _text(given, "inputs")
    if not isinstance(given, dict) or set(given) != {"name", "base64"}:
        raise RequestError(400, "inputs: expected files {name, base64} of this modality")
    name, data = given["name"], given["base64"]
    if not is_text(name) or not isinstance(data, str):
        raise RequestError(400, "inputs: name and base64 must be texts")
    try:
        content = base64.b64decode(data.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, "inputs: base64 cannot be read") from error
    entry = {"file": "it", "modality": modality}
    return value_of(entry, {"it": Upload(name, content)}, transforms, rate_hz, limits).value


def decoded_parts(
    given: Any, modalities: Sequence[str], decode: Callable[..., Any]
) -> dict[str, Any]:
    """One input of several modalities together: an object of one input of each.

    Raises:
        RequestError: if it is none, or as `decoded`.
    """
    if not isinstance(given, dict) or set(given) != {*modalities}:
        expected = ", ".join(f"{name}: ..." for name in modalities)
        raise RequestError(400, f"inputs: expected objects {{{expected}}}")
    return {name: decode(given[name], modality=name) for name in modalities}
