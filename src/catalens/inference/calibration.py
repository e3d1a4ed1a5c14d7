"""Confidence calibration: Platt scaling, split-conformal intervals, review thresholds.

    {"format": 2, "rows": 402, "products": 167, "candidates": 3, "interval": 0.9, "best": "sha256:6f0...", "fields": {
       "title":      {"kind": "text", "slope": 0.71, "offset": -0.84, "steps": [[0.9985, 1, 0], [0.9983, 2, 0], ...]},
       "full_price": {"kind": "number", ..., "bound": {"by": "ratio", "shape": "even", "size": 1.18}}}}

is `calibration.json` in a run's folder, learned (`fitting.py`) from the answers to its validation rows, one row a
product: photos of one product are right or wrong together, and would count for more than they are.

- Confidence is the probability that a value is right (metrics.correctness; a number within the run's tolerance).
  The model's own probability, as log-odds, goes through a logistic function whose slope and offset are fitted to the
  validation rows, their labels smoothed, so that rows that are all right or all wrong give no certainty (Platt,
  1999). The slope leans towards 1, which keeps the order of the answers where no row is wrong, and is never
  negative: a less likely answer never gets a higher confidence. A value is written after those of the fields before
  it, and is seldom right where they are wrong: the probability is that of the value alone, or jointly with theirs,
  whichever fits the validation rows better. The former does where many wordings of a title would be right.
- Intervals are split conformal (Vovk et al., 2005; Lei et al., 2018): a quantile of the validation errors bounds a
  new error as often as promised, whatever the errors' distribution; in shares where all truths are above 0. They are
  as wide for all rows (`even`), or scaled by the spread of the model's distribution (`spread`; Lei et al., 2018), or
  its own quantiles, moved (`quantiles`; Romano et al., 2019), where the validation rows show these to be narrower.
- Thresholds test "the error on accepted rows is above the target" by exact binomial bounds (Clopper & Pearson, 1934),
  in a sequence that is fixed beforehand, so that many thresholds may be tried (Angelopoulos et al., 2021, Learn then
  Test; Geifman & El-Yaniv, 2017, ask for the same). Since both orders of the answers are the model's own, the same
  rows may fit the slope and test the thresholds.

The same rows also chose the checkpoint, the best of `candidates`, and the order, and flatter them. So thresholds are
tested at a risk divided by the number of choices (Bonferroni), and intervals hold for the worst of so many. To keep
half of the rows for the calibration alone would cost more: to accept where no row is wrong takes as many rows as 40
candidates do.

All of this takes new products to be like those of the validation split.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from catalens.config import Frozen, Kind, NumberSpec, PromptSpec
from catalens.distributions import Distribution
from catalens.errors import CheckpointError
from catalens.files import EXPORT, file_hash, model_folder
from catalens.inference.records import FieldScore

FILE = "calibration.json"
SPREAD, TAILS = 0.68, 0.9
"""Mass of a distribution that tells its spread, one standard deviation to either side, and of its interval."""
NARROWEST = 0.01
"""Least spread, as a share of the value: no distribution is sure of every digit."""
STEPS = 1000
"""Most thresholds that are kept for a field."""
SUREST = -1e-6
"""Log probabilities above this are rounding errors of float32."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**9)]


Shape = Literal["even", "spread", "quantiles"]


class Bound(Frozen):
    """Bound on the error of a number: from `value / size` to `value * size`, or `size` to either side.

    `spread`: `size` is of one standard deviation of the row's distribution; `quantiles`: of what its `TAILS` are
    moved by, outwards above 1, or above 0 where it is a distance.
    """

    by: Literal["ratio", "distance"]
    """`ratio` where every truth of the calibration was above 0, else `distance`, in the field's unit."""
    shape: Shape = "even"
    size: Annotated[float, Field(ge=-1e30, le=1e30)]

    def around(self, value: float, distribution: Distribution | None) -> tuple[float, float] | None:
        """Bound a truth; None where a number of 0 or less is to be bounded by ratio, or a distribution is missing."""
        begun = frame(self.by, self.shape, value, distribution)
        if begun is None:
            return None
        low, high, unit = begun
        if self.by == "ratio":
            return low / self.size**unit, high * self.size**unit
        return low - self.size * unit, high + self.size * unit


def frame(by: str, shape: str, value: float, distribution: Distribution | None) -> tuple[float, float, float] | None:
    """Give what a bound begins from, low and high, and the unit of its size, where it is by ratio of its logarithm.

    None where there is no such: a number of 0 or less by ratio, no distribution where the shape needs one.
    """
    low, high = value, value
    if shape != "even":
        if distribution is None:
            return None
        low, high = distribution.around(TAILS if shape == "quantiles" else SPREAD)
    if by == "ratio" and min(low, value) <= 0:
        return None
    if shape != "spread":
        return low, high, 1.0
    if by == "ratio":
        return value, value, max(math.log(high / low) / 2, NARROWEST)
    return value, value, max((high - low) / 2, NARROWEST * abs(value)) or 1.0


class FieldCalibration(Frozen):
    """Calibration of one field."""

    kind: Kind
    slope: Annotated[float, Field(ge=0, le=1e9)]
    offset: Annotated[float, Field(ge=-1e9, le=1e9)]
    joint: bool = False
    """Its probability is taken jointly with the fields before it."""
    orders: Annotated[int, Field(ge=1, le=2)] = 1
    """Orders of the answers, alone or jointly, of which the rows chose this one."""
    steps: tuple[tuple[Share, Count, Count], ...] = Field(max_length=STEPS)
    """From strict to lax: a confidence, how many calibration rows have at least that, how many of those are wrong."""
    bound: Bound | None = None
    """Of a number; None where the rows were too few."""


