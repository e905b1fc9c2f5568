"""Guards of the search page: host names, origins, sizes, and browser headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

Receive = Callable[[], Awaitable[Any]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class BodyTooLargeError(Exception):
    """More of a body has come than is allowed."""


class Headers:
    """Adds security headers to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """ASGI."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers)


class OwnPagesOnly:
    """Refuses requests under a foreign name, and those that another site's page makes.

    A page of another site may send requests here from the browser of this server's user (their
    answers are kept from it, what they do is not), and by a name of its own that points to this
    machine (DNS rebinding) it would even read the answers. Programs that are not browsers send no
    ``Origin`` and are answered.

    Args:
        app: behind this.
        hosts: names that a request may call this server by; ``*`` allows all.
    """

    def __init__(self, app: Any, hosts: Sequence[str]) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            status, message = problem
            answer = JSONResponse({"error": message}, status, headers={"connection": "close"})
            await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, scope: Any) -> tuple[int, str] | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if "*" not in self.hosts and _name(host) not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            return 400, f"this server goes by {known}; see allowed_hosts"
        site = headers.get(b"sec-fetch-site", "none").lower()
        # A link or an address that is typed may lead to the page, and to nothing else.
        opens_page = scope["method"] in ("GET", "HEAD") and scope["path"] == "/"
        if site not in ("same-origin", "none") and not opens_page:
            return 403, "pages of other sites are not answered"
        origin = headers.get(b"origin")
        if origin is not None and not opens_page and _authority(origin.lower()) != host:
            return 403, "pages of other sites are not answered"
        return None


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _authority(origin: str) -> str | None:
    """Host and port of an origin, as a Host header has them; None for ``null`` and the like."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") and parts.netloc else None


class BodyLimit:
    """Cuts bodies off, also those that do not say how long they are, and keeps their sum small.

    Args:
        app: behind this.
        limit: bytes of one body.
        together: bytes of all that are under way; beyond, requests are refused as too many.
    """

    def __init__(self, app: Any, limit: int, together: int) -> None:
        self.app = app
        self.limit = limit
        self.together = max(together, limit)
        self._under_way = 0

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.limit:
            await self._too_large(scope, receive, send)
            return
        if self._under_way >= self.together:
            answer = JSONResponse(
                {"error": "too many uploads at a time: try again"},
                status_code=503, headers={"connection": "close", "retry-after": "2"},
            )  # fmt: skip
            await answer(scope, receive, send)
            return
        received = 0

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._under_way += size
            if received > self.limit:
                raise BodyTooLargeError
            return message

        try:
            await self.app(scope, counted, send)
        except BodyTooLargeError:
            await self._too_large(scope, receive, send)
        finally:
            self._under_way -= received

    async def _too_large(self, scope: Any, receive: Receive, send: Any) -> None:
        message = f"the request is larger than {self.limit >> 20} MB"
        answer = JSONResponse({"error": message}, status_code=413, headers={"connection": "close"})
        await answer(scope, receive, send)
