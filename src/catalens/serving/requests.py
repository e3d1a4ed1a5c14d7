"""A request -> products and their pictures, none of them believed, within limits.

    multipart/form-data; pictures=@bag.jpg, pictures=@shop.html
      -> [[Received(data=b"\\xff\\xd8...")], [Received(error="not a picture in one of JPEG, PNG, ...", status=422)]]
    {"pictures": [{"base64": "/9j/4AAQ..."}, {"url": "https://shop.example/bag.jpg"}]}
    {"products": [{"pictures": [{"base64": "/9j/4AAQ..."}, {"base64": "..."}], "texts": {"description": "..."}}]}

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
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Annotated, NamedTuple

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
MAX_PICTURES = 64  # in one request
GROUP = 8  # pictures that the page sends in one request; so many of the largest size are always taken
REQUEST_PIXELS = 128_000_000  # in one request, together: a second or so of decoding
REQUESTS_QUEUED = 4  # requests of that size that may wait together
BODIES_HELD = 8  # bodies of the largest size that may be in memory together
SKELETON = 2**16  # bytes of JSON besides its strings: a list of pictures needs few, and a parser makes much of many
URL_SECONDS = 20.0  # for one URL


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
    """Set where pictures may be named by URL; only public addresses are asked."""
    token: str | None = Field(default=None, repr=False)
    """Secret that clients have to know."""
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


class Received(NamedTuple):
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
    """Its URL, on a public address; only where the server was started with `--allow-urls`."""

    @model_validator(mode="after")
    def _one(self) -> "PictureSource":
        if (self.base64 is None) == (self.url is None):
            raise ValueError("give either base64 or url")
        return self


class ProductSource(Frozen):
    """One product, by several pictures or with the texts that the model is given."""

    pictures: Annotated[tuple[PictureSource, ...], Field(min_length=1)]
    """In the order in which the model sees them."""
    texts: dict[str, str] = {}
    """By column of the question."""


class PredictBody(Frozen):
    """Pictures or products to read, one of the two, in the order of the answer."""

    pictures: Annotated[tuple[PictureSource, ...] | None, Field(min_length=1)] = None
    """Each of a product of its own."""
    products: Annotated[tuple[ProductSource, ...] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _one(self) -> "PredictBody":
        if (self.pictures is None) == (self.products is None):
            raise ValueError("give either pictures or products")
        return self


class Product(NamedTuple):
    """Pictures of a product, or where they are, and the texts that came with them."""

    pictures: Sequence["Received | str"]
    texts: Mapping[str, str] = {}


ReadBody = Callable[[bytes, int], Sequence[Product]]
"""Reads the products of a body, so many pictures at most; HTTPException where it has another form."""


class Asked(NamedTuple):
    """A product of a request, its pictures received."""

    pictures: Sequence[Received]
    texts: Mapping[str, str]

    @property
    def failure(self) -> Received | None:
        """The first picture that is none."""
        return next((one for one in self.pictures if one.error is not None), None)

    @property
    def pixels(self) -> int:
        """Pixels of all pictures."""
        return sum(one.pixels for one in self.pictures)


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
    """Reads requests, within limits that hold for all of them together; `network` resolves names in tests.

    `inputs` are the columns whose texts may come with pictures.
    """

    def __init__(self, settings: ServeSettings, network: Network | None = None, inputs: Sequence[str] = ()) -> None:
        self._settings, self._network, self._inputs = settings, network, inputs
        self._held = 0
        self._fetching = asyncio.Semaphore(BODIES_HELD)

    @asynccontextmanager
    async def products(self, request: Request, read: ReadBody | None = None) -> AsyncIterator[list[Asked]]:
        """Read the products of a request, whose bytes count as held until it is answered; a body of JSON by `read`.

        Raises HTTPException 400, 408, 413, 415, 422 or 429; starlette's ClientDisconnect.
        """
        kind = parse_options_header(request.headers.get("content-type", ""))[0].decode("latin-1").lower()
        kinds = (MULTIPART, JSON) if read is None else (JSON,)
        if kind not in kinds or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, f"send pictures as {' or '.join(kinds)}, uncompressed")
        held, limit, seconds = 0, self._settings.max_pictures, self._settings.timeout

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > BODIES_HELD * self._settings.max_bytes:
                raise later(429, "too much is being sent at a time: come back")
            self._held += size
            held += size

        try:
            body = self._body(request, hold)
            try:
                async with asyncio.timeout(seconds):
                    if kind == MULTIPART:
                        products = await form_products(request.headers, body, limit, self._inputs)
                    else:
                        whole = b"".join([chunk async for chunk in body])
                        products = (read or json_products)(whole, limit)
            except TimeoutError as error:
                raise HTTPException(408, f"the body did not come within {seconds:g} s: send it faster") from error
            _refuse_texts(products, self._inputs)
            fetched = await self._fetched([one for product in products for one in product.pictures], hold)
            measured = iter(await asyncio.to_thread(_measured, fetched, self._settings))
            yield [Asked([*islice(measured, len(pictures))], texts) for pictures, texts in products]
        finally:
            self._held -= held

    async def _body(self, request: Request, hold: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
        """The pieces of a body; HTTPException 413 where it is announced, or comes to be, too large."""
        limit, total = self._settings.max_bytes, 0
        too_large = HTTPException(413, f"the body is larger than {limit:,} bytes: send fewer or smaller pictures")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                raise too_large
            hold(len(chunk))
            yield chunk

    async def _fetched(self, sources: Sequence[Received | str], hold: Callable[[int], None]) -> list[Received]:
        """Fetch what is named by URL; HTTPException 413 where it is more than a body may hold."""
        settings, total = self._settings, 0
        if not any(isinstance(source, str) for source in sources):
            return [source for source in sources if isinstance(source, Received)]
        if not settings.allow_urls:
            raise HTTPException(422, "this server fetches no URLs (--allow-urls): send the picture itself")
        seconds = min(URL_SECONDS, settings.timeout)
        spec = DownloadSpec(
            concurrency=BODIES_HELD,
            connect_timeout=seconds / 2,
            read_timeout=seconds / 2,
            total_timeout=seconds,
            max_bytes=settings.max_bytes,
            retries=0,
            user_agent=f"catalens/{__version__} (product picture reading)",
        )

        async def fetch(source: Received | str) -> Received:
            nonlocal total
            if isinstance(source, Received):
                return source
            async with self._fetching:
                one = await downloader.fetch(source)
            if one.body is None:
                # No more than the kind of failure: details would tell of names and addresses behind this server.
                return Received(error=f"URL cannot be fetched: {(one.reason or '').partition(':')[0]}")
            total += len(one.body)
            if total > settings.max_bytes:
                raise HTTPException(413, f"the URLs lead to more than {settings.max_bytes:,} bytes: send fewer")
            hold(len(one.body))
            return Received(one.body)

        async with Downloader(spec, self._network) as downloader:
            tasks = [asyncio.create_task(fetch(source)) for source in sources]
            try:
                async with asyncio.timeout(settings.timeout):
                    return await asyncio.gather(*tasks)
            except TimeoutError as error:
                raise later(503, f"the URLs did not answer within {settings.timeout:g} s: send fewer") from error
            finally:
                for task in tasks:
                    task.cancel()


def _measured(received: Sequence[Received], settings: ServeSettings) -> list[Received]:
    """Read the headers; what has too many pixels, or is no picture, goes no further; HTTPException 413 for all."""
    measured = []
    for one in received:
        try:
            pixels = declared_pixels(one.data) if one.error is None else 0
        except PictureError as error:
            one, pixels = Received(error=str(error)), 0
        if pixels > settings.max_pixels:
            too_many = f"more than {settings.max_pixels:,} pixels: make the picture smaller"
            one, pixels = Received(error=too_many, status=413), 0
        measured.append(one._replace(pixels=pixels))
    if (pixels := sum(one.pixels for one in measured)) > settings.request_pixels:
        together = f"{pixels:,} pixels together are more than {settings.request_pixels:,}"
        raise HTTPException(413, f"{together}: send fewer pictures at a time")
    return measured


class _FormParser(MultiPartParser):
    """Starlette's parser of forms; it also notices a form that is cut short, and keeps pictures off the disk."""

    spool_max_size = 2**31
    whole = False

    def on_end(self) -> None:
        self.whole = True


