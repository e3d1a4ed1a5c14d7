"""The recipe as a whole, and what evaluation and tracking do."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from catalens.config.prompt import Frozen, PromptSpec
from catalens.config.training import TrainingSpec
from catalens.tolerance import Tolerance

BORNE = 0.05
"""Share of wrong values that is borne where nothing is said."""


class EvaluationSpec(Frozen):
    """Evaluation of a run."""

    split: Literal["test", "validation"] = "test"
    """Split whose rows are generated; training never saw `test`, and chose its best checkpoint by `validation`."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Score a sample of this many rows, the same one every time; unset: all."""
    batch_size: int = Field(default=16, ge=1)
    """Rows generated together."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest free answer; one that is cut off does not parse and counts as wrong."""
    interval: float = Field(default=0.9, gt=0, lt=1)
    """Share of truths that the interval around a number is to hold."""
    accept_error: float | dict[str, float] = BORNE
    """Share of wrong values that the rule of review is judged for, field by field; or by column, such as
    `{full_price: 0.1}`, and 0.05 for the columns that are not named."""
    before: bool = True
    """Also score the base model as it was before training."""
    image_use: bool = True
    """Also score with blanked and with shuffled pictures: the score has to fall."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples behind each 95 % interval."""

    @field_validator("accept_error", mode="before")
    @classmethod
    def _shares(cls, told: Any) -> Any:
        given = told if isinstance(told, dict) else {"": told}
        try:
            shares = {name: Tolerance.parse(one).size for name, one in given.items()}
        except ValueError:
            shares = {"": -1.0}
        if not all(0 < share < 1 for share in shares.values()):
            raise ValueError(f"{told!r} is no share of wrong values: give one such as 5%, or one for each column")
        return shares if isinstance(told, dict) else shares[""]

    def bearable(self, columns: Iterable[str]) -> dict[str, float]:
        """`accept_error` of each column."""
        told = self.accept_error
        return {name: told.get(name, BORNE) if isinstance(told, dict) else told for name in columns}


class NumberSpec(Frozen):
    """Numbers that are read: what stands for their distribution, and how far off one is still right."""

    estimate: Literal["median", "mean", "mode"] = "median"
    """Number that is written: the median of the model's distribution, which errs least on average; the value nearest
    to its mean; or the mode: everything is what the model writes token by token, as in earlier versions."""
    within: str | float = "10%"
    """Largest error of a number that counts as right: a share of the truth such as `10%`, or in the field's unit."""

    @field_validator("within")
    @classmethod
    def _readable(cls, within: str | float) -> str | float:
        Tolerance.parse(within)
        return within

    @property
    def tolerance(self) -> Tolerance:
        """`within`, read."""
        return Tolerance.parse(self.within)


class TrackingSpec(Frozen):
    """Tracking of a run."""

    to: Literal["wandb", "trackio", "tensorboard", "none"] = "wandb"
    """Weights & Biases (offline when nobody is logged in), trackio or TensorBoard on this machine, or nowhere."""
    project: str = "catalens"
    """Project in W&B or trackio; the entity is the one of the login."""
    examples: int = Field(default=16, ge=0)
    """Validation pictures in the table of what the model reads; 0 keeps every picture home."""
    model: bool = True
    """Store the best model as an artifact."""


class Recipe(Frozen):
    """Everything about a run."""

    catalog: str
    """Folder of the catalogue, relative to the current directory."""
    model: str = "tiny"
    """A hub id, a local folder, a run whose best model is to be trained on, or `tiny` for the one that ships here."""
    num_crops: Annotated[int, Field(ge=1)] | None = None
    """Most high-resolution crops of a picture, the big lever on cost; unset: what the processor was saved with."""
    prompt: PromptSpec = PromptSpec()
    """Question, fields and number format."""
    training: TrainingSpec = TrainingSpec()
    """Settings of the training."""
    number: NumberSpec = NumberSpec()
    """Reading of numbers, and the error within which they are right."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Settings of the scoring."""
    tracking: TrackingSpec = TrackingSpec()
    """Settings of the tracking."""

    @model_validator(mode="after")
    def _known_metric(self) -> Self:
        from catalens.metrics import figure_names  # brings scikit-learn, which no --help should wait for

        names = figure_names({field.column: field.kind for field in self.prompt.fields})
        metric = self.training.metric_for_best_model
        if metric not in names:
            raise ValueError(
                f"training.metric_for_best_model is {metric!r}{suggestion(metric, names)}; "
                f"the choices are {', '.join(sorted(names))}"
            )
        if metric != "loss" and not self.training.validation_rows:
            raise ValueError(f"training.metric_for_best_model {metric!r} needs training.validation_rows above 0")
        return self

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        told, columns = self.evaluation.accept_error, [field.column for field in self.prompt.fields]
        for name in told if isinstance(told, dict) else ():
            if name not in columns:
                raise ValueError(f"evaluation.accept_error names {name!r}{suggestion(name, columns)}")
        return self


def suggestion(name: str, known: Sequence[str] | set[str]) -> str:
    """`: did you mean ...?` with the nearest known name, or all of them."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(known))})"
