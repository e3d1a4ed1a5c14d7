"""The predictor of a run: its writer, its calibration and its rule of review, put together."""

import math
from collections.abc import Callable, Mapping, Sequence

from catalens.config import PromptSpec
from catalens.examples import parse_answer
from catalens.inference.calibration import Calibration
from catalens.inference.confidence import field_scores
from catalens.inference.decoding import Written
from catalens.inference.prediction import Prediction
from catalens.inference.writer import Engine


class RunPredictor:
    """Reads pictures with an engine; see `Predictor`.

    `accept_error` maps columns to the largest share of wrong values that is borne among those not marked for review.
    Where no threshold keeps to it, or nothing is calibrated, every value of the column is marked.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: PromptSpec,
        calibration: Calibration | None = None,
        accept_error: Mapping[str, float] | None = None,
    ) -> None:
        self.engine, self.prompt, self.calibration = engine, prompt, calibration
        self.targets = accept_error or {}
        self.thresholds = {
            column: calibration.threshold(column, target) if calibration else None
            for column, target in self.targets.items()
        }
        """By column of the rule: values with less confidence are marked; None marks all."""

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated; where not, they are the model's own."""
        return self.calibration is not None

    def predict(
        self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """One prediction a picture, in their order; bytes that are no picture give one with an `error`."""
        return [self.judge(written) for written in self.engine.write(pictures, progress)]

    def judge(self, written: Written) -> Prediction:
        """What an answer says, and how sure that is."""
        everything = tuple(field.column for field in self.prompt.fields)
        if written.error is not None:
            return Prediction(None, needs_review=everything, error=written.error)
        answer = parse_answer(self.prompt, written.text)
        if answer.values is None:
            said = f"answer {written.text!r} {answer.error}"
            return Prediction(None, needs_review=everything, answer=written.text, error=said)
        confidence, intervals = {}, {}
        scores = field_scores(self.prompt, written)
        for field in self.prompt.fields:
            score = scores[field.column]
            if self.calibration is None:
                confidence[field.column] = math.exp(score.log_probability)
                continue
            confidence[field.column] = self.calibration.apply(field.column, score)
            if field.kind == "number":
                bounds = self.calibration.bounds(field.column, float(answer.values[field.column]))
                intervals |= {field.column: bounds} if bounds else {}
        unsure = tuple(
            column
            for column, threshold in self.thresholds.items()
            if threshold is None or confidence[column] < threshold
        )
        return Prediction(answer.values, confidence, intervals, unsure, written.text)