class Calibration(Frozen):
    """Calibration of a run: scores -> confidences, intervals and thresholds, by column."""

    format: Literal[2] = 2
    rows: Count
    """Validation rows of the products that it was learned from."""
    products: Count
    """How many products these are; one row of each was learned from, those without values included."""
    candidates: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Checkpoints of which the validation rows chose the best."""
    best: Annotated[str, Field(max_length=100)] = ""
    """Content hash of the model that wrote the answers; set by `save`."""
    interval: Annotated[float, Field(gt=0, lt=1)]
    """How often an interval holds the truth."""
    number: NumberSpec = NumberSpec(estimate="mode")
    """How the numbers were read, and when they were right."""
    fields: Mapping[str, FieldCalibration]

    def apply(self, column: str, score: FieldScore) -> float:
        """Give the probability that a field with this score is right."""
        field = self.fields[column]
        return float(confidences(field.slope, field.offset, log_odds(field.kind, [score], field.joint))[0])

    def bounds(
        self, column: str, value: float, distribution: Distribution | None = None
    ) -> tuple[float, float] | None:
        """Bound the truth of a number, as often as `interval` says.

        None where the calibration rows were too few for any finite bounds (8 or fewer for an interval of .9), and
        where a value of 0 or less stands in a column whose truths are all above 0.
        """
        bound = self.fields[column].bound
        return bound and bound.around(value, distribution)

    def threshold(self, column: str, target: float, confidence: float = 0.95) -> float | None:
        """Find the lowest confidence from which on values may be used unseen; None where none is proved good enough.

        In at least `confidence` of all draws of the calibration rows, what they chose included, the share of wrong
        values among the new rows with at least that confidence is at most `target`. Half of the risk goes to the
        question whether all rows may be accepted, half to a walk from strict to lax, which ends at the first that
        fails: where a few errors are spread over all rows, it would end early. It starts where one wrong row would be
        borne, or, where the rows are too few for that, where none would be.
        """
        steps, risk = self.fields[column].steps, (1 - confidence) / 2
        risk /= self.candidates * self.fields[column].orders
        if not steps:
            return None
        values, rows, wrong = np.array(steps).T
        holds = is_below(target, wrong, rows, risk)
        if holds[-1]:
            return float(values[-1])
        borne = float(is_below(target, np.ones(1), rows[-1:], risk)[0])
        walk = np.flatnonzero(is_below(target, np.full_like(rows, borne), rows, risk))
        if not len(walk) or not holds[walk[0]]:
            return None
        return float(values[walk[np.argmin(holds[walk])] - 1])

    def save(self, run: Path) -> None:
        """Write `calibration.json` into a run's folder, for the model that is there."""
        tied = self.model_copy(update={"best": model_hash(model_folder(run))})
        (run / FILE).write_text(tied.model_dump_json() + "\n", encoding="utf-8")


def load_calibration(run: Path, prompt: PromptSpec) -> Calibration | None:
    """Load the calibration of a run or an export, None where it has none.

    Raises CheckpointError where it is damaged, of other fields than the prompt's, or of another model.
    """
    path, exported = run / FILE, (run / EXPORT).is_file()
    fix = "export the run again" if exported else f"delete it and run `catalens evaluate {run}`"
    try:
        found = Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CheckpointError(f"{path}: {where} is wrong ({first['msg']}): {fix}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): {fix}") from error
    if {name: field.kind for name, field in found.fields.items()} != {f.column: f.kind for f in prompt.fields}:
        raise CheckpointError(f"{path} is of other fields than the run's prompt: {fix}")
    if found.best != model_hash(model_folder(run)):
        raise CheckpointError(f"{path} is of another model than {model_folder(run)}: {fix}")
    return found


def model_hash(best: Path) -> str:
    """Content hash of what decides the answers of a saved model: weights, prompt, answer schema."""
    digest = hashlib.sha256()
    patterns = ("*.safetensors", "*.onnx", "*.onnx.data", "prompt.json", "answers.json")
    for path in sorted(path for pattern in patterns for path in best.glob(pattern)):
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def log_odds(kind: Kind, scores: Sequence[FieldScore], joint: bool = False) -> NDArray[np.float64]:
    """Log-odds of each field's probability, [n], alone or jointly with the fields before it.

    Of a text the mean a token, so that long titles are not doubted.
    """
    own = [s.log_probability / (s.tokens if kind == "text" else 1) for s in scores]
    logs = np.array([one + joint * s.before for one, s in zip(own, scores, strict=True)], float)
    logs = np.minimum(logs, SUREST)
    return logs - np.log(-np.expm1(logs))


def confidences(slope: float, offset: float, odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities by the logistic function of scaled log-odds, [n].

    Of libm's exponential: many rows are as sure as can be, and have to the bit the threshold that they were kept by.
    """
    exponents = [min(-x, 709.0) for x in (slope * odds + offset).tolist()]
    return np.array([1 / (1 + math.exp(x)) for x in exponents])


def is_below(target: float, wrong: NDArray[np.float64], rows: NDArray[np.float64], risk: float) -> NDArray[np.bool_]:
    """Test whether the true share of wrong rows is at most `target`: else so few were wrong with a chance of `risk`.

    The exact binomial test, whose confidence bound is Clopper and Pearson's.
    """
    if target <= 0 or target >= 1:
        return np.full(len(rows), target >= 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(rows) + 1)))])  # of the factorials
    chances = []
    for all, bad in zip(rows.astype(int), wrong.astype(int), strict=True):
        k = np.arange(bad + 1)
        terms = logs[all] - logs[k] - logs[all - k] + k * math.log(target) + (all - k) * math.log1p(-target)
        chances.append(np.exp(terms).sum())
    return (np.array(chances) <= risk) & (wrong < rows)
