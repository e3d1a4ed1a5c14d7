"""The body of a request -> pictures, none of them believed.

    multipart/form-data; pictures=@bag.jpg, pictures=@shop.html
      -> [Received(data=b"\\xff\\xd8..."), Received(error="not a picture in one of JPEG, PNG, ...", status=422)]
    {"pictures": [{"base64": "/9j/4AAQ..."}, {"url": "https://shop.example/bag.jpg"}]}

Only the header of a picture is read here; it is decoded by the predictor, in its own thread.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import HTTPException
from pydantic import Field, ValidationError, model_validator
from python_multipart.multipart import File, FormParser, parse_options_header
from starlette.requests import Request

from catalens import __version__
from catalens.catalog.pictures import declared_pixels
from catalens.config import Frozen
from catalens.errors import PictureError
from catalens.preparing.download import Downloader
from catalens.preparing.fetch import DownloadSpec, Network
from catalens.serving.limits import BODIES_HELD, ServeSettings

MULTIPART, JSON = "multipart/form-data", "application/json"
SKELETON = 2**16
"""Bytes of JSON besides its strings: a list of pictures needs few, and a parser makes much of many."""
URL_SECONDS = 20.0
"""For one URL."""


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


class Intake:
    """Reads bodies, within limits that hold for all requests together."""

    def __init__(self, settings: ServeSettings, network: Network | None = None) -> None:
        """`network` leads names elsewhere in tests."""
        self._settings, self._network = settings, network
        self._held = 0
        self._fetching = asyncio.Semaphore(BODIES_HELD)

    @asynccontextmanager
    async def pictures(self, request: Request) -> AsyncIterator[list[Received]]:
        """The pictures of a request, whose bytes count as held until it is answered.

        Raises HTTPException 400, 408, 413, 415, 422 or 429; starlette's ClientDisconnect.
        """
        kind, parameters = parse_options_header(request.headers.get("content-type", ""))
        kind = kind.decode("latin-1").lower()
        if kind not in (MULTIPART, JSON) or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, f"send pictures as {MULTIPART} or {JSON}, uncompressed")
        load = _Load()
        try:
            body, most = await self._read(request, load), self._settings.most_pictures
            if kind == MULTIPART:
                sources = await asyncio.to_thread(form_pictures, body, parameters.get(b"boundary"), most)
            else:
                sources = await asyncio.to_thread(json_pictures, body, most)
            del body
            yield await self._received(sources, load)
        finally:
            self._held -= load.bytes

    def _hold(self, load: "_Load", size: int) -> None:
        if self._held + size > BODIES_HELD * self._settings.max_bytes:
            raise HTTPException(429, "too much is being sent at a time: come back", {"Retry-After": "1"})
        self._held += size
        load.bytes += size

    async def _read(self, request: Request, load: "_Load") -> bytes:
        most, seconds = self._settings.max_bytes, self._settings.timeout
        too_large = HTTPException(413, f"the body is larger than {most:,} bytes: send fewer or smaller pictures")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise too_large
                    self._hold(load, len(chunk))
                    body += chunk
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {seconds:g} s: send it faster") from error
        return bytes(body)

    async def _received(self, sources: Sequence[Received | str], load: "_Load") -> list[Received]:
        urls = [source for source in sources if isinstance(source, str)]
        if urls and not self._settings.allow_urls:
            raise HTTPException(422, "this server fetches no URLs (--allow-urls): send the picture itself")
        fetched = iter(await self._fetched(urls, load)) if urls else iter(())
        whole = [next(fetched) if isinstance(source, str) else source for source in sources]
        checked = await asyncio.to_thread(lambda: [_checked(one, self._settings.max_pixels) for one in whole])
        pixels, most = sum(one.pixels for one in checked), self._settings.request_pixels
        if pixels > most:
            raise HTTPException(
                413, f"{pixels:,} pixels together are more than {most:,}: send fewer pictures at a time"
            )
        return checked

    async def _fetched(self, urls: Sequence[str], load: "_Load") -> list[Received]:
        """What URLs lead to; HTTPException 413 where it is more than a body may hold."""
        most, seconds = self._settings.max_bytes, min(URL_SECONDS, self._settings.timeout)
        spec = DownloadSpec(
            concurrency=BODIES_HELD,
            connect_timeout=seconds / 2,
            read_timeout=seconds / 2,
            total_timeout=seconds,
            max_bytes=most,
            retries=0,
            user_agent=f"catalens/{__version__} (product picture reading)",
        )

        async def fetch(url: str) -> Received:
            async with self._fetching:
                one = await downloader.fetch(url)
            if one.body is None:
                # No more than the kind of failure: details would tell of names and addresses behind this server.
                return Received(error=f"URL cannot be fetched: {(one.reason or '').partition(':')[0]}")
            self._hold(load, len(one.body))
            return Received(one.body)

        async with Downloader(spec, self._network) as downloader:
            tasks = [asyncio.create_task(fetch(url)) for url in urls]
            try:
                async with asyncio.timeout(self._settings.timeout):
                    received = await asyncio.gather(*tasks)
            except TimeoutError as error:
                slow = f"the URLs did not answer within {self._settings.timeout:g} s: send fewer at a time"
                raise HTTPException(503, slow, {"Retry-After": "1"}) from error
            finally:
                for task in tasks:
                    task.cancel()
        if sum(len(one.data) for one in received) > most:
            raise HTTPException(413, f"the URLs lead to more than {most:,} bytes: send fewer at a time")
        return received


@dataclass
class _Load:
    """What one request holds."""

    bytes: int = 0


def form_pictures(body: bytes, boundary: bytes | None, most: int) -> list[Received | str]:
    """The files named `pictures` of a form; HTTPException 413 where they are more than `most`, 400, 422."""
    received: list[Received | str] = []
    parts, ended = 0, False

    def part() -> None:
        nonlocal parts
        parts += 1
        if parts > most:
            raise HTTPException(413, f"more than {most} parts: send fewer pictures at a time")

    def on_file(file: File) -> None:
        part()
        if file.field_name == b"pictures":
            file.file_object.seek(0)
            received.append(Received(file.file_object.read()))

    def on_end() -> None:
        nonlocal ended
        ended = True

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # pictures never touch the disk
    try:
        parser = FormParser(MULTIPART, lambda field: part(), on_file, on_end, boundary, config=in_memory)
        parser.write(body)
        parser.finalize()
    except (ValueError, AssertionError) as error:  # a FormParserError is a ValueError
        raise HTTPException(400, "not multipart/form-data (RFC 7578): let a library write the form") from error
    if not ended:
        raise HTTPException(400, "the form is cut short: its last boundary is missing")
    if not received:
        raise HTTPException(422, "no file named pictures in the form: -F pictures=@photo.jpg")
    return received


def json_pictures(body: bytes, most: int) -> list[Received | str]:
    """Bytes and URLs of a JSON body; HTTPException 413 where they are more than `most`, 422 where it is no such."""
    quotes = body.count(b'"')
    if quotes > 8 * most + 8:
        raise HTTPException(413, f"more than {most} pictures: send fewer at a time")
    if sum(map(len, body.split(b'"')[::2])) > SKELETON:
        raise HTTPException(422, 'not of the form {"pictures": [{"base64": "..."}]}: see /openapi.json')
    try:
        pictures = PredictBody.model_validate_json(body).pictures
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(422, f"{where}: {first['msg']}; see /openapi.json") from error
    if len(pictures) > most:
        raise HTTPException(413, f"more than {most} pictures: send fewer at a time")
    return [source.url if source.url is not None else _decoded(source.base64 or "") for source in pictures]


def _decoded(text: str) -> Received:
    try:
        return Received(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return Received(error="not base64: leave out line breaks and a data: prefix")


def _checked(received: Received, max_pixels: int) -> Received:
    """What has more pixels than are allowed, or is no picture at all, goes no further."""
    if received.error is not None:
        return received
    try:
        pixels = declared_pixels(received.data)
    except PictureError as error:
        return Received(error=str(error))
    if pixels > max_pixels:
        return Received(error=f"more than {max_pixels:,} pixels: make the picture smaller", status=413)
    return replace(received, pixels=pixels)
