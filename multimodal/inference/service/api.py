"""The endpoints: embed, search, zero-shot; health, metrics, and what they take.

Bodies are cut off and hosts are checked by the search page's guards; uploads are decoded from
memory by the same allowlist. Nothing is written, and no path of a request is opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from torch.nn import functional

from multimodal.data.decoding.decode import Limits
from multimodal.data.errors import BadSampleError
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.embedder import Embedder
from multimodal.inference.search.index import Index
from multimodal.inference.search.table import Table
from multimodal.inference.search.terms import MAX_RESULTS, RequestError
from multimodal.inference.service import openapi, requests
from multimodal.inference.service.batching import Batcher, Batching, BusyError, Prepared
from multimodal.inference.service.metrics import Metrics

Answer = Callable[[Request], Awaitable[dict[str, Any]]]
KEPT_HEADS = 64  # zero-shot heads whose classes are not embedded again


class Service:
    """A model's endpoints.

    Args:
        embedder: of the model.
        table: that is searched, with its index.
        index: see above.
        title: of the service.
        limits: sizes that are decoded.
        batching: how inputs of requests are joined.
        rate_hz: of arrays that are signals.
    """

    def __init__(
        self,
        embedder: Embedder,
        table: Table,
        index: Index,
        title: str,
        limits: Limits,
        batching: Batching,
        rate_hz: float | None = None,
    ) -> None:
        self.embedder, self.table, self.index = embedder, table, index
        self.title, self.limits, self.rate_hz = title, limits, rate_hz
        self.metrics = Metrics(lambda: len(self.batcher))
        self.batcher = Batcher(self._run, batching, self.metrics.batch)
        self.transforms = {
            name: each for name, each in embedder.transforms.items() if not embedder.missing([name])
        }
        self.joint = self.embedder.joined()
        self._heads: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}

    def routes(self) -> list[Route]:
        """Of the application."""
        most = {
            "inputs": requests.MAX_INPUTS, "classes": requests.MAX_CLASSES, "k": MAX_RESULTS
        }  # fmt: skip
        takes = [*self.transforms, *self.joint]
        spec = openapi.specification(self.title, takes, most)
        shown = openapi.page(spec)

        async def health(request: Request) -> Response:
            about = {"status": "ok", "waiting": len(self.batcher), "takes": takes}
            return JSONResponse(about)

        async def metrics(request: Request) -> Response:
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

        async def document(request: Request) -> Response:
            return JSONResponse(spec)

        async def docs(request: Request) -> Response:
            return HTMLResponse(shown)

        endpoints = {"embed": self.embed, "search": self.search, "zero_shot": self.zero_shot}
        return [
            *(
                Route(f"/api/{name}", partial(self._answer, name, answer), methods=["POST"])
                for name, answer in endpoints.items()
            ),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", document),
            Route("/docs", docs),
        ]

    async def _answer(self, name: str, answer: Answer, request: Request) -> Response:
        start, headers = time.perf_counter(), {}
        try:
            status, content = 200, await answer(request)
        except RequestError as error:
            status, content = error.status, {"error": error.message}
        except BusyError as error:
            status, content, headers = 429, {"error": f"busy: {error}"}, {"retry-after": "1"}
        except ClientDisconnect:
            status, content = 400, {"error": "the client is gone"}
        self.metrics.request(name, status, time.perf_counter() - start)
        return JSONResponse(content, status, headers=headers)

    async def embed(self, request: Request) -> dict[str, Any]:
        """Embeddings of inputs."""
        body = await requests.body_of(request, {"modality", "inputs", "dim"})
        width = self.embedder.embed_dim
        dim = requests.number(body, "dim", width, None) or width
        rows = await self._rows(body)
        if dim < width:
            rows = functional.normalize(rows[:, :dim], dim=1)
        return {"dim": dim, "embeddings": rows.tolist()}

    async def search(self, request: Request) -> dict[str, Any]:
        """The nearest rows of the table, for each input."""
        body = await requests.body_of(request, {"modality", "inputs", "k"})
        k = requests.number(body, "k", MAX_RESULTS, 8) or 8
        rows = await self._rows(body)
        return {"results": await run_in_threadpool(self._nearest, rows, k)}

    def _nearest(self, rows: Tensor, k: int) -> list[dict[str, Any]]:
        nearest = []
        for query in rows.numpy():
            hits = self.index.search(query, k)
            nearest.append(
                {name: [self._shown(*each) for each in hit] for name, hit in hits.items()}
            )
        return nearest

    def _shown(self, row: int, score: float) -> dict[str, Any]:
        own = self.table.rows[row]
        return {"row": row, "score": score, "name": own.name, "key": own.key}

    async def zero_shot(self, request: Request) -> dict[str, Any]:
        """Probabilities of classes, for each input."""
        body = await requests.body_of(request, {"modality", "inputs", "classes", "prompts"})
        if "text" not in self.transforms:
            raise RequestError(422, "zero_shot needs a tower for 'text', and the model has none")
        classes = requests.texts(body, "classes", requests.MAX_CLASSES)
        prompts = requests.texts({"prompts": ["{}"], **body}, "prompts", requests.MAX_CLASSES)
        if not all("{}" in prompt for prompt in prompts):
            raise RequestError(400, "prompts: every one needs {} for a class's name")
        if len(classes) * len(prompts) > requests.MAX_CLASSES:
            most = requests.MAX_CLASSES
            raise RequestError(400, f"classes times prompts: at most {most}")
        rows = await self._rows(body)
        head = await self._head(tuple(classes), tuple(prompts))
        known, modality = self.embedder.temperatures, str(body["modality"])
        usual = max(known.values(), default=0.07)
        temperature = known.get(frozenset((modality, "text"))) or usual
        shares = (functional.normalize(rows, dim=1) @ head.T / temperature).softmax(dim=1)
        return {"classes": classes, "probabilities": shares.tolist()}

    async def _head(self, classes: tuple[str, ...], prompts: tuple[str, ...]) -> Tensor:
        if (classes, prompts) not in self._heads:
            texts = [prompt.replace("{}", name) for name in classes for prompt in prompts]
            rows = await self._embedded("text", texts)
            means = functional.normalize(rows, dim=1).reshape(len(classes), len(prompts), -1)
            while len(self._heads) >= KEPT_HEADS:
                self._heads.pop(next(iter(self._heads)))
            self._heads[classes, prompts] = functional.normalize(means.mean(dim=1), dim=1)
        return self._heads[classes, prompts]

    async def _rows(self, body: dict[str, Any]) -> Tensor:
        modality = requests.modality_of(body, [*self.transforms, *self.joint])
        given = requests.listed(body, "inputs", requests.MAX_INPUTS)
        one = partial(requests.decoded, transforms=self.transforms,
                      rate_hz=self.rate_hz, limits=self.limits)  # fmt: skip
        if modality in self.joint:
            parts = self.embedder.model.joint.parts(modality)
            together = partial(requests.decoded_parts, modalities=parts, decode=one)
            values = await run_in_threadpool(lambda: [together(each) for each in given])
            return await self._embedded(modality, values)
        read = partial(one, modality=modality)
        if isinstance(self.transforms[modality], TextTransform):  # nothing to decode
            return await self._embedded(modality, [read(each) for each in given])
        values = await run_in_threadpool(lambda: [read(each) for each in given])
        return await self._embedded(modality, values)

    async def _embedded(self, modality: str, values: Sequence[Any]) -> Tensor:
        if len(self.batcher) + len(values) > self.batcher.batching.max_waiting:
            raise BusyError(f"{len(self.batcher)} inputs are waiting")  # before they are prepared
        try:
            inputs = await run_in_threadpool(self._prepared, modality, values)
            done = self.batcher.submit(modality, inputs)
            rows = torch.stack(await asyncio.gather(*map(asyncio.wrap_future, done))).float()
        except (BusyError, RequestError):
            raise
        except (BadSampleError, ValueError) as error:
            raise RequestError(422, str(error)[:300]) from error
        except Exception as error:
            # A file that is called what it is not breaks a transform or a tower in its own way.
            raise RequestError(
                422, f"an input is not of its modality: {type(error).__name__}"
            ) from error
        if not torch.isfinite(rows).all():
            raise RequestError(422, "an input has no embedding: it holds NaN or infinity")
        return rows

    def _prepared(self, modality: str, values: Sequence[Any]) -> list[Prepared]:
        if modality in self.joint:
            return [{n: self.transforms[n](v, None) for n, v in each.items()} for each in values]
        return [self.transforms[modality](value, None) for value in values]

    @torch.no_grad()
    def _run(self, modality: str, inputs: list[Any]) -> Tensor:
        if modality not in self.joint:
            return self.embedder.inputs(modality, *self.transforms[modality].collate(inputs))
        parts = self.embedder.model.joint.parts(modality)
        read = {n: self.transforms[n].collate([each[n] for each in inputs]) for n in parts}
        masks = {name: mask for name, (_, mask) in read.items() if mask is not None}
        rows = {name: given for name, (given, _) in read.items()}
        return self.embedder.joint(modality, rows, masks)
