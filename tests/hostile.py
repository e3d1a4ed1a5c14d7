"""A web server on loopback that does to a client whatever servers do.

    GET /jpeg/17           200, a picture of its own for every number
    GET /busy/17           429 with Retry-After, then 200
    GET /endless/17        bytes without end
    GET /-/counts          {"/jpeg/17": 1, "/busy/17": 2}: how often each path was asked for

`KINDS` lists all of them with what a downloader and a decoder have to make of them. In tests:

    from hostile import hostile_server  # noqa: F401
    def test_something(hostile):
        hostile.url("jpeg", 17), hostile.counts["/jpeg/17"]

Alone, for benchmarks and for processes that get killed:  python tests/hostile.py --port 0 --latency 0.02
"""

import argparse
import asyncio
import contextlib
import functools
import io
import socket
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from catalens.preparing import Network

Handler = Callable[[web.Request, int], Awaitable[web.StreamResponse]]
PUBLIC = "93.184.216.34"  # an address that may be spoken to; `Hostile.network` leads it to the server


# What is served -------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def jpeg(number: int, width: int = 320, height: int = 240) -> bytes:
    """A JPEG of about 24 KB, the same bytes for the same number and other pixels for another."""
    return encoded(pixels(number, width, height), "JPEG", quality=85)


