"""A request -> pictures, none of them believed, within limits.

    multipart/form-data; pictures=@bag.jpg, pictures=@shop.html
      -> [Received(data=b"\\xff\\xd8..."), Received(error="not a picture in one of JPEG, PNG, ...", status=422)]
    {"pictures": [{"base64": "/9j/4AAQ..."}, {"url": "https://shop.example/bag.jpg"}]}

    ServeSettings(queue=256, max_bytes=33_554_432, timeout=60)
      more than 256 pictures, or 512 megapixels, waiting  429, with Retry-After
      a body of more than 32 MB, announced or not         413
      a picture of more than 16 megapixels                413, before it is decoded; so for 128 together
      a body that takes more than 60 s                    408
      Sec-Fetch-Site: cross-site                          403: a page elsewhere asks in its reader's name

Only the header of a picture is read here; it is decoded by the predictor, in its own thread.
"""

import asyncio
import base64
import binascii
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import HTTPException
from pydantic import Field, ValidationError, model_validator
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from catalens import __version__
from catalens.catalog.pictures import MAX_PIXELS, declared_pixels
from catalens.config import Frozen
from catalens.errors import PictureError
from catalens.preparing.download import Downloader
from catalens.preparing.fetch import DownloadSpec, Network

MULTIPART, JSON = "multipart/form-data", "application/json"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_PICTURES = 64
"""In one request."""
GROUP = 8
"""Pictures that the page sends in one request; so many of the largest size are always taken."""
REQUEST_PIXELS = 128_000_000
"""In one request, together: a second or so of decoding."""
REQUESTS_QUEUED = 4
"""Requests of that size that may wait together."""
BODIES_HELD = 8
"""Bodies of the largest size that may be in memory together."""
SKELETON = 2**16
"""Bytes of JSON besides its strings: a list of pictures needs few, and a parser makes much of many."""
URL_SECONDS = 20.0
"""For one URL."""


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
    def max_pictures(self) -> int:
        """Pictures in one request."""
        return min(MAX_PICTURES, self.queue)


@dataclass(frozen=True)
class Received:
    """One picture of a request, or why it is none."""

    data: bytes = b""
    error: str | None = None
    status: int = 422
    """Of the answer, where the request has no other picture."""
    pixels: int = 0
    """By its header, of one that is to be read."""


class PictureSource(Frozen):
    """One picture: exactly one of the two."""

    base64: str | None = None
    """The bytes of a picture file, in base64 (RFC 4648)."""
    url: str | None = None
    """Where it is, on a public address; only where the server was started with `--allow-urls`."""

    @model_validator(mode="after")
    def _one(self) -> "PictureSource":
        if (self.base64 is None) == (self.url is None):
            raise ValueError("give either base64 or url")
        return self


class PredictBody(Frozen):
    """Pictures to read."""

    pictures: Annotated[tuple[PictureSource, ...], Field(min_length=1)]
    """In the order of the answer."""


def check_caller(request: Request, settings: ServeSettings) -> None:
    """Raise HTTPException 401 without the token, 403 for a browser that asks on behalf of another site's page."""
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


