"""The search page: words, pictures and sounds in, the nearest rows of a table out.

Requests are untrusted. Bodies are cut off at a limit while they arrive; uploads are decoded from
memory by the allowlist of `data.decode`, their names tell no more than the decoder; what is shown
comes from the table that the program was started with, by row number. No path of a request is
ever opened, and nothing is written.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from multimodal.data.decode import Limits
from multimodal.data.errors import BadSample
from multimodal.embedding import Embedder
from multimodal.search import query
from multimodal.search.index import Index
from multimodal.search.items import ARRAYS, MODALITIES, extension, from_bytes
from multimodal.search.table import Table, Vectors

MAX_BODY = 16 << 20
MAX_TERMS = 8
MAX_RESULTS = 50
LIMITS = Limits(
    max_bytes=MAX_BODY, max_pixels=1 << 24, max_audio_values=5_760_000, max_array_bytes=MAX_BODY,
    max_text_bytes=1 << 14,
)  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

Receive = Callable[[], Awaitable[Any]]


class Refused(Exception):
    """A request that is answered with an error: status and a sentence for its sender."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status
        self.told = told


class _TooLarge(Exception):
    """More of a body has come than is allowed."""


class BodyLimit:
    """Cuts bodies off at ``limit`` bytes, also those that do not say how long they are."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = f"the request is larger than {self.limit >> 20} MB"
        refusal = JSONResponse({"error": told}, status_code=413, headers={"connection": "close"})
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise _TooLarge
            return message

        try:
            await self.app(scope, counted, send)
        except _TooLarge:
            await refusal(scope, receive, send)


def make_app(
    embedder: Embedder,
    table: Table,
    index: Index,
    title: str,
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    max_body: int = MAX_BODY,
    rate_hz: float | None = None,
) -> Starlette:
    """The application.

    Args:
        embedder: of the model that made the table.
        table: what is searched.
        index: over its rows.
        title: shown on the page.
        hosts: names that a request may call this server by (others are refused, so that no foreign
            page can reach it under a name of its own).
        max_body: of a request, in bytes.
        rate_hz: of arrays that are signals.
    """
    search = _Search(embedder, table, index, rate_hz)
    routes = [Route(path, _static(name, kind)) for path, (name, kind) in _PAGE.items()]
    about = {
        "title": title,
        "rows": index.modalities,
        "takes": sorted(set(embedder.model.towers) & set(embedder.transforms)),
        "types": sorted({*MODALITIES, *ARRAYS}),
    }

    async def tell(request: Request) -> Response:
        return JSONResponse(about)

    async def media(request: Request) -> Response:
        row = int(request.path_params["row"])
        if row >= len(table.rows) or not table.rows[row].preview:
            return JSONResponse({"error": f"row {row} has no preview"}, status_code=404)
        shown = table.rows[row]
        headers = {"cache-control": "max-age=3600"}
        return Response(shown.preview, media_type=shown.preview_type, headers=headers)

    return Starlette(
        routes=[
            *routes,
            Route("/about", tell),
            Route("/media/{row:int}", media),
            Route("/search", search.answer, methods=["POST"]),
        ],
        middleware=[
            Middleware(_Headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
            Middleware(BodyLimit, limit=max_body),
        ],
    )


class _Headers:
    """Adds to every response what keeps a browser from doing more than this page needs."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = resources.files("multimodal.search").joinpath("page").joinpath(name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


