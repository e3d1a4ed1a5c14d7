"""A predictor that knows nothing and always says the same of the same bytes: swapped or lost answers show.

    guess(b"...")    Prediction({"title": "Bag 3f8a91c2", "kind": "BAGS", "price": 143.21}, ...)

Alone it predicts as `catalens predict` does, in a process that can be killed:

    python tests/inference/guessing.py table.csv --out out.jsonl --pause 0.01
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from catalens.catalog import open_picture
from catalens.config import FieldSpec, PromptSpec
from catalens.errors import CatalensError, PictureError
from catalens.inference import BatchSpec, InputSpec, Outcome, open_input, predict_to
from catalens.predictions import Prediction

PROMPT = PromptSpec(
    fields=(
        FieldSpec(column="title", label="Product", kind="text"),
        FieldSpec(column="kind", label="Category", kind="category"),
        FieldSpec(column="price", label="Price", kind="number"),
    )
)


def guess(picture: bytes) -> Prediction:
    """What is said of a picture, whoever asks and with whatever beside it."""
    try:
        open_picture(picture)
    except PictureError as error:
        return Prediction(None, error=f"picture: {error}")
    digest = hashlib.sha256(picture).digest()
    price, share = int.from_bytes(digest[:2], "big") / 100, digest[2] / 255
    return Prediction(
        values={"title": f'Bag "{digest.hex()[:8]}", red', "kind": ("BAGS", "HATS")[digest[3] % 2], "price": price},
        confidence={"title": share, "kind": 1 - share, "price": 1 / 3},
        intervals={"price": (price * 0.9, price * 1.1)},
        needs_review=("title",) if share < 0.5 else (),
    )


class Guesser:
    """A predictor by `guess`."""

    prompt = PROMPT
    calibrated = False

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.asked: list[int] = []
        """Pictures of each call."""

    def predict(
        self, pictures: Sequence[bytes], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        self.asked.append(len(pictures))
        predictions = []
        for picture in pictures:
            time.sleep(self.pause)
            predictions.append(guess(picture))
            on_progress(len(predictions))
        return predictions


def main() -> Outcome:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=2)
    given = parser.parse_args()
    spec = BatchSpec.model_validate({"batch_size": given.batch_size, "download": {"allow_private_hosts": True}})
    load = partial(Guesser, given.pause)
    return predict_to(given.out, open_input(given.source, InputSpec()), load, spec, {"run": "guesser"})


if __name__ == "__main__":
    try:
        main()
    except CatalensError as error:
        sys.exit(f"error: {error}")
