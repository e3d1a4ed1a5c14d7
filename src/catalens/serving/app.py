"""The HTTP API and the page, around one predictor.

    POST /v1/predict     products -> {"predictions": [{"fields": {"title": {"value": "Red Tote Bag", "confidence":
                                      0.97, "needs_review": false}, ...}, "needs_review": false, "error": null}], ...}
    POST /v1/chat/completions, GET /v1/models   the same for clients of OpenAI's API
    GET  /               the page: drop photos, look, correct, download
    GET  /healthz        200 while the process lives
    GET  /readyz         200 while pictures are accepted, else 503
    GET  /metrics        Prometheus
    GET  /openapi.json   the description, with examples

`requests` reads a request and refuses, `batching` shares the predictor among requests, `page` draws the page. Every
answer carries headers that keep a browser from guessing types, from framing, and from keeping what it saw.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalens import __version__
from catalens.config import PromptSpec
from catalens.examples import Query, Value
from catalens.inference.predictor import Predictor
from catalens.predictions import Prediction
from catalens.preparing.fetch import Network
from catalens.serving.batching import Batcher, PredictorError, QueueFullError
from catalens.serving.chat import add_chat_routes
from catalens.serving.page import ModelCard, policy_of, render_index
from catalens.serving.requests import (
    JSON,
    MULTIPART,
    REQUESTS_QUEUED,
    Asked,
    PictureSource,
    ProductSource,
    ReadBody,
    Received,
    RequestReader,
    ServeSettings,
    check_caller,
    later,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PICTURES = (1, 2, 4, 8, 16, 32, 64)
LINGER = 2.0  # seconds in which what a refused client still sends is thrown away, so that it gets to read the answer
GONE = 499  # nginx's status for a client that left; nobody receives it, it is counted
DESCRIPTION = yaml.safe_load((Path(__file__).parents[1] / "assets" / "openapi.yaml").read_text(encoding="utf-8"))
"""Requests, and reasons for no answer by status, as `/openapi.json` describes them."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class FieldAnswer(BaseModel, use_attribute_docstrings=True):
    """One field of a picture."""

    value: Value
    """Value that the picture shows."""
    confidence: float | None
    """Probability that the value is right (a number: within the run's tolerance)."""
    needs_review: bool
    """True where a person should look at it."""


class NumberAnswer(FieldAnswer):
    """A number, with bounds that hold the truth as often as the calibration promises; null without a calibration."""

    low: float | None
    high: float | None


class Likely(BaseModel, use_attribute_docstrings=True):
    """A value that the picture may show."""

    value: str
    probability: float
    """By the model, not calibrated."""


class CategoryAnswer(FieldAnswer):
    """A category out of a closed set, with the likeliest ones of it; they are missing where categories are free."""

    likeliest: list[Likely]


class PictureAnswer(BaseModel, use_attribute_docstrings=True):
    """One picture."""

    fields: dict[str, NumberAnswer | CategoryAnswer | FieldAnswer]
    """By column; empty where there is an error."""
    needs_review: bool
    """True where any field does, or there is an error."""
    error: str | None
    """Reason why the picture was not read."""


class Answer(BaseModel, use_attribute_docstrings=True):
    """All pictures of a request, in its order."""

    predictions: list[PictureAnswer]
    calibrated: bool
    """False where confidences are the model's own, not calibrated."""
    model: str
    """Name of the run."""


