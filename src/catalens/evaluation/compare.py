"""Is B really better than A? Runs side by side on the same rows: `compare.html`.

    comparison = compare([read_evaluation(Path("runs/a")), read_evaluation(Path("runs/b"))])
    comparison.differences[0].sentence   b is better than a in Product exact by 2.1 points (0.4 to 3.9).

Each run is held against the first. A difference is taken over resampled products, the same ones for both runs
(`metrics.differences`): what makes a row hard is hard for both, and falls out. The first figure of each field is a
claim, and all claims of a comparison share an error of 5 % by Holm's correction (1979); the other figures come with
their interval only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catalens import metrics
from catalens.config import LOWER_IS_BETTER, METRICS, FieldSpec, Kind
from catalens.errors import RecipeError
from catalens.evaluation.evaluated import Evaluated, common_fields, common_rows, with_pictures
from catalens.evaluation.gallery import gallery
from catalens.evaluation.judged import Judged
from catalens.evaluation.report import SCRIPT
from catalens.evaluation.tables import COSTS
from catalens.evaluation.wording import METRIC_NAMES, cell, listed, number, rows_of
from catalens.intervals import Figure, holm
from catalens.metrics import PRIMARY
from catalens.pages.base import write_page

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A figure of one run less that of the first."""

    run: str
    against: str
    field: FieldSpec
    metric: str
    figure: Figure
    """In the metric's unit; shares from 0 to 1."""
    p: float
    """Two-sided, of the bootstrap; not corrected."""
    claim: bool
    """Whether it is the first figure of its field, which alone is called better or worse."""
    shown: bool = False
    """Whether the claim holds after Holm's correction."""

    @property
    def better(self) -> bool:
        """Whether the run does better than the first, be that chance or not."""
        return (self.figure["value"] < 0) is (self.metric in LOWER_IS_BETTER) and self.figure["value"] != 0

    @property
    def sentence(self) -> str:
        """In plain words, with the interval."""
        what = f"{self.field.label} {METRIC_NAMES[self.metric]}"
        if not self.shown:
            figure = _points(self.metric, self.figure["value"], "+")
            low, high = (_points(self.metric, self.figure[key], "+", unit=False) for key in ("low", "high"))
            beyond = self.claim and self.figure["low"] * self.figure["high"] > 0
            chance = ", which may be chance among so many comparisons" if beyond else ""
            return f"No difference shown in {what}: {self.run} {figure} ({low} to {high}){chance}."
        verdict = "better" if self.better else "worse"
        low, high = sorted(abs(self.figure[key]) for key in ("low", "high"))
        by = _points(self.metric, abs(self.figure["value"]))
        return (
            f"{self.run} is {verdict} than {self.against} in {what} by {by} "
            f"({_points(self.metric, low, unit=False)} to {_points(self.metric, high, unit=False)})."
        )


@dataclass(frozen=True)
class Comparison:
    """Runs on the rows that all of them have."""

    runs: Sequence[Evaluated]
    fields: Sequence[FieldSpec]
    rows: Sequence[tuple[Judged, ...]]
    scores: Sequence[Mapping[str, Any]]
    """Of each run on these rows, in the form of `metrics.score`."""
    differences: Sequence[Difference]
    recipe: Mapping[str, Sequence[object]]
    """Keys of the recipe that differ: the value of each run."""

    @property
    def products(self) -> int:
        """How many products the rows show."""
        return len({row[0].id for row in self.rows})

    @property
    def claims(self) -> list[Difference]:
        """The differences that are called better or worse."""
        return [difference for difference in self.differences if difference.claim]


def compare(runs: Sequence[Evaluated], resamples: int = RESAMPLES) -> Comparison:
    """Hold runs against the first on the rows that all have; RecipeError where they cannot be compared.

    Raises CatalogError where they were evaluated on other rows, or on rows with other truths.
    """
    runs = _named(runs)
    if other := next((run for run in runs if run.metrics["split"] != runs[0].metrics["split"]), None):
        raise RecipeError(
            f"{runs[0].name} was evaluated on {runs[0].metrics['split']} rows and {other.name} on "
            f"{other.metrics['split']} rows: name one with --split"
        )
    fields = common_fields(runs)
    rows = common_rows(runs, fields)
    kinds: dict[str, Kind] = {field.column: field.kind for field in fields}
    truths = [row[0].truth for row in rows]
    predictions = [[row[n].prediction for row in rows] for n in range(len(runs))]
    products = [row[0].id for row in rows]
    differences = []
    for run, said in zip(runs[1:], predictions[1:], strict=True):
        found = metrics.differences(kinds, truths, predictions[0], said, products, resamples)
        for field in fields:
            for metric, figure in found[field.column].items():
                p, claim = figure.pop("p"), metric == PRIMARY[field.kind]
                differences.append(Difference(run.name, runs[0].name, field, metric, figure, p, claim))
    scores = [metrics.score(kinds, truths, said, products) for said in predictions]
    return Comparison(runs, fields, rows, scores, corrected(differences), _recipes(runs))