class RequestReader:
    """Reads requests, within limits that hold for all of them together; `network` resolves names in tests."""

    def __init__(self, settings: ServeSettings, network: Network | None = None) -> None:
        self._settings, self._network = settings, network
        self._held = 0
        self._fetching = asyncio.Semaphore(BODIES_HELD)

    @asynccontextmanager
    async def pictures(self, request: Request) -> AsyncIterator[list[Received]]:
        """Read the pictures of a request, whose bytes count as held until it is answered.

        Raises HTTPException 400, 408, 413, 415, 422 or 429; starlette's ClientDisconnect.
        """
        kind = parse_options_header(request.headers.get("content-type", ""))[0].decode("latin-1").lower()
        if kind not in (MULTIPART, JSON) or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, f"send pictures as {MULTIPART} or {JSON}, uncompressed")
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > BODIES_HELD * self._settings.max_bytes:
                raise HTTPException(429, "too much is being sent at a time: come back", {"Retry-After": "1"})
            self._held += size
            held += size

        try:
            body, limit = await self._body(request, hold), self._settings.max_pictures
            if kind == MULTIPART:
                sources = await asyncio.to_thread(asyncio.run, form_pictures(request.headers, body, limit))
            else:
                sources = await asyncio.to_thread(json_pictures, body, limit)
            del body
            yield await self._checked(await self._fetched(sources, hold))
        finally:
            self._held -= held

    async def _body(self, request: Request, hold: Callable[[int], None]) -> bytes:
        limit, seconds = self._settings.max_bytes, self._settings.timeout
        too_large = HTTPException(413, f"the body is larger than {limit:,} bytes: send fewer or smaller pictures")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > limit:
                        raise too_large
                    hold(len(chunk))
                    body += chunk
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {seconds:g} s: send it faster") from error
        return bytes(body)

    async def _fetched(self, sources: Sequence[Received | str], hold: Callable[[int], None]) -> list[Received]:
        """Fetch what is named by URL; HTTPException 413 where it is more than a body may hold."""
        if not any(isinstance(source, str) for source in sources):
            return [source for source in sources if isinstance(source, Received)]
        if not self._settings.allow_urls:
            raise HTTPException(422, "this server fetches no URLs (--allow-urls): send the picture itself")
        max_bytes, timeout = self._settings.max_bytes, self._settings.timeout
        seconds = min(URL_SECONDS, timeout)
        spec = DownloadSpec(
            concurrency=BODIES_HELD,
            connect_timeout=seconds / 2,
            read_timeout=seconds / 2,
            total_timeout=seconds,
            max_bytes=max_bytes,
            retries=0,
            user_agent=f"catalens/{__version__} (product picture reading)",
        )

        async def fetch(source: Received | str) -> Received:
            if isinstance(source, Received):
                return source
            async with self._fetching:
                one = await downloader.fetch(source)
            if one.body is None:
                # No more than the kind of failure: details would tell of names and addresses behind this server.
                return Received(error=f"URL cannot be fetched: {(one.reason or '').partition(':')[0]}")
            hold(len(one.body))
            return Received(one.body)

        async with Downloader(spec, self._network) as downloader:
            tasks = [asyncio.create_task(fetch(source)) for source in sources]
            try:
                async with asyncio.timeout(timeout):
                    received = await asyncio.gather(*tasks)
            except TimeoutError as error:
                slow = f"the URLs did not answer within {timeout:g} s: send fewer at a time"
                raise HTTPException(503, slow, {"Retry-After": "1"}) from error
            finally:
                for task in tasks:
                    task.cancel()
        sizes = [len(one.data) for source, one in zip(sources, received, strict=True) if isinstance(source, str)]
        if sum(sizes) > max_bytes:
            raise HTTPException(413, f"the URLs lead to more than {max_bytes:,} bytes: send fewer at a time")
        return received

    async def _checked(self, received: Sequence[Received]) -> list[Received]:
        largest, limit = self._settings.max_pixels, self._settings.request_pixels
        checked = await asyncio.to_thread(lambda: [_measured(one, largest) for one in received])
        if (pixels := sum(one.pixels for one in checked)) > limit:
            together = f"{pixels:,} pixels together are more than {limit:,}"
            raise HTTPException(413, f"{together}: send fewer pictures at a time")
        return checked


def _measured(received: Received, max_pixels: int) -> Received:
    """Read the header; what has more pixels than are allowed, or is no picture at all, goes no further."""
    if received.error is not None:
        return received
    try:
        pixels = declared_pixels(received.data)
    except PictureError as error:
        return Received(error=str(error))
    if pixels > max_pixels:
        return Received(error=f"more than {max_pixels:,} pixels: make the picture smaller", status=413)
    return replace(received, pixels=pixels)


class _FormParser(MultiPartParser):
    """Starlette's parser of forms; it also notices a form that is cut short, and keeps pictures off the disk."""

    spool_max_size = 2**31
    whole = False

    def on_end(self) -> None:
        self.whole = True


async def form_pictures(headers: Headers, body: bytes, limit: int) -> list[Received | str]:
    """Read the files named `pictures` of a form; HTTPException 413 where it has more than `limit` parts, 400, 422."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        if not parser.whole:  # raised here, so that the parser closes its files
            raise HTTPException(400, "the form is cut short: its last boundary is missing")

    parser = _FormParser(headers, stream(), max_files=limit, max_fields=limit, max_part_size=len(body))
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, AssertionError) as error:  # a charset may be unable to decode
        if isinstance(error, MultiPartException) and error.message.startswith("Too many"):
            raise HTTPException(413, f"more than {limit} parts: send fewer pictures at a time") from error
        raise HTTPException(400, "not multipart/form-data (RFC 7578): let a library write the form") from error
    files = [file for file in form.getlist("pictures") if isinstance(file, UploadFile)]
    received: list[Received | str] = [Received(file.file.read()) for file in files]
    await form.close()
    if not received:
        raise HTTPException(422, "no file named pictures in the form: -F pictures=@photo.jpg")
    return received


def json_pictures(body: bytes, limit: int) -> list[Received | str]:
    """Read bytes and URLs of a JSON body; HTTPException 413 beyond `limit` of them, 422 where it is none."""
    too_many = HTTPException(413, f"more than {limit} pictures: send fewer at a time")
    if body.count(b'"') > 8 * limit + 8:
        raise too_many
    if sum(map(len, body.split(b'"')[::2])) > SKELETON:
        raise HTTPException(422, 'not of the form {"pictures": [{"base64": "..."}]}: see /openapi.json')
    try:
        pictures = PredictBody.model_validate_json(body).pictures
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}; see /openapi.json") from error
    if len(pictures) > limit:
        raise too_many
    return [source.url if source.url is not None else _decoded(source.base64 or "") for source in pictures]


def _decoded(text: str) -> Received:
    try:
        return Received(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Received(error="not base64: leave out line breaks and a data: prefix")
