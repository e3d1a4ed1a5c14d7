"""What the server takes and what it refuses.

    ServeSettings(queue=256, max_bytes=33_554_432, timeout=60)
      more than 256 pictures waiting               429, with Retry-After
      a body of more than 32 MB, announced or not  413
      a picture of more than 16 megapixels         413, before it is decoded; so for 128 together
      more than 512 megapixels waiting             429, with Retry-After
      a body that takes more than 60 s             408
      Host: evil.example, while on loopback        400: another site may have led its name here (DNS rebinding)
      Sec-Fetch-Site: cross-site                   403: a page elsewhere asks in its reader's name

Every answer carries headers that keep a browser from guessing types, from framing, and from keeping what it saw.
"""

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

from fastapi import HTTPException
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalens.catalog.pictures import MAX_PIXELS
from catalens.config import Frozen
from catalens.errors import RecipeError

MOST_PICTURES = 64
"""In one request."""
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
GROUP = 8
"""Pictures that the page sends in one request; so many of the largest size are always taken."""
REQUEST_PIXELS = 128_000_000
"""In one request, together: a second or so of decoding."""
REQUESTS_QUEUED = 4
"""Requests of that size that may wait together."""
BODIES_HELD = 8
"""Bodies of the largest size that may be in memory together."""
LINGER = 2.0
"""Seconds in which what a refused client still sends is read and thrown away, so that it gets to read the answer."""
TOKEN = "CATALENS_TOKEN"


class ServeSettings(Frozen):
    """Limits of the server."""

    batch_size: int = Field(default=16, ge=1)
    """Pictures that are read together, at most."""
    queue: int = Field(default=256, ge=1)
    """Pictures that may wait for the model; more are refused with 429."""
    max_bytes: int = Field(default=32 * 2**20, ge=1024, le=2**30)
    """Largest body of a request, and all pictures of its URLs together."""
    max_pixels: int = Field(default=16_000_000, ge=1, le=MAX_PIXELS)
    """Largest picture, by its header: a larger one is refused before it is decoded."""
    timeout: float = Field(default=60.0, gt=0, le=3600)
    """Seconds that a body may take to come (else 408), and its answer after that (else 503)."""
    allow_urls: bool = False
    """Whether pictures may be named by URL; only public addresses are asked."""
    token: str | None = Field(default=None, repr=False)
    """What clients have to know."""
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    """Names by which the server may be called; `*` for any."""

    @property
    def request_pixels(self) -> int:
        """Pixels of all pictures of one request, and of those that are read together."""
        return max(REQUEST_PIXELS, GROUP * self.max_pixels)

    @property
    def queue_pixels(self) -> int:
        """Pixels of all pictures that may wait for the model; more are refused with 429."""
        return REQUESTS_QUEUED * self.request_pixels

    @property
    def most_pictures(self) -> int:
        """Pictures in one request."""
        return min(MOST_PICTURES, self.queue)


def read_token(path: Path | None) -> str | None:
    """The token from a file, else from CATALENS_TOKEN, else None; RecipeError where that is none."""
    source, token = (TOKEN, os.environ.get(TOKEN)) if path is None else (f"--token-file {path}", None)
    try:
        token = path.read_text(encoding="utf-8").strip() if path else token
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: give a file with one line of text") from error
    if token is not None and not (len(token) >= 8 and token.isascii() and token.isprintable() and " " not in token):
        raise RecipeError(f"{source} holds no token: give at least 8 printable ASCII characters without spaces")
    return token


def names_for(host: str, token: str | None) -> tuple[str, ...]:
    """Names by which a server bound to `host` may be called; RecipeError where others could reach it untold."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if loopback:
        return (*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host)
    if token is None:
        raise RecipeError(f"--host {host} is open to others: give --token-file, or {TOKEN} in the environment")
    return ("*",)


def check_caller(request: Request, settings: ServeSettings) -> None:
    """HTTPException 401 without the token, 403 for a browser that asks on behalf of another site's page."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is None and origin is not None:  # an old browser; behind a proxy the two below would differ
        site = "same-origin" if origin.partition("://")[2] == request.headers.get("host") else "cross-site"
    if site not in (None, "none", "same-origin"):
        raise HTTPException(403, "asked by another site's page: open the page of this server instead")
    if settings.token is not None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        known = hmac.compare_digest(given.strip().encode(), settings.token.encode())
        if kind.lower() != "bearer" or not known:
            headers = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "send the token, as Authorization: Bearer TOKEN", headers)


class Guard:
    """Outermost of the app: headers on every answer, and a connection that ends well where a body was not read."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str], most_bytes: int) -> None:
        self._app, self._headers, self._most_bytes = app, headers, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = dict(scope["headers"])
        unread = b"transfer-encoding" in named or named.get(b"content-length", b"0") != b"0"

        async def heard() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if unread:
                    headers["Connection"] = "close"
                    if message["status"] != 408 and b"expect" not in named:
                        await self._linger(heard)
            await send(message)

        await self._app(scope, heard, guarded)

    async def _linger(self, heard: Receive) -> None:
        """A socket that is closed on unread bytes is reset, and the answer is lost with it."""
        left = 2 * self._most_bytes
        try:
            async with asyncio.timeout(LINGER):
                while left > 0 and (message := await heard()).get("more_body"):
                    left -= len(message["body"])
        except TimeoutError:
            pass
