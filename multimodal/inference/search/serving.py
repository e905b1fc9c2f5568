"""The process that serves the search page: deadlines for its clients, and an end in bounded time.

uvicorn by itself waits for ever for a request that is sent in part, and for a client that does not
take its answer; its own time-out covers idle connections only.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from multimodal.core.errors import UserError


class Deadlines(NamedTuple):
    """How long a client may take, in seconds, and how many there may be.

    Attributes:
        headers: until a request's headers are there, from its first byte or the connection on.
        body: until the whole request is, from then on.
        answer: in which a client that does not read takes some of its answer.
        shutdown: for requests under way, after the process was asked to end.
        connections: at a time; more are refused.
    """

    headers: float = 10.0
    body: float = 60.0
    answer: float = 30.0
    shutdown: float = 3.0
    connections: int = 512


class AddressError(UserError, OSError):
    """The address cannot be listened at."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        AddressError: if the address is in use, not this machine's, or not an address.
    """
    try:
        return socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError, TypeError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AddressError(
            f"cannot listen at host={host} port={port}: {reason}. port=0 takes any that is free"
        ) from error


class Server(uvicorn.Server):
    """Serves an ASGI application until SIGINT or SIGTERM, and ends soon after.

    Args:
        app: the application.
        deadlines: for its clients.
    """

    def __init__(self, app: Any, deadlines: Deadlines | None = None) -> None:
        self.deadlines = deadlines or Deadlines()
        super().__init__(
            uvicorn.Config(
                _quietly_cancelled(app),
                http=partial(_Protocol, self.deadlines),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_level="error",  # client errors are reported to the client
                timeout_keep_alive=5,
                timeout_graceful_shutdown=int(self.deadlines.shutdown) + 2,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves; Ctrl-C is an end like another."""
        with suppress(KeyboardInterrupt):
            super().run(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what waits for its client at once, and the rest when its time is over."""
        for connection in self._connections():
            if connection.waits_for_client():
                connection.abort()
        over = asyncio.create_task(self._end_what_is_left())
        await super().shutdown(sockets)
        over.cancel()

    def _connections(self) -> list[_Protocol]:
        connections: Any = self.server_state.connections
        return list(connections)

    async def _end_what_is_left(self) -> None:
        await asyncio.sleep(self.deadlines.shutdown)
        for connection in self._connections():
            connection.abort()
        await asyncio.sleep(0.1)  # now no answer is expected of them
        for task in list(self.server_state.tasks):
            task.cancel()


def _quietly_cancelled(app: Any) -> Any:
    """The application, whose requests end without a traceback where the server ends."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return wrapped


class _Protocol(H11Protocol):
    """One connection, with a deadline for whatever it waits for."""

    def __init__(self, deadlines: Deadlines, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadlines = deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._timed: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        # asyncio sets it on sockets of an explicit protocol only. Without it an answer's body waits
        # for the client to acknowledge its headers, 40 ms.
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._deadlines.connections:
            self._end(b"503 Service Unavailable")
            return
        self._await("headers")

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer is sent; uvicorn waits for the next request with its own time-out."""
        super().on_response_complete()
        self._look(idle=True)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it comes."""
        super().pause_writing()
        self._await("answer")

    def resume_writing(self) -> None:
        """It has taken some."""
        super().resume_writing()
        self._forget()
        self._look(idle=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._forget()
        super().connection_lost(exc)

    def waits_for_client(self) -> bool:
        """Whether nothing happens here until the client sends something."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def abort(self) -> None:
        """Ends the connection, whatever is under way."""
        self._forget()
        if self.transport is not None:
            self.transport.abort()

    def _look(self, idle: bool = False) -> None:
        """Sets the deadline for the awaited input; none where it is not the client's turn."""
        if self._timed == "answer":
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            self._await("body")
        elif state is h11.IDLE and not idle:
            self._await("headers")
        elif self._timed is not None:
            self._forget()

    def _await(self, what: str) -> None:
        """Starts a deadline, unless it is running already."""
        if self._timed == what or self.transport.is_closing():
            return
        self._forget()
        seconds: float = getattr(self._deadlines, what)
        self._timed = what
        self._timer = self.loop.call_later(seconds, self._expire)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed = None

    def _expire(self) -> None:
        started = self.cycle is not None and self.cycle.response_started
        over = self.cycle is None or self.cycle.response_complete
        if self._timed == "answer" or (started and not over):
            self.abort()
        else:
            self._end(b"408 Request Timeout")

    def _end(self, status: bytes) -> None:
        """A last answer; a client that does not take it is left."""
        self._forget()
        line = b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        self.transport.write(line)
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)
