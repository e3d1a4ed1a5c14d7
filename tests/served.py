"""A predictor whose answers follow from the bytes of a picture, behind the real server.

    with serving(FakePredictor()) as server:
        server.post(jpeg).json()["predictions"][0]["fields"]["title"]["value"] == expected(jpeg)["title"]

An answer that went to another picture, or another request, shows. Alone, for benchmarks and for processes that get
signals:  python tests/served.py --port 0 --seconds 0.01
"""

import argparse
import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import requests

from catalens.catalog import open_picture
from catalens.config import PromptSpec
from catalens.errors import PictureError
from catalens.predictions import Prediction
from catalens.serving import ModelCard, ServeSettings, address_of, create_app, make_server, open_socket, run_server

CARD = ModelCard("fake", "# fake\n\nReads the bytes, not the picture: <b>not bold</b>.")


def expected(picture: bytes) -> dict[str, Any]:
    """What the fake predictor reads in a picture."""
    digest = hashlib.sha256(picture).hexdigest()
    return {"title": f"Bag {digest[:12]}", "category3_code": "BAGS", "full_price": int(digest[:4], 16) / 4}


class FakePredictor:
    """Reads titles out of hashes, at `seconds` a batch; fails on batches with a picture of `poison`."""

    prompt = PromptSpec()
    calibrated = True

    def __init__(self, seconds: float = 0.0, poison: frozenset[bytes] = frozenset()) -> None:
        self.seconds, self.poison = seconds, poison
        self.batches: list[list[bytes]] = []
        self.go_on = threading.Event()
        """Cleared, it holds the predictor back."""
        self.go_on.set()

    def predict(self, pictures: Sequence[bytes], progress: Any = lambda done: None) -> list[Prediction]:
        self.batches.append(list(pictures))
        del self.batches[:-100]
        self.go_on.wait(30)
        time.sleep(self.seconds)
        if self.poison & set(pictures):
            raise RuntimeError("out of memory")
        return [self._read(picture) for picture in pictures]

    def _read(self, picture: bytes) -> Prediction:
        try:
            open_picture(picture)
        except PictureError as error:
            return Prediction(None, error=str(error))
        values = expected(picture)
        price = values["full_price"]
        review = ("full_price",) if int(price) % 2 else ()
        sure = {"title": 0.97, "category3_code": 0.99, "full_price": 0.64}
        return Prediction(values, sure, {"full_price": (price * 0.9, price * 1.1)}, review, "Product: ...")


class Served:
    """A server in a thread of this process."""

    def __init__(self, predictor: FakePredictor, settings: ServeSettings, card: ModelCard, network: Any) -> None:
        self.predictor, self.settings = predictor, settings
        self.app = create_app(predictor, settings, card, network)
        self.service = self.app.state.service
        self.listening = open_socket("127.0.0.1", 0)
        self.address = address_of(self.listening)
        self.port = self.listening.getsockname()[1]
        self.server = make_server(self.app)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.listening])), daemon=True)

    def post(self, *pictures: bytes, **options: Any) -> requests.Response:
        files = [("pictures", ("photo.jpg", picture, "image/jpeg")) for picture in pictures]
        return self.request("POST", "/v1/predict", files=files, **options)

    def post_json(self, body: Any, **options: Any) -> requests.Response:
        return self.request("POST", "/v1/predict", json=body, **options)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.address + path, timeout=30, **options)

    def raw(self, *parts: bytes, half: bool = False, first: bool = False) -> bytes:
        """Bytes past any HTTP library, and all that comes back until the server hangs up.

        `half`: hang up at once; `first`: when something came.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            for part in parts:
                connection.sendall(part)
            if first:
                return connection.recv(65536)
            return b"" if half else b"".join(iter(lambda: connection.recv(65536), b""))

    def metric(self, line: str) -> float:
        return metric(self.address, line)


def metric(address: str, line: str) -> float:
    """A value of /metrics, by name and labels; 0 where there is none yet."""
    with requests.Session() as session:
        session.trust_env = False
        lines = session.get(f"{address}/metrics", timeout=30).text.splitlines()
    return float(next((text.split()[-1] for text in lines if text.startswith(line + " ")), "0"))


@contextmanager
def serving(
    predictor: FakePredictor | None = None, card: ModelCard = CARD, network: Any = None, **settings: Any
) -> Iterator[Served]:
    """A server with these settings; afterwards it has ended by itself."""
    served = Served(predictor or FakePredictor(), ServeSettings(**settings), card, network)
    served.thread.start()
    try:
        yield served
    finally:
        if isinstance(served.predictor, FakePredictor):
            served.predictor.go_on.set()
        served.server.should_exit = True
        served.thread.join(30)
        assert not served.thread.is_alive()


def until(holds: Callable[[], object]) -> None:
    """Wait for what other threads and processes bring about."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def main() -> None:
    """Serve until a signal; the first line of output is the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0, help="of a batch")
    options = parser.parse_args()
    listening = open_socket("127.0.0.1", options.port)
    print(address_of(listening), flush=True)
    run_server(create_app(FakePredictor(options.seconds), ServeSettings(), CARD), listening)


if __name__ == "__main__":
    main()
