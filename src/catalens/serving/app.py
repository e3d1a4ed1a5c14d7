"""The HTTP API and the page, around one predictor.

    POST /v1/predict     pictures -> fields with confidences (`answers`)
    GET  /               the page: drop photos, look, correct, download
    GET  /healthz        200 while the process lives
    GET  /readyz         200 while pictures are accepted, else 503
    GET  /metrics        Prometheus
    GET  /openapi.json   the description, with examples

`intake` reads a request, `batching` shares the predictor among requests, `limits` refuses, `page` draws the page.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from catalens import __version__
from catalens.config import PromptSpec
from catalens.inference import Prediction, Predictor
from catalens.preparing.fetch import Network
from catalens.serving.answers import (
    Answer,
    PictureAnswer,
    answer_of,
    described_answers,
    described_refusals,
    described_request,
)
from catalens.serving.batching import Batcher, PredictorError, QueueFullError
from catalens.serving.intake import Intake
from catalens.serving.limits import Guard, ServeSettings, check_caller
from catalens.serving.page import ModelCard, policy_of, render_index

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PICTURES = (1, 2, 4, 8, 16, 32, 64)
GONE = 499  # nginx's status for a client that left; nobody receives it, it is counted


class Service:
    """A predictor that many requests share."""

    def __init__(self, predictor: Predictor, settings: ServeSettings, name: str, network: Network | None) -> None:
        self.settings, self.registry = settings, CollectorRegistry()
        self.draining = False
        """Set when the server is to end: nothing new is accepted."""
        self.in_flight = 0
        """Requests for predictions that are not answered yet."""
        self._predictor, self._name = predictor, name
        self._intake = Intake(settings, network)
        self._requests = Counter("catalens_requests", "Requests for predictions", ["status"], registry=self.registry)
        self._pictures = Counter("catalens_pictures", "Pictures answered", ["outcome"], registry=self.registry)
        self._seconds = Histogram(
            "catalens_request_seconds", "Time of a request", buckets=SECONDS, registry=self.registry
        )
        sizes = Histogram("catalens_batch_pictures", "Pictures in a batch", buckets=PICTURES, registry=self.registry)
        pixels = (settings.request_pixels, settings.queue_pixels)
        self.batcher = Batcher(predictor, settings.batch_size, settings.queue, *pixels, sizes.observe)
        depth = Gauge("catalens_queue_pictures", "Pictures that wait", registry=self.registry)
        depth.set_function(lambda: self.batcher.depth)

    @property
    def prompt(self) -> PromptSpec:
        """What is read from a picture."""
        return self._predictor.prompt

    @property
    def ready(self) -> bool:
        """Whether pictures are accepted."""
        return self.batcher.alive and not self.draining

    async def predict(self, request: Request) -> Answer | Response:
        """Answer a request for predictions, and count it; HTTPException where it is refused."""
        started, status = time.perf_counter(), 500
        self.in_flight += 1
        try:
            answer = await self._predict(request)
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
            raise _later(503, "the server has ended: ask another, or come back", 1) from None
        finally:
            self.in_flight -= 1
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.perf_counter() - started)

    async def _predict(self, request: Request) -> Answer:
        check_caller(request, self.settings)
        if not self.ready:
            raise _later(503, "the server is ending: ask another, or come back", 1)
        async with self._intake.pictures(request) as received:
            try:
                futures = self.batcher.submit([(one.data, one.pixels) for one in received if one.error is None])
            except QueueFullError as full:
                raise _later(429, str(full), full.seconds) from full
            outcomes = iter(await self._awaited(request.receive, futures))
            answers: list[PictureAnswer] = []
            for one in received:
                outcome = next(outcomes) if one.error is None else Prediction(None, error=one.error)
                if isinstance(outcome, PredictorError) and len(received) == 1:
                    raise HTTPException(503, str(outcome))
                if isinstance(outcome, BaseException):
                    outcome = Prediction(None, error=str(outcome))
                if len(received) == 1 and outcome.error is not None and not outcome.answer:
                    raise HTTPException(one.status, outcome.error)
                self._pictures.labels("failed" if outcome.error else "read").inc()
                answers.append(answer_of(self.prompt, outcome))
        return Answer(predictions=answers, calibrated=self._predictor.calibrated, model=self._name)

    async def _awaited(
        self, receive: Receive, futures: Sequence[Future[Prediction]]
    ) -> list[Prediction | BaseException]:
        """What comes of pictures; those of a client that left, or whose time is up, are taken out of the queue."""
        seconds = self.settings.timeout
        together = asyncio.create_task(_all(futures))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({together, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                return together.result()
            if gone.done():
                raise ClientDisconnect
            raise _later(503, f"no answer within {seconds:g} s: come back, with fewer pictures", 1)
        finally:
            for future in futures:
                future.cancel()
            together.cancel()
            gone.cancel()


def create_app(
    predictor: Predictor, settings: ServeSettings, card: ModelCard, network: Network | None = None
) -> FastAPI:
    """The app; its `state.service` is the Service. `network` leads the names of URLs elsewhere in tests."""
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
    headers = {
        "Content-Security-Policy": policy_of(index),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    app.add_middleware(Guard, headers=headers, most_bytes=settings.max_bytes)
    return app


def _add_routes(app: FastAPI, service: Service, index: str) -> None:
    bearer = Depends(HTTPBearer(auto_error=False, description="The token that the server was given."))
    locked = [bearer] if service.settings.token else []

    @app.post(
        "/v1/predict",
        dependencies=locked,
        response_model=Answer,
        responses=described_answers(service.prompt),
        openapi_extra=described_request(),
        summary="Read product pictures",
    )
    async def predict(request: Request) -> Answer | Response:
        """Fields with confidences, one entry a picture in the order asked; a picture among several that cannot be
        read has its own `error`."""
        return await service.predict(request)

    @app.get(
        "/metrics",
        dependencies=locked,
        response_class=PlainTextResponse,
        responses=described_refusals(401, 403),
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
            raise _later(503, "not accepting pictures", 1)
        return {"status": "ready"}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(index, media_type="text/html")


async def _all(futures: Sequence[Future[Prediction]]) -> list[Prediction | BaseException]:
    return await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _later(status: int, detail: str, seconds: float) -> HTTPException:
    return HTTPException(status, detail, {"Retry-After": f"{seconds:.0f}"})
