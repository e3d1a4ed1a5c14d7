"""From an app to a process that listens, and ends well.

    SIGTERM or Ctrl-C   /readyz answers 503, new pictures get 503, what was accepted is answered; then the process
                        ends with 0
    the same again      it ends at once

uvicorn does the HTTP. What it lacks is added here: the time-out of a client that never finishes its headers, and the
time between the signal and the closing of the socket.
"""

import asyncio
import math
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from catalens.errors import RecipeError
from catalens.serving.app import Service

CONNECTIONS = 512
"""At a time; uvicorn answers more with 503. Each may hold a file, of which a process may often have 1,024."""
IDLE_SECONDS = 10.0
"""For the headers of a request to come, and between two requests."""
BACKLOG = 512


def open_socket(host: str, port: int) -> socket.socket:
    """Listen; port 0 takes a free one. RecipeError where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise RecipeError(f"--host {host} --port {port}: {error.strerror or error}: choose another") from error


def address_of(listening: socket.socket) -> str:
    """The URL of what listens."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def make_server(app: FastAPI) -> uvicorn.Server:
    """A uvicorn server for the app of `create_app`."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word on who asks is taken
        limit_concurrency=CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(min(IDLE_SECONDS, app.state.service.settings.timeout)),
        timeout_graceful_shutdown=5,  # what was accepted has been answered by then
    )
    return _Server(config, app.state.service)


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Serve until a signal."""
    make_server(app).run([listening])


class _Server(uvicorn.Server):
    """Answers what it accepted before it closes its socket."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end."""
        return await super().on_tick(counter) or (self._service.draining and not self._service.in_flight)


class _Impatient(H11Protocol):
    """Closes a connection whose next request does not have all its headers in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.timeout_keep_alive, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
