"""Who reads pictures; what is read from one is a `Prediction` (catalens.predictions)."""

from collections.abc import Callable, Sequence
from typing import Protocol

from catalens.config import PromptSpec
from catalens.predictions import Prediction, record_columns, record_of

__all__ = ["Prediction", "Predictor", "record_columns", "record_of"]


class Predictor(Protocol):
    """Reads pictures. Not safe to call from two threads at once."""

    prompt: PromptSpec

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated; where not, they are the model's own."""
        ...

    def predict(
        self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """One prediction a picture, in their order; bytes that are no picture give one with an `error`.

        `progress` hears how many are done.
        """
        ...
