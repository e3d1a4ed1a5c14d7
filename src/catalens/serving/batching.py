"""Pictures of many requests -> batches for one predictor, which only one thread may use.

    request 1: a b        batch 1: a b c d   (all that waits, at most `batch_size` pictures and `batch_pixels` of
                                             them; it waits 5 ms for more to come)
    request 2: c          batch 2: e         (f was dropped: its client left before its turn)
    request 3: d e f

Who waits for a picture holds its Future; to cancel that is to take the picture out of the queue.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from catalens.examples import Query
from catalens.inference.predictor import Predictor
from catalens.predictions import Prediction

LINGER = 0.005  # seconds that a picture waits for others to share its batch
logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """Lack of room for the pictures of a request."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full: come back in {seconds:.0f} s")
        self.seconds = seconds


class PredictorError(Exception):
    """Failure of the predictor on a picture that was alone."""


class _Job(NamedTuple):
    asked: bytes | Query
    pixels: int
    outcome: Future[Prediction]


class Batcher:
    """The one thread that predicts, and the queue before it."""

    def __init__(
        self,
        predictor: Predictor,
        batch_size: int,
        queue: int,
        batch_pixels: int,
        queue_pixels: int,
        on_batch: Callable[[int], None] = lambda pictures: None,
    ) -> None:
        """Limit pixels like pictures, as decoding them takes time; `on_batch` gets the size of each batch."""
        self._predictor, self._on_batch = predictor, on_batch
        self._batch_size, self._queue = batch_size, queue
        self._batch_pixels, self._queue_pixels = batch_pixels, queue_pixels
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds_a_picture = 0.0
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)

    def start(self) -> None:
        """Begin to predict."""
        self._thread.start()

    def close(self) -> None:
        """Predict what waits, then end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """True while pictures that are given will be read."""
        return self._thread.is_alive() and not self._closing

    @property
    def depth(self) -> int:
        """Pictures that wait."""
        with self._changed:
            return sum(not job.outcome.cancelled() for job in self._waiting)

    def submit(self, asked: Sequence[tuple[bytes | Query, int]]) -> list[Future[Prediction]]:
        """Queue what a request asks and its pixels, all or none; QueueFullError where there is no room."""
        jobs = [_Job(one, pixels, Future()) for one, pixels in asked]
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.outcome.cancelled())
            together = [*self._waiting, *jobs]
            if len(together) > self._queue or sum(job.pixels for job in together) > self._queue_pixels:
                raise QueueFullError(min(30.0, max(1.0, len(self._waiting) * self._seconds_a_picture)))
            self._waiting += jobs
            self._changed.notify()
        return [job.outcome for job in jobs]

    def _work(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            self._on_batch(len(batch))
            self._predict(batch)
            seconds = (time.monotonic() - started) / len(batch)
            self._seconds_a_picture += 0.2 * (seconds - self._seconds_a_picture)

    def _take(self) -> list[_Job]:
        """Wait for the next batch; empty at the end."""
        batch: list[_Job] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                self._changed.wait_for(lambda: len(self._waiting) >= self._batch_size or self._closing, LINGER)
                if self._closing and not self._waiting:
                    return []
                room = self._batch_pixels
                while (
                    self._waiting and len(batch) < self._batch_size and (not batch or self._waiting[0].pixels <= room)
                ):
                    job = self._waiting.popleft()
                    if job.outcome.set_running_or_notify_cancel():
                        batch.append(job)
                        room -= job.pixels
        return batch

    def _predict(self, batch: Sequence[_Job]) -> None:
        """Answer a batch; where the predictor fails, each picture alone, so that one does not fail its neighbours."""
        try:
            predictions = self._predictor.predict([job.asked for job in batch])
            pairs = list(zip(batch, predictions, strict=True))
        except Exception as error:
            logger.error("the model failed on %d pictures: %s: %s", len(batch), type(error).__name__, error)
            if len(batch) == 1:
                batch[0].outcome.set_exception(PredictorError("the model failed on this picture"))
            else:
                for job in batch:
                    self._predict([job])
        else:
            for job, prediction in pairs:
                job.outcome.set_result(prediction)
