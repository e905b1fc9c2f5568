"""What a URL leads to: through fsspec, bounded in size and time, and tried again."""

from __future__ import annotations

import time
from typing import Any

from multimodal.core.errors import MissingExtraError
from multimodal.core.extras import extra_needed
from multimodal.data.errors import BadSampleError
from multimodal.data.shards.remote import unknown_scheme

_ATTEMPTS = 3
_PAUSE = 0.5  # seconds before the second attempt, twice as long before the third
_TIMEOUT = 60.0  # seconds for one file
_WEB = ("http", "https")
_LONGEST = 4096
_NO_SUCH = (400, 401, 403, 404, 405, 406, 410, 451)  # answers that stay


def is_url(text: str) -> bool:
    """Whether a text is an address that can be fetched: ``https://...``, ``s3://...``."""
    scheme, separator, rest = text.partition("://")
    return bool(separator and rest) and scheme.isidentifier() and len(text) <= _LONGEST


def fetch(url: str, most: int) -> bytes:
    """The content of a URL.

    Raises:
        BadSampleError: with the reason ``unreachable`` if it is not there, or not in time;
            ``too_large`` if it has more than ``most`` bytes; ``bad_url`` if it is none.
    """
    scheme = url.partition("://")[0]
    chained = "::" in url and scheme not in _WEB
    if chained or scheme in ("file", "local") or unknown_scheme(url):
        raise BadSampleError("bad_url", f"{url} is not an address that is fetched")
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            data = _read(url, most + 1)
            break
        except (BadSampleError, MissingExtraError):
            raise
        except FileNotFoundError as error:
            raise BadSampleError("unreachable", f"{url} is not there") from error
        except Exception as error:  # every file system has its own errors
            status = getattr(error, "status", None)
            if attempt == _ATTEMPTS - 1 or status in _NO_SUCH:
                words = f"status {status}" if status else f"{type(error).__name__}: {error}"
                tries = "" if status in _NO_SUCH else f", {_ATTEMPTS} times"
                raise BadSampleError("unreachable", f"{url}: {words}{tries}") from error
    if len(data) > most:
        raise BadSampleError("too_large", f"{url} has more than max_bytes={most}")
    return data


def _read(url: str, limit: int) -> bytes:
    with _open(url) as file:
        parts, left = [], limit
        while left and (part := file.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def _open(url: str) -> Any:
    scheme = url.partition("://")[0]
    with extra_needed("stream", f"fetching from {scheme}://"):
        if scheme not in _WEB:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(url)
            return filesystem.open(path, "rb")
        import aiohttp
        import fsspec

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        filesystem = fsspec.filesystem(scheme, client_kwargs={"timeout": timeout})
    # A size is given, as servers answer the question for it wrongly, or not at all; it is not used.
    return filesystem.open(url, "rb", block_size=0, size=1)
