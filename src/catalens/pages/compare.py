"""Runs side by side: `compare.html`, and the sentences that the terminal shows too.

write_comparison(Path("compare.html"), comparison, disagreements)
Difference("b", "a", field, "exact", {"value": 0.021, "low": 0.004, "high": 0.039}, 0.01, True, True).sentence
b is better than a in Product exact by 2.1 points (0.4 to 3.9).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalens.config import FieldSpec
from catalens.intervals import Figure
from catalens.metrics import METRICS, metrics_of
from catalens.pages.base import write_page
from catalens.pages.format import cell, change, listed, rows_of, truths_of
from catalens.pages.gallery import SCRIPT, gallery
from catalens.pages.scores import costs
from catalens.predictions import Evaluation, ScoredRow, rows_with, tolerance_of
from catalens.tolerance import Tolerance

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
    """Set where it is of its field's primary metric, which alone is called better or worse."""
    shown: bool = False
    """Set where the claim holds after Holm's correction."""
    n: str = ""
    """Number of rows that have a truth of the field, where not all have."""

    @property
    def better(self) -> bool:
        """True where the run does better than the first, be that chance or not."""
        value = self.figure["value"]
        return value > 0 if METRICS[self.metric].higher_is_better else value < 0

    @property
    def verdict(self) -> str:
        """`better` or `worse` where that is shown, else nothing."""
        return ("better" if self.better else "worse") if self.shown else ""

    @property
    def interval(self) -> str:
        """Both bounds with their signs."""
        return " to ".join(change(self.metric, self.figure[key], "+", unit=False) for key in ("low", "high"))

    @property
    def sentence(self) -> str:
        """In plain words, with the interval."""
        what = f"{self.field.label} {METRICS[self.metric].label}" + (f" ({self.n})" if self.n else "")
        if not self.shown:
            beyond = self.claim and self.figure["low"] * self.figure["high"] > 0
            chance = ", which may be chance among so many comparisons" if beyond else ""
            value = change(self.metric, self.figure["value"], "+")
            return f"No difference shown in {what}: {self.run} {value} ({self.interval}){chance}."
        low, high = sorted(abs(self.figure[key]) for key in ("low", "high"))
        return (
            f"{self.run} is {self.verdict} than {self.against} in {what} by "
            f"{change(self.metric, abs(self.figure['value']))} "
            f"({change(self.metric, low, unit=False)} to {change(self.metric, high, unit=False)})."
        )


@dataclass(frozen=True)
class Comparison:
    """Runs on the rows that all of them have."""

    runs: Sequence[Evaluation]
    fields: Sequence[FieldSpec]
    rows: Sequence[tuple[ScoredRow, ...]]
    scores: Sequence[Mapping[str, Any]]
    """Of each run on these rows, in the form of `metrics.score`."""
    differences: Sequence[Difference]
    recipe: Mapping[str, Sequence[object]]
    """Keys of the recipe that differ: the value of each run."""

    @property
    def within(self) -> Tolerance:
        """Largest error of a number that is right, by the first run."""
        return tolerance_of(self.runs[0].metrics)

    @property
    def products(self) -> int:
        """Number of products that the rows show."""
        return len({row[0].id for row in self.rows})

    def truths(self, column: str) -> str:
        """Number of rows that have a truth of a field, where not all have."""
        return truths_of(len(rows_with(column, [row[0] for row in self.rows])), len(self.rows))

    @property
    def claims(self) -> list[Difference]:
        """The differences that are called better or worse."""
        return [difference for difference in self.differences if difference.claim]

    @property
    def disagreements(self) -> list[tuple[ScoredRow, ...]]:
        """Rows that not all runs read alike."""
        return [row for row in self.rows if any(one.values != row[0].values for one in row)]


def write_comparison(path: Path, comparison: Comparison, disagreements: Sequence[tuple[ScoredRow, ...]]) -> None:
    """Write the page, with the rows about which the runs disagree."""
    names = [run.name for run in comparison.runs]
    write_page(
        path,
        Path(__file__).with_name("compare.html.j2"),
        SCRIPT,
        comparison=comparison,
        headline=headline(comparison),
        within=comparison.within,
        runs=names,
        fields=comparison.fields,
        lines=figure_lines(comparison),
        rows=rows_of(len(comparison.rows), comparison.products),
        untold=[f for f in comparison.fields if not comparison.scores[0]["fields"][f.column]],
        costs=costs(*(run.metrics for run in comparison.runs)),
        resamples=RESAMPLES,
        apart=len(disagreements),
        gallery=gallery(comparison.fields, disagreements, names),
    )


def headline(comparison: Comparison) -> str:
    """The outcome in a sentence for each run that is held against the first."""
    says = []
    for run in comparison.runs[1:]:
        parts = []
        for word in ("better", "worse"):
            mine = [one.field.label for one in comparison.claims if (one.run, one.verdict) == (run.name, word)]
            parts += [f"{word} in {listed(mine)}"] if mine else []
        outcome = f"is {', '.join(parts)} than" if parts else "shows no difference from"
        says.append(f"{run.name} {outcome} {comparison.runs[0].name}.")
    return " ".join(says)


def figure_lines(comparison: Comparison) -> list[dict[str, Any]]:
    """A line for each figure: every run's, and every difference with its position on the line's scale.

    A field that no row has a truth of has none.
    """
    lines = []
    for field in comparison.fields:
        if not comparison.scores[0]["fields"][field.column]:
            continue
        for metric, entry in metrics_of(field.kind, comparison.within).items():
            mine = [one for one in comparison.differences if one.field == field and one.metric == metric]
            scale = max(abs(one.figure[key]) for one in mine for key in ("value", "low", "high")) or 1.0
            lines.append(
                {
                    "field": field,
                    "metric": entry,
                    "n": comparison.truths(field.column),
                    "figures": [cell(metric, scores["fields"][field.column][metric]) for scores in comparison.scores],
                    "differences": [
                        {
                            "text": change(metric, one.figure["value"], "+"),
                            "interval": one.interval,
                            "places": [0.5 + one.figure[key] / scale / 2 for key in ("low", "value", "high")],
                            "verdict": one.verdict,
                        }
                        for one in mine
                    ],
                }
            )
    return lines