def pixels(number: int, width: int = 320, height: int = 240) -> Image.Image:
    """Coarse random blocks with grain: no two numbers look alike, and JPEG cannot make much of it."""
    random = np.random.default_rng(number)
    coarse = random.integers(40, 216, (height // 40, width // 40, 3)).repeat(40, 0).repeat(40, 1)
    grain = random.integers(-16, 17, (height, width, 1))
    return Image.fromarray((coarse + grain).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@functools.cache
def cmyk() -> bytes:
    return encoded(pixels(1).convert("CMYK"), "JPEG")


@functools.cache
def png16() -> bytes:
    ramp = np.linspace(0, 65535, 64 * 48, dtype=np.uint16).reshape(48, 64)
    return encoded(Image.fromarray(ramp), "PNG")


@functools.cache
def animated_webp() -> bytes:
    frames = [pixels(number, 80, 80) for number in (1, 2, 3)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100)


@functools.cache
def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright, it is turned by a quarter: 320x240 is seen as 240x320
    return encoded(pixels(2), "JPEG", exif=exif)


@functools.cache
def pixel_bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(180_001))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@functools.cache
def flat(side: int) -> bytes:
    """A square PNG of one colour: some kilobytes for millions of pixels."""
    return encoded(Image.new("1", (side, side)), "PNG")


@functools.cache
def gzip_bomb() -> bytes:
    """64 MB of zeros in 64 KB."""
    press = zlib.compressobj(9, wbits=31)
    return b"".join(press.compress(bytes(2**20)) for _ in range(64)) + press.flush()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><rect width="9" height="9"/></svg>'
HTML = b"<!doctype html><script>alert(1)</script><p>Please log in</p>"


# How it is served -----------------------------------------------------------------------------------------------


def gives(body: Callable[[int], bytes], type: str = "image/jpeg", status: int = 200, **headers: str) -> Handler:
    """Answer with a body and headers; `_` stands for `-` in a header's name."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        return web.Response(body=body(number), status=status, headers={"Content-Type": type, **named})

    return handler


def fails(status: int, times: int | None = None, **headers: str) -> Handler:
    """Answer with a status, and with a picture from then on where `times` is given."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        if times is None or request.app[COUNTS][request.path] <= times:
            return web.Response(status=status, headers=named, text="no")
        return web.Response(body=jpeg(number), content_type="image/jpeg")

    return handler


def redirects(target: str, status: int = 302) -> Handler:
    """Lead to `target`, in which {base}, {path} and {n} are filled in."""

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        base = f"http://127.0.0.1:{request.app[PORT]}"
        location = target.format(base=base, path=request.path, n=number, next=number + 1)
        return web.Response(status=status, headers={"Location": location} if location else {})

    return handler


def raw(*parts: bytes, times: int | None = None) -> Handler:
    """Write bytes past the HTTP library and hang up."""

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        if times is not None and request.app[COUNTS][request.path] > times:
            return web.Response(body=jpeg(number), content_type="image/jpeg")
        assert request.transport is not None
        request.transport.write(b"".join(parts))
        request.transport.close()
        return web.Response()

    return handler


async def asked_too_early(request: web.Request, number: int) -> web.StreamResponse:
    """429 with one second to wait; whoever comes back before it has passed gets 400."""
    now = asyncio.get_running_loop().time()
    first = request.app[TIMES].setdefault(request.path, now)
    if first == now:
        return web.Response(status=429, headers={"Retry-After": "1"})
    return web.Response(status=400) if now - first < 0.95 else web.Response(body=jpeg(number))


async def silent(request: web.Request, number: int) -> web.StreamResponse:
    await asyncio.sleep(3600)
    return web.Response()


async def drip(request: web.Request, number: int) -> web.StreamResponse:
    """A byte now and then, each soon enough, together never done."""
    response = web.StreamResponse(headers={"Content-Length": "100000", "Content-Type": "image/jpeg"})
    await response.prepare(request)
    for byte in jpeg(number):
        await response.write(bytes([byte]))
        await asyncio.sleep(0.05)
    return response


async def drip_headers(request: web.Request, number: int) -> web.StreamResponse:
    """Headers without end, a byte now and then."""
    assert request.transport is not None
    request.transport.write(GOOD)
    for _ in range(10_000):
        request.transport.write(b"X")
        await asyncio.sleep(0.05)
    return web.Response()


async def crawl(request: web.Request, number: int) -> web.StreamResponse:
    """A picture in a hundred pieces."""
    picture = jpeg(number)
    response = web.StreamResponse(headers={"Content-Length": str(len(picture))})
    await response.prepare(request)
    step = len(picture) // 100 + 1
    for start in range(0, len(picture), step):
        await response.write(picture[start : start + step])
        await asyncio.sleep(0.04)
    return response


async def stalled(request: web.Request, number: int) -> web.StreamResponse:
    """Half a picture, then nothing."""
    picture = jpeg(number)
    response = web.StreamResponse(headers={"Content-Length": str(len(picture))})
    await response.prepare(request)
    await response.write(picture[: len(picture) // 2])
    await asyncio.sleep(3600)
    return response


async def endless(request: web.Request, number: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the client has had enough
        while True:
            await response.write(bytes(2**16))
    return response


async def echo(request: web.Request, number: int) -> web.StreamResponse:
    """The headers that came, as JSON; and a cookie, to be seen whether it comes back."""
    response = web.json_response(dict(request.headers))
    response.headers.extend([("Set-Cookie", "visitor=1; Path=/"), ("Set-Cookie", "=;;\xff; Max-Age=soon")])
    return response


@dataclass(frozen=True)
class Kind:
    """One thing that servers do."""

    handler: Handler
    reason: str | None = None
    """How a downloader's reason begins where it runs with private hosts refused; None: it gets the bytes."""
    picture: bool = False
    """Whether a decoder makes a picture of the bytes."""


GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"

KINDS: Mapping[str, Kind] = {
    "jpeg": Kind(gives(jpeg), picture=True),
    "cmyk": Kind(gives(lambda n: cmyk()), picture=True),
    "png16": Kind(gives(lambda n: png16(), "image/png"), picture=True),
    "animated": Kind(gives(lambda n: animated_webp(), "image/webp"), picture=True),
    "rotated": Kind(gives(lambda n: rotated()), picture=True),
    "mislabelled": Kind(gives(jpeg, "text/plain"), picture=True),
    "gzipped": Kind(gives(lambda n: zlib.compress(jpeg(n), wbits=31), Content_Encoding="gzip"), picture=True),
    "unmeasured": Kind(raw(GOOD + b"Connection: close\r\n\r\n", rotated()), picture=True),
    "busy": Kind(fails(429, times=1, Retry_After="0"), picture=True),
    "shaky": Kind(fails(500, times=1), picture=True),
    "dropped": Kind(raw(GOOD + b"Content-Length: 900\r\n\r\n", bytes(99), times=1), picture=True),
    "redirect": Kind(redirects("/jpeg/{n}", 301), picture=True),
    "robots-others": Kind(gives(jpeg, X_Robots_Tag="googlebot: noindex, noai"), picture=True),
    "html": Kind(gives(lambda n: HTML, "text/html")),
    "svg": Kind(gives(lambda n: SVG, "image/svg+xml")),
    "truncated": Kind(gives(lambda n: jpeg(n)[:9000])),
    "bomb": Kind(gives(lambda n: pixel_bomb(), "image/png")),
    "missing": Kind(fails(404), "HTTP 404"),
    "gone": Kind(fails(410), "HTTP 410"),
    "forbidden": Kind(fails(403), "HTTP 403"),
    "part": Kind(gives(jpeg, status=206), "HTTP 206"),
    "broken": Kind(fails(500), "HTTP 500"),
    "empty": Kind(gives(lambda n: b""), "empty"),
    "silent": Kind(silent, "timed out"),
    "stalled": Kind(stalled, "timed out"),
    "drip": Kind(drip, "timed out"),
    "endless": Kind(endless, "too large"),
    "huge": Kind(gives(lambda n: bytes(2**20)), "too large"),
    "gzip-bomb": Kind(gives(lambda n: gzip_bomb(), Content_Encoding="gzip"), "too large"),
    "gzip-broken": Kind(gives(jpeg, Content_Encoding="gzip"), "broken answer"),
    "short": Kind(raw(GOOD + b"Content-Length: 30000\r\n\r\n", bytes(9000)), "cut short"),
    "cut-chunk": Kind(raw(GOOD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", bytes(99)), "cut short"),
    "not-http": Kind(raw(b"220 ftp.example ready\r\n"), "broken answer"),
    "long-header": Kind(raw(GOOD + b"X: " + b"x" * 20_000 + b"\r\n\r\n"), "broken answer"),
    "hung-up": Kind(raw(), "connection failed"),
    "redirect-loop": Kind(redirects("{path}?"), "redirect loop"),
    "redirect-far": Kind(redirects("/redirect-far/{next}"), "too many redirects"),
    "redirect-private": Kind(redirects("{base}/jpeg/{n}"), "address refused"),
    "redirect-file": Kind(redirects("file:///etc/passwd"), "scheme refused"),
    "redirect-login": Kind(redirects("http://me:secret@shop.test/"), "credentials refused"),
    "redirect-nowhere": Kind(redirects(""), "HTTP 302"),
    "noai": Kind(gives(jpeg, X_Robots_Tag="noai"), "noai"),
    "noai-ours": Kind(gives(jpeg, X_Robots_Tag="otherbot: noindex, Catalens: nofollow, NoImageAI"), "noai"),
}
"""What the server does by the first part of the path."""
EXTRA: Mapping[str, Handler] = {
    "echo": echo,
    "asked-too-early": asked_too_early,
    "crawl": crawl,
    "drip-headers": drip_headers,
    "flat": gives(flat, "image/png"),
    "too-many": fails(429, Retry_After="0"),
}
"""Paths for single tests, not among the rows of a hostile table."""
SLOW = frozenset({"silent", "stalled", "drip"})
"""Kinds that cost a time-out."""


def expected_reason(kind: str, allow_private_hosts: bool = False) -> str | None:
    """How the reason of a fetch begins, up to the colon; None where the bytes come."""
    return None if kind == "redirect-private" and allow_private_hosts else KINDS[kind].reason


# The server -----------------------------------------------------------------------------------------------------

COUNTS = web.AppKey("counts", Counter)
TIMES = web.AppKey("times", dict)
PORT = web.AppKey("port", int)


class Hostile:
    """The server in a thread of its own; a context manager."""

    def __init__(self, port: int = 0, latency: float = 0.0) -> None:
        """`port` 0 takes a free one; `latency` is waited before every answer, in seconds."""
        for slow_to_make in (cmyk, png16, animated_webp, rotated, gzip_bomb):
            slow_to_make()  # now, not while everybody waits for the event loop
        self.latency = latency
        self.counts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Hostile":
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def url(self, kind: str, number: int = 0, base: str | None = None) -> str:
        return f"{base or self.base}/{kind}/{number}"

    @property
    def shop(self) -> str:
        """The server's address under a public name, to be used with `network`."""
        return f"http://shop.test:{self.port}"

    def network(self) -> Network:
        """Every name ending in `.test` has a public address, and sockets to that end up here."""

        def getaddrinfo(host: str, port: int, *args: int, flags: int = 0) -> list:
            host = PUBLIC if host.endswith(".test") else host
            return socket.getaddrinfo(host, port, *args, flags=flags & ~socket.AI_ADDRCONFIG)

        class Led(socket.socket):
            def connect(self, address: Any, /) -> None:
                super().connect(("127.0.0.1", address[1]) if address[0] == PUBLIC else address)

        return Network(getaddrinfo, lambda info: Led(*info[:3]))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self.serve())
        self._loop.close()

    async def serve(self) -> None:
        """Answer until the context ends."""
        self._stop = asyncio.Event()
        app = web.Application()
        app[COUNTS], app[TIMES], app[PORT] = self.counts, {}, self.port
        app.router.add_get("/-/counts", self._tell)
        app.router.add_get("/{kind}/{number:[0-9]+}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.counts[request.path] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            name = request.match_info["kind"]
            handler = KINDS[name].handler if name in KINDS else EXTRA[name]
            return await handler(request, int(request.match_info["number"]))
        finally:
            self.at_once -= 1


@pytest.fixture(name="hostile")
def hostile_server() -> Iterator[Hostile]:
    """A server with fresh counts."""
    with Hostile() as server:
        yield server


def main() -> None:
    """Serve until interrupted; the first line of output is the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer")
    options = parser.parse_args()
    server = Hostile(options.port, options.latency)
    print(server.base, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve())


if __name__ == "__main__":
    main()
