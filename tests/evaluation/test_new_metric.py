"""One entry in METRICS, and the metric stands wherever figures are: files, pages, terminal, tracker, recipe."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from catalens.config import PromptSpec, make_recipe
from catalens.evaluation.compare import compare, figures
from catalens.evaluation.evaluate import flatten
from catalens.metrics import METRICS, Metric, higher_is_better, score
from catalens.pages import scores
from catalens.pages.compare import figure_lines, write_comparison
from catalens.pages.report import write_report
from catalens.pages.terminal import print_scores
from catalens.predictions import FORMAT, Evaluation, ScoredRow

PROMPT = PromptSpec()
KINDS = {field.column: field.kind for field in PROMPT.fields}
LABEL, HELP = "overshoot", "Share of rows whose number is above the truth."


@pytest.fixture(autouse=True)
def overshoot(monkeypatch: pytest.MonkeyPatch):
    def above(y_true: list[float], y_pred: list[float | None]) -> np.ndarray:
        return np.array([p is None or p > t for t, p in zip(y_true, y_pred, strict=True)])

    monkeypatch.setitem(METRICS, "overshoot", Metric("number", LABEL, HELP, above, higher_is_better=False))


def rows(factor: float) -> list[ScoredRow]:
    found = []
    for n in range(20):
        truth = {"title": f"Bag {n}", "category3_code": f"KIND {n % 3}", "full_price": 100.0 + n}
        values = truth | {"full_price": (100.0 + n) * (factor if n % 4 else 1.0)}
        found.append(ScoredRow(id=f"P{n}", truth=truth, values=values))
    return found


def evaluation(tmp_path: Path, name: str, factor: float) -> Evaluation:
    found = rows(factor)
    model = score(KINDS, [row.truth for row in found], [row.values for row in found], resamples=100)
    metrics = {"format": FORMAT, "split": "test", "rows": 20, "products": 20, "model": model}
    folder = tmp_path / name / "evaluation"
    folder.mkdir(parents=True)
    return Evaluation(name, folder, make_recipe({"catalog": "none"}), metrics, found)


def test_a_metric_is_one_entry(tmp_path: Path):
    first, other = evaluation(tmp_path, "a", 1.2), evaluation(tmp_path, "b", 0.9)
    first.save()
    stored = json.loads((first.folder / "metrics.json").read_text())
    assert stored["model"]["fields"]["full_price"]["overshoot"]["value"] == 0.75

    tracked = flatten(first.metrics["model"])  # as validation rounds log it
    assert tracked["full_price.overshoot"]["value"] == 0.75

    terminal = Console(file=io.StringIO(), width=118)
    print_scores(first.metrics, PROMPT, terminal)
    assert f"Full Price, {LABEL}" in terminal.file.getvalue()

    assert [one["value"] for one in scores.score_table(first.metrics, PROMPT.fields)[0]["cells"]][-1] == "75.0\u00a0%"
    write_report(tmp_path / "report.html", "a", first.metrics, PROMPT.fields, first.rows)
    page = (tmp_path / "report.html").read_text()
    assert f"{LABEL} \u2193" in page
    assert HELP in page

    comparison = compare([first, other], 100)
    line = figure_lines(comparison)[-1]
    assert (line["metric"].label, line["differences"][0]["text"]) == (LABEL, "\u221275.0 points")
    assert any(one["metric"] == "overshoot" for one in figures(comparison)["differences"])
    write_comparison(tmp_path / "compare.html", comparison, comparison.disagreements)
    assert f"{LABEL} \u2193" in (tmp_path / "compare.html").read_text()

    recipe = make_recipe({"catalog": "none", "training": {"metric_for_best_model": "full_price.overshoot"}})
    assert recipe.training.metric_for_best_model == "full_price.overshoot"
    assert not higher_is_better(recipe.training.metric_for_best_model)


def test_every_kind_has_one_primary_metric_and_one_share_of_right_values():
    for kind in ("text", "category", "number"):
        found = [metric for metric in METRICS.values() if metric.kind == kind]
        assert [metric.primary for metric in found].count(True) == 1
        assert [metric.right for metric in found].count(True) == 1
