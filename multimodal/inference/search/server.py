"""The search page: texts, images and sounds in, the nearest rows of a table out.

Requests are untrusted. Bodies are cut off at a limit while they arrive; uploads are decoded from
memory by the allowlist of `data.decode`, their names only select the decoder; what is shown comes
from the table that the program was started with, by row number. No path of a request is ever
opened, and nothing is written.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from multimodal.data.decoding.decode import Limits
from multimodal.data.errors import BadSampleError
from multimodal.inference.embedder import Embedder
from multimodal.inference.search import query
from multimodal.inference.search.guard import BodyLimit, Headers, OwnPagesOnly
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import ARRAYS, MODALITIES
from multimodal.inference.search.table import Table, Vectors
from multimodal.inference.search.terms import (
    Asked,
    RequestError,
    read_form,
    row_of,
    value_of,
    weight_of,
)

MAX_BODY = 16 << 20
BODIES_TOGETHER = 16  # as many of the largest at a time
LIMITS = Limits(
    max_bytes=MAX_BODY, max_pixels=1 << 24, max_audio_values=5_760_000, max_array_bytes=MAX_BODY,
    max_text_bytes=1 << 14,
)  # fmt: skip
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def make_app(
    embedder: Embedder,
    table: Table,
    index: Index,
    title: str,
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    max_body: int = MAX_BODY,
    rate_hz: float | None = None,
    more: Sequence[Route] = (),
) -> Starlette:
    """The application.

    Args:
        embedder: of the model that made the table.
        table: to search.
        index: over its rows.
        title: shown on the page.
        hosts: names that a request may call this server by (others are refused, so that foreign
            pages cannot reach it by DNS rebinding).
        max_body: of a request, in bytes.
        rate_hz: of arrays that are signals.
        more: routes beside the page, behind the same guards (`service.api`).
    """
    search = _Search(embedder, table, index, rate_hz)
    routes = [Route(path, _static(name, kind)) for path, (name, kind) in _PAGE.items()]
    facts = {
        "title": title,
        "rows": index.modalities,
        "takes": sorted(set(embedder.model.towers) & set(embedder.transforms)),
        "types": sorted({*MODALITIES, *ARRAYS}),
    }

    async def about(request: Request) -> Response:
        return JSONResponse(facts)

    async def media(request: Request) -> Response:
        number = request.path_params["row"]
        row = int(number) if re.fullmatch(r"[0-9]{1,18}", number) else len(table.rows)
        if row >= len(table.rows) or not table.rows[row].preview:
            return JSONResponse({"error": "there is no such preview"}, status_code=404)
        shown = table.rows[row]
        headers = {"cache-control": "max-age=3600"}
        return Response(shown.preview, media_type=shown.preview_type, headers=headers)

    return Starlette(
        routes=[
            *routes,
            Route("/about", about),
            Route("/media/{row}", media),
            Route("/search", search.answer, methods=["POST"]),
            *more,
        ],
        middleware=[
            Middleware(Headers),
            Middleware(OwnPagesOnly, hosts=list(hosts)),
            Middleware(BodyLimit, limit=max_body, together=BODIES_TOGETHER * max_body),
        ],
    )


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (
        resources.files("multimodal.inference.search").joinpath("page").joinpath(name).read_bytes()
    )

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
            asked = await read_form(request)
            return JSONResponse(await run_in_threadpool(self._search, asked))
        except RequestError as error:
            return JSONResponse({"error": error.message}, status_code=error.status)
        except ClientDisconnect:
            return Response(status_code=400)  # the client is gone

    def _search(self, asked: Asked) -> dict[str, Any]:
        hits = self.index.search(self._embedded(asked), asked.k)
        return {
            "results": {
                modality: [self._shown(each.row, each.score) for each in nearest]
                for modality, nearest in hits.items()
            }
        }

    def _embedded(self, asked: Asked) -> Vectors:
        terms: list[query.QueryTerm] = []
        rows: list[tuple[Vectors, float]] = []
        for entry in asked.terms:
            if "row" in entry:
                row = row_of(entry, len(self.table.rows))
                rows.append((self.index.vectors[row], weight_of(entry)))
            else:
                known = self.embedder.transforms
                terms.append(value_of(entry, asked.files, known, self.rate_hz, LIMITS))
        try:
            with self._one_at_a_time:
                embedded = query.embed(self.embedder, terms, rows)
        except (BadSampleError, ValueError) as error:
            raise RequestError(422, str(error)) from error
        except Exception as error:
            # A file that is called what it is not breaks a transform or a tower in its own way.
            if not any("modality" in entry for entry in asked.terms):
                raise
            raise RequestError(
                422, f"a file is not of its modality: {type(error).__name__}"
            ) from error
        if not np.isfinite(embedded).all():
            raise RequestError(422, "the query has no embedding: it holds NaN or infinity")
        return embedded

    def _shown(self, number: int, score: float) -> dict[str, Any]:
        row = self.table.rows[number]
        shown = {"row": number, "score": score, "name": row.name, "key": row.key}
        shown["type"] = row.preview_type if row.preview else ""
        if row.preview_type == "text/plain":
            shown["text"] = row.preview.decode("utf-8", "replace")
        return shown