def _refuse_texts(products: Sequence[Product], inputs: Sequence[str]) -> None:
    """Raise HTTPException 422 for a text that the question does not ask for."""
    given = (name for product in products for name in product.texts)
    if unknown := next((name for name in given if name not in inputs), None):
        known = f"it takes {', '.join(inputs)}" if inputs else "it takes pictures alone"
        raise HTTPException(422, f"the model is given no {unknown[:60]!r}: {known}")


async def form_products(
    headers: Headers, body: AsyncGenerator[bytes, None], limit: int, inputs: Sequence[str] = ()
) -> list[Product]:
    """Read the files named `pictures` of a form, each of a product, or of one where a field `together` is true.

    Its fields named as `inputs` are the texts of all. HTTPException 413 where it has more than `limit` parts, 400,
    422.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            yield chunk
        if not parser.whole:  # raised here, so that the parser closes its files
            raise HTTPException(400, "the form is cut short: its last boundary is missing")

    parser = _FormParser(headers, stream(), max_files=limit, max_fields=limit)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, AssertionError) as error:  # a charset may be unable to decode
        if isinstance(error, MultiPartException) and error.message.startswith("Too many"):
            raise HTTPException(413, f"more than {limit} parts: send fewer pictures at a time") from error
        raise HTTPException(400, "not multipart/form-data (RFC 7578): let a library write the form") from error
    files = [file for file in form.getlist("pictures") if isinstance(file, UploadFile)]
    received = [Received(file.file.read()) for file in files]
    texts = {name: text for name in inputs if isinstance(text := form.get(name), str)}
    together = form.get("together") == "true"
    await form.close()
    if not received:
        raise HTTPException(422, "no file named pictures in the form: -F pictures=@photo.jpg")
    return [Product(received, texts)] if together else [Product([one], texts) for one in received]


def json_products(body: bytes, limit: int) -> list[Product]:
    """Read bytes and URLs of a JSON body; HTTPException 413 beyond `limit` pictures, 422 where it is none."""
    refuse_skeleton(body, '{"pictures": [{"base64": "..."}]}')
    try:
        asked = PredictBody.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error
    products = asked.products or tuple(ProductSource(pictures=(one,)) for one in asked.pictures or ())
    if sum(len(product.pictures) for product in products) > limit:
        raise HTTPException(413, f"more than {limit} pictures: send fewer at a time")
    return [Product([_source(one) for one in product.pictures], product.texts) for product in products]


def refuse_skeleton(body: bytes, form: str) -> None:
    """Raise HTTPException 422 for JSON with too much besides its strings, before it is parsed."""
    if sum(map(len, body.split(b'"')[::2])) > SKELETON:
        raise HTTPException(422, f"not of the form {form}: see /openapi.json")


def invalid(error: ValidationError, unsaid: Collection[str] = ()) -> HTTPException:
    """Make the refusal of a body that is not of its form, which names where; without the parts that are `unsaid`."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in unsaid) or "the body"
    return HTTPException(422, f"{where}: {first['msg']}; see /openapi.json")


def _source(source: PictureSource) -> Received | str:
    return source.url if source.url is not None else decoded(source.base64 or "")


def decoded(text: str) -> Received:
    """Decode a picture in base64."""
    try:
        return Received(base64.b64decode(text, validate=True))
    except ValueError:
        return Received(error="not base64: leave out line breaks and a data: prefix")


def later(status: int, detail: str, seconds: float = 1) -> HTTPException:
    """Make a refusal that says when to come back."""
    return HTTPException(status, detail, {"Retry-After": f"{seconds:.0f}"})
