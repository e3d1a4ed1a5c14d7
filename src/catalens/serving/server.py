"""From an app to a process that listens, and ends well.

    SIGTERM or Ctrl-C   /readyz answers 503, new pictures get 503, what was accepted is answered; then the process
                        ends with 0
    the same again      it ends at once

uvicorn does the HTTP. What it lacks is added here: the time-out of a client that never finishes its headers, a limit
of connections that says when to come back, and the time between the signal and the closing of the socket.
"""

import asyncio
import ipaddress
import math
import os
import socket
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from catalens.errors import RecipeError
from catalens.serving.app import Service
from catalens.serving.requests import LOOPBACK_NAMES

TOKEN = "CATALENS_TOKEN"
CONNECTIONS = 512  # at a time; each may hold a file, of which a process may often have 1,024
IDLE_SECONDS = 10.0  # for the headers of a request to come, and between two requests
BACKLOG = 512


def open_socket(host: str, port: int) -> socket.socket:
    """Listen; port 0 takes a free one. RecipeError where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise RecipeError(f"--host {host} --port {port}: {error.strerror or error}: choose another") from error


def address_of(listening: socket.socket) -> str:
    """Write the URL of a socket that listens."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def read_token(path: Path | None) -> str | None:
    """Read the token from a file, else from CATALENS_TOKEN, else None; RecipeError where that is none."""
    source, token = (TOKEN, os.environ.get(TOKEN)) if path is None else (f"--token-file {path}", None)
    try:
        token = path.read_text(encoding="utf-8").strip() if path else token
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: give a file with one line of text") from error
    if token is not None and not (len(token) >= 8 and token.isascii() and token.isprintable() and " " not in token):
        raise RecipeError(f"{source} holds no token: give at least 8 printable ASCII characters without spaces")
    return token


def names_for(host: str, token: str | None) -> tuple[str, ...]:
    """List the names of a server bound to `host`; RecipeError where others could reach it without a token."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if loopback:
        return (*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host)
    if token is None:
        raise RecipeError(f"--host {host} is open to others: give --token-file, or {TOKEN} in the environment")
    return ("*",)


def make_server(app: FastAPI) -> uvicorn.Server:
    """Make a uvicorn server for the app of `create_app`."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word on who asks is taken
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
        """Tell uvicorn to end once all that was accepted is answered."""
        return await super().on_tick(counter) or (self._service.draining and not self._service.in_flight)


class _Impatient(H11Protocol):
    """Closes a connection whose next request does not have all its headers in time, and refuses one too many."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:  # uvicorn's own limit does not say when to come back
            come_back = {"Retry-After": "1", "Connection": "close"}
            self.app = JSONResponse({"detail": "too many connections: come back"}, 503, come_back)
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