class Service:
    """A predictor that many requests share."""

    def __init__(self, predictor: Predictor, settings: ServeSettings, name: str, network: Network | None) -> None:
        self.settings, self.registry = settings, CollectorRegistry()
        self.draining = False
        """Set when the server is to end: nothing new is accepted."""
        self.in_flight = 0
        """Requests for predictions that are not answered yet."""
        self.predictor, self.name, self.started = predictor, name, int(time.time())
        self._reader = RequestReader(settings, network, predictor.prompt.inputs)
        self._requests = Counter("catalens_requests", "Requests for predictions", ["status"], registry=self.registry)
        self._pictures = Counter("catalens_pictures", "Pictures answered", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "catalens_request_seconds", "Time of a request", buckets=SECONDS, registry=self.registry
        )
        sizes = Histogram("catalens_batch_pictures", "Pictures in a batch", buckets=PICTURES, registry=self.registry)
        depth = Gauge("catalens_queue_pictures", "Pictures that wait", registry=self.registry)
        pixels = settings.request_pixels
        limits = (settings.batch_size, settings.queue, pixels, REQUESTS_QUEUED * pixels)
        self.batcher = Batcher(predictor, *limits, sizes.observe)
        depth.set_function(lambda: self.batcher.depth)

    @property
    def ready(self) -> bool:
        """True while pictures are accepted."""
        return self.batcher.alive and not self.draining

    async def predict(self, request: Request, read: ReadBody | None = None) -> Answer | Response:
        """Answer a request for predictions, and count it; HTTPException where it is refused.

        `read` reads a body of another form than ours.
        """
        started, status = time.perf_counter(), 500
        self.in_flight += 1
        try:
            answer = await self._predict(request, read)
            status = 200
            return answer
        except HTTPException as refused:
            status = refused.status_code
            raise
        except ClientDisconnect:
            status = GONE
            return Response(status_code=GONE)
        except asyncio.CancelledError:  # the process ends without waiting
            status = 503
            raise later(503, "the server has ended: ask another, or come back") from None
        finally:
            self.in_flight -= 1
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.perf_counter() - started)

    async def _predict(self, request: Request, read: ReadBody | None) -> Answer:
        check_caller(request, self.settings)
        if not self.ready:
            raise later(503, "the server is ending: ask another, or come back")
        async with self._reader.products(request, read) as products:
            try:
                futures = self.batcher.submit([(self._query(one), one.pixels) for one in products if not one.failure])
            except QueueFullError as full:
                raise later(429, str(full), full.seconds) from full
            outcomes = iter(await self._outcomes(request.receive, futures))
            answers = [
                self._answer(one, None if one.failure else next(outcomes), len(products) == 1) for one in products
            ]
        return Answer(predictions=answers, calibrated=self.predictor.calibrated, model=self.name)

    def _query(self, one: Asked) -> bytes | Query:
        pictures = [picture.data for picture in one.pictures]
        return pictures[0] if len(pictures) == 1 and not one.texts else self.predictor.query(pictures, one.texts)

    def _answer(self, one: Asked, outcome: Prediction | BaseException | None, alone: bool) -> PictureAnswer:
        """Answer a product; HTTPException for one that is alone in its request and cannot be read."""
        bad = one.failure or Received()
        if isinstance(outcome, PredictorError) and alone:
            raise HTTPException(503, str(outcome))
        if not isinstance(outcome, Prediction):
            outcome = Prediction(None, error=bad.error if outcome is None else str(outcome))
        if alone and outcome.error is not None and not outcome.answer:
            raise HTTPException(bad.status, outcome.error)
        self._pictures.labels("failed" if outcome.error else "read").inc()
        return answer_of(self.predictor.prompt, outcome)

    async def _outcomes(
        self, receive: Receive, futures: Sequence[Future[Prediction]]
    ) -> list[Prediction | BaseException]:
        """Wait for pictures; those of a client that left, or whose time is up, are taken out of the queue."""
        seconds = self.settings.timeout
        together = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({together, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                return together.result()
            if gone.done():
                raise ClientDisconnect
            raise later(503, f"no answer within {seconds:g} s: come back, with fewer pictures")
        finally:
            for future in futures:
                future.cancel()
            gone.cancel()


def create_app(
    predictor: Predictor, settings: ServeSettings, card: ModelCard, network: Network | None = None
) -> FastAPI:
    """Make the app; its `state.service` is the Service. `network` leads the names of URLs elsewhere in tests."""
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken form has an answer, with the reason
    service = Service(predictor, settings, card.name, network)
    index = render_index(card, predictor.prompt, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="catalens",
        version=__version__,
        description=f"Reads {', '.join(spec.label for spec in predictor.prompt.fields)} from product pictures.",
        lifespan=lifespan,
        docs_url=None,  # these pages would load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    _add_routes(app, service, index)
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("static")), "static")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts), www_redirect=False)
    headers = HEADERS | {"Content-Security-Policy": policy_of(index)}
    app.add_middleware(_Guard, headers=headers, max_bytes=settings.max_bytes)
    return app