class _Search:
    """``POST /search``: terms as JSON in the field ``terms``, the files they name beside it."""

    def __init__(
        self, embedder: Embedder, table: Table, index: Index, rate_hz: float | None
    ) -> None:
        self.embedder = embedder
        self.table = table
        self.index = index
        self.rate_hz = rate_hz
        self._one_at_a_time = threading.Lock()

    async def answer(self, request: Request) -> Response:
        """The nearest rows as JSON, or an error with its status."""
        try:
            terms, rows, k = await self._read(request)
            return JSONResponse(await run_in_threadpool(self._search, terms, rows, k))
        except Refused as refused:
            return JSONResponse({"error": refused.told}, status_code=refused.status)

    async def _read(
        self, request: Request
    ) -> tuple[list[query.Term], list[tuple[Vectors, float]], int]:
        try:
            async with request.form(max_files=MAX_TERMS, max_fields=4) as form:
                asked = form.get("terms")
                if not isinstance(asked, str):
                    raise Refused(400, "the form has no field 'terms'")
                files = {
                    name: (part.filename or "", await part.read())
                    for name, part in form.multi_items()
                    if not isinstance(part, str)
                }
                number = form.get("k", "8")
        except MultiPartException as error:
            raise Refused(400, f"this is no form that can be read: {error.message}") from error
        if (
            not isinstance(number, str)
            or not number.isdigit()
            or not 0 < int(number) <= MAX_RESULTS
        ):
            raise Refused(400, f"k must be a number from 1 to {MAX_RESULTS}")
        terms: list[query.Term] = []
        rows: list[tuple[Vectors, float]] = []
        for entry in _listed(asked):
            weight = entry.get("weight", 1)
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < abs(
                weight
            ) <= 100:  # fmt: skip
                raise Refused(400, "a weight must be a number from -100 to 100, and not 0")
            if "row" in entry:
                rows.append((self._row(entry["row"]), float(weight)))
            else:
                modality, value = await run_in_threadpool(self._value, entry, files)
                terms.append(query.Term(modality, value, float(weight)))
        return terms, rows, int(number)

    def _row(self, row: Any) -> Vectors:
        if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < len(self.table.rows):
            raise Refused(400, f"the index has no row {row!r}")
        found: Vectors = self.index.vectors[row]
        return found

    def _value(self, entry: dict[str, Any], files: dict[str, tuple[str, bytes]]) -> tuple[str, Any]:
        if isinstance(text := entry.get("text"), str):
            if not text.strip() or len(text) > 2000:
                raise Refused(400, "a text must have from 1 to 2,000 characters")
            return "text", text.strip()
        if entry.get("file") not in files:
            raise Refused(400, "every term needs a 'text', a 'row', or a 'file' that is uploaded")
        name, data = files[entry["file"]]
        if any(mark in name for mark in "/\\\0") or name in ("", ".", ".."):
            raise Refused(400, f"{name[:80]!r} is a path or nothing; a file needs a plain name")
        modality = entry.get("modality")
        if modality is not None and modality not in self.embedder.transforms:
            raise Refused(400, f"the model does not take {str(modality)[:80]!r}")
        try:
            return from_bytes(name, data, modality, self.rate_hz, LIMITS)
        except BadSample as error:
            status = 415 if error.reason == "unsupported" else 422
            told = f"{name[:80]}: cannot be read as .{extension(name)[:12]}: {error}"
            raise Refused(status, told) from error

    def _search(
        self, terms: list[query.Term], rows: list[tuple[Vectors, float]], k: int
    ) -> dict[str, Any]:
        try:
            with self._one_at_a_time:
                found = self.index.search(query.embed(self.embedder, terms, rows), k)
        except (BadSample, ValueError) as error:
            raise Refused(422, str(error)) from error
        return {
            "results": {
                modality: [self._shown(each.row, each.score) for each in nearest]
                for modality, nearest in found.items()
            }
        }

    def _shown(self, number: int, score: float) -> dict[str, Any]:
        row = self.table.rows[number]
        shown = {"row": number, "score": score, "name": row.name, "key": row.key}
        shown["type"] = row.preview_type if row.preview else ""
        if row.preview_type == "text/plain":
            shown["text"] = row.preview.decode()
        return shown


def _listed(asked: str) -> list[dict[str, Any]]:
    try:
        listed = json.loads(asked)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(400, "'terms' is no JSON") from error
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TERMS:
        raise Refused(400, f"a query has from 1 to {MAX_TERMS} terms")
    if not all(isinstance(entry, dict) for entry in listed):
        raise Refused(400, "every term must be an object")
    return listed


def check_fit(embedder: Embedder, table: Table) -> None:
    """Refuses a table that another model made.

    Raises:
        ValueError: if the dimensions differ.
    """
    dim = table.vectors.shape[1]
    if dim != embedder.model.embed_dim:
        raise ValueError(
            f"the table holds embeddings of {dim} dimensions, the checkpoint's model makes "
            f"{embedder.model.embed_dim}: the table is of another model"
        )
    if not np.isfinite(table.vectors).all():
        raise ValueError("the table holds NaN or infinity")
