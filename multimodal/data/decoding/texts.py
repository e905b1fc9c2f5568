"""Texts and JSON."""

from __future__ import annotations

import json
from typing import Any

from multimodal.data.decoding.values import Request
from multimodal.data.errors import DecodeError


def decode_text(data: bytes, request: Request) -> str:
    """A text in UTF-8, without the space around it.

    Raises:
        DecodeError: if it is too large, or has no characters.
        UnicodeDecodeError: if it is not UTF-8.
    """
    request.limits.check("max_text_bytes", len(data))
    text = data.decode("utf-8").strip()
    if not text:
        raise DecodeError("empty", "the text has no characters")
    return text


def decode_json(data: bytes, request: Request) -> Any:
    """What the document holds.

    Raises:
        DecodeError: if it is too large.
        ValueError: if it is not JSON.
    """
    request.limits.check("max_text_bytes", len(data))
    return json.loads(data)