def _named(runs: Sequence[Evaluated]) -> list[Evaluated]:
    """Each run once, and called so that it can be told apart."""
    if len(runs) < 2 or len({run.folder.resolve() for run in runs}) < len(runs):
        raise RecipeError("give two runs or more, each of them once")
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Mark the claims that hold together, by Holm's correction."""
    held = iter(holm([one.p for one in differences if one.claim]))
    return [replace(one, shown=next(held)) if one.claim else one for one in differences]


def _recipes(runs: Sequence[Evaluated]) -> dict[str, list[object]]:
    flat = [_flat(run.recipe.model_dump(mode="json")) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key) for one in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def figures(comparison: Comparison) -> dict[str, Any]:
    """All figures as plain values, for `--json`."""
    return {
        "split": comparison.runs[0].metrics["split"],
        "rows": len(comparison.rows),
        "products": comparison.products,
        "runs": [
            {"name": run.name, "evaluation": str(run.folder), "rows": len(run.rows), "scores": scores}
            | {"cost": run.metrics.get("cost")}
            for run, scores in zip(comparison.runs, comparison.scores, strict=True)
        ],
        "differences": [
            {"run": one.run, "against": one.against, "column": one.field.column, "metric": one.metric}
            | one.figure
            | {"p": one.p, "claim": one.claim, "shown": one.shown, "sentence": one.sentence}
            for one in comparison.differences
        ],
        "recipe": comparison.recipe,
    }


# The page


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the page, with the rows about which the runs disagree."""
    apart = [row for row in comparison.rows if any(one.prediction != row[0].prediction for one in row)]
    names = [run.name for run in comparison.runs]
    write_page(
        path,
        Path(__file__).with_name("compare.html.j2"),
        SCRIPT,
        comparison=comparison,
        headline=headline(comparison),
        runs=names,
        fields=comparison.fields,
        lines=figure_lines(comparison),
        rows=rows_of(len(comparison.rows), comparison.products),
        costs=_costs(comparison.runs),
        resamples=RESAMPLES,
        apart=len(apart),
        gallery=gallery(comparison.fields, with_pictures(apart, comparison.runs[0]), names),
    )


def headline(comparison: Comparison) -> str:
    """The outcome in a sentence for each run that is held against the first."""
    says = []
    for run in comparison.runs[1:]:
        mine = [one for one in comparison.claims if one.run == run.name and one.shown]
        parts = []
        for word, better in (("better", True), ("worse", False)):
            if found := [one.field.label for one in mine if one.better is better]:
                parts.append(f"{word} in {listed(found)}")
        outcome = f"is {', '.join(parts)} than" if parts else "shows no difference from"
        says.append(f"{run.name} {outcome} {comparison.runs[0].name}.")
    return " ".join(says)


def figure_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """A line for each figure: every run's, and every difference with its place on the line's scale."""
    lines = []
    for field in comparison.fields:
        for metric in METRICS[field.kind]:
            mine = [one for one in comparison.differences if one.field == field and one.metric == metric]
            scale = max(abs(one.figure[key]) for one in mine for key in ("value", "low", "high")) or 1.0
            lines.append(
                {
                    "field": field,
                    "metric": METRIC_NAMES[metric],
                    "lower": metric in LOWER_IS_BETTER,
                    "figures": [cell(metric, scores["fields"][field.column][metric]) for scores in comparison.scores],
                    "differences": [
                        {
                            "text": _points(metric, one.figure["value"], "+"),
                            "interval": " to ".join(
                                _points(metric, one.figure[key], "+", unit=False) for key in ("low", "high")
                            ),
                            "places": [0.5 + one.figure[key] / scale / 2 for key in ("low", "value", "high")],
                            "verdict": ("better" if one.better else "worse") if one.shown else "",
                        }
                        for one in mine
                    ],
                }
            )
    return lines


def _costs(runs: Sequence[Evaluated]) -> list[tuple[str, list[str]]]:
    """Name and each run's figure, of what any run measured."""
    known = [run.metrics.get("cost") or {} for run in runs]
    lines = []
    for key, name, text in COSTS:
        if any(one.get(key) is not None for one in known):
            lines.append((name, ["\u2013" if one.get(key) is None else text(one[key]) for one in known]))
    return lines


def _points(metric: str, value: float, sign: str = "", unit: bool = True) -> str:
    """A difference as text: percentage points, or the number's own unit."""
    text = number(abs(value)) if metric == "mae" else f"{100 * abs(value):,.1f}"
    signed = ("" if not value else "\u2212" if value < 0 else sign) + text
    return signed if metric == "mae" or not unit else f"{signed} points"