def _add_routes(app: FastAPI, service: Service, index: str) -> None:
    bearer = Depends(HTTPBearer(auto_error=False, description="The token that the server was given."))
    locked = [bearer] if service.settings.token else []
    body, responses = _description(service.predictor.prompt)

    @app.post(
        "/v1/predict",
        dependencies=locked,
        response_model=Answer,
        responses=responses,
        openapi_extra={"requestBody": body},
        summary="Read product pictures",
    )
    async def predict(request: Request) -> Answer | Response:
        """Fields with confidences, one entry a picture in the order asked; a picture among several that cannot be
        read has its own `error`."""
        return await service.predict(request)

    add_chat_routes(app, service, locked)

    @app.get(
        "/metrics",
        dependencies=locked,
        response_class=PlainTextResponse,
        responses={status: responses[status] for status in (401, 403)},
        summary="Prometheus metrics",
    )
    def metrics(request: Request) -> Response:
        check_caller(request, service.settings)
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Whether pictures are accepted")
    async def readyz() -> dict[str, str]:
        if not service.ready:
            raise later(503, "not accepting pictures")
        return {"status": "ready"}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(index, media_type="text/html")


def answer_of(prompt: PromptSpec, prediction: Prediction) -> PictureAnswer:
    """Put a prediction into the form of the API."""
    fields: dict[str, NumberAnswer | CategoryAnswer | FieldAnswer] = {}
    for spec in prompt.fields if prediction.values is not None else ():
        column = spec.column
        values = {
            "value": (prediction.values or {})[column],
            "confidence": prediction.confidence.get(column),
            "needs_review": column in prediction.needs_review,
        }
        if spec.kind == "number":
            low, high = prediction.intervals.get(column, (None, None))
            fields[column] = NumberAnswer(**values, low=low, high=high)
        elif known := prediction.distributions.get(column):
            likeliest = [Likely(value=str(value), probability=share) for value, share in known.top()]
            fields[column] = CategoryAnswer(**values, likeliest=likeliest)
        else:
            fields[column] = FieldAnswer(**values)
    return PictureAnswer(fields=fields, needs_review=prediction.for_a_person, error=prediction.error)


def _description(prompt: PromptSpec) -> tuple[dict[str, Any], dict[int | str, dict[str, Any]]]:
    """Describe the two forms of a request, and an answer or none by status, for OpenAPI."""
    body, reasons = DESCRIPTION["requestBody"], DESCRIPTION["refusals"]
    properties = body["content"][JSON]["schema"]["properties"]
    product = ProductSource.model_json_schema()
    del product["$defs"]  # a reference to it would be looked for in the whole description
    for own in (properties, product["properties"]):
        own["pictures"]["items"] = PictureSource.model_json_schema()
    properties["products"]["items"] = product
    form = body["content"][MULTIPART]["schema"]["properties"]
    form |= {name: {"type": "string"} for name in prompt.inputs}
    values: dict[str, Any] = {"text": "Red Tote Bag", "category": "BAGS", "number": 129.0}
    good = Prediction(
        values={spec.column: values[spec.kind] for spec in prompt.fields},
        confidence={spec.column: 0.64 if spec.kind == "number" else 0.97 for spec in prompt.fields},
        intervals={spec.column: (112.4, 148.1) for spec in prompt.fields if spec.kind == "number"},
    )
    answers = [answer_of(prompt, one) for one in (good, Prediction(values=None, error="cannot be decoded"))]
    example = Answer(predictions=answers, calibrated=True, model="demo").model_dump()
    detail = {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}
    answered = {"description": "one entry a picture", "content": {JSON: {"example": example}}}
    refused = {status: {"description": reason, "content": {JSON: detail}} for status, reason in reasons.items()}
    return body, {200: answered} | refused


class _Guard:
    """Outermost of the app: headers on every answer, and a connection that ends well where a body was not read."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str], max_bytes: int) -> None:
        self._app, self._headers, self._max_bytes = app, headers, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        named = dict(scope["headers"])
        unread = b"transfer-encoding" in named or named.get(b"content-length", b"0") != b"0"

        async def received() -> Message:
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
                        await self._linger(received)
            await send(message)

        return await self._app(scope, received, guarded)

    async def _linger(self, receive: Receive) -> None:
        """Read on: a socket that is closed on unread bytes is reset, and the answer is lost with it."""
        left = 2 * self._max_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while left > 0 and (message := await receive()).get("more_body"):
                    left -= len(message["body"])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
