"""Numbers read token by token against numbers read as the median of their distribution, by the same weights.

    python benchmarks/estimates.py runs/demo runs/second --within 10% --accept-error 0.05

Every run is asked about its validation and test rows in both ways. The first table has the figures of the test rows
and their paired differences, over all of them and over those whose other values are right, which tell the estimates
apart from misread pictures; the last what a calibration makes of them: coverage and width of the intervals, what the
rule of review accepts, and how often it broke its promise. For that the products of both splits are dealt anew, into
as many to learn from as there are validation products, and the rest.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from catalens import metrics
from catalens.catalog import Catalog
from catalens.checkpoint import Run, load_run
from catalens.config import NumberSpec
from catalens.data import Encoder, load_examples
from catalens.evaluation import one_a_product
from catalens.examples import parse_answer
from catalens.inference import Calibration, Completion, Generator, field_scores, fit_calibration, log_odds
from catalens.intervals import paired
from catalens.predictions import truth_of
from catalens.tolerance import Tolerance

Rows = Sequence[Mapping[str, Any]]
FIGURES = ("mdape", "mape", "smape", "within_tolerance")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the runs that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="finished runs, their catalogues where they were")
    parser.add_argument("--within", default="10%", help="tolerance of numbers")
    parser.add_argument("--accept-error", type=float, default=0.05, help="share of wrong values that is borne")
    parser.add_argument("--draws", type=int, default=100, help="deals of the products")
    options = parser.parse_args(arguments)
    console = Console(width=118)
    for name in options.runs:
        measure(load_run(name), options.within, options.accept_error, options.draws, console)


def measure(run: Run, within: str, target: float, draws: int, console: Console) -> None:
    """Print the tables of one run."""
    specs = {how: NumberSpec(estimate=how, within=within) for how in ("mode", "median")}
    validation, test = (rows_of(run, split) for split in ("validation", "test"))
    validation = one_a_product(validation, run_id := Catalog(run.recipe.catalog).card.roles.id, _image(run))
    ids = [[str(row[run_id]) for row in rows] for rows in (validation, test)]
    truths = [[truth_of(run.prompt, row) for row in rows] for rows in (validation, test)]
    answers = {how: [written(run, rows, how) for rows in (validation, test)] for how in specs}
    values = {how: [values_of(run, one) for one in both] for how, both in answers.items()}
    for field in run.prompt.fields:
        if field.kind != "number":
            continue
        column = field.column
        others = [other.column for other in run.prompt.fields if other is not field]
        clear = [
            n
            for n, truth in enumerate(truths[1])
            if all(said and all(said[name] == truth[name] for name in others) for said in _nth(values, n))
        ]
        for told, rows in (("test rows", range(len(test))), ("test rows whose other values are right", clear)):
            if not rows:
                continue
            title = f"{run.folder.name}, {column}: {len(rows)} {told}"
            both = [[values[how][1][n] for n in rows] for how in specs]
            _print_figures(
                title, column, [truths[1][n] for n in rows], both, [ids[1][n] for n in rows], within, console
            )
        tolerance = specs["median"].tolerance
        _print_sorting(run, tolerance, column, truths[1], values["median"][1], answers["median"][1], console)
        learned = len(validation)
        once = {id(row) for row in one_a_product(test, run_id, _image(run))}
        kept = [n for n, row in enumerate(test) if id(row) in once]

        def dealt(both: Sequence[Sequence[Any]], kept: Sequence[int] = kept) -> list[Any]:
            return [*both[0], *(both[1][n] for n in kept)]

        drawn = [
            [
                _draw(
                    run, spec, column, target, dealt(truths), dealt(values[how]), dealt(answers[how]), learned, seed
                )
                for how, spec in specs.items()
            ]
            for seed in range(draws)
        ]
        _print_draws(np.array(drawn, float), learned, target, console)


def _nth(values: Mapping[str, Sequence[Any]], n: int) -> list[Any]:
    return [both[1][n] for both in values.values()]


def _print_figures(
    title: str,
    column: str,
    truths: Rows,
    both: Sequence[Sequence[Any]],
    ids: Sequence[str],
    within: str,
    console: Console,
) -> None:
    """Print the figures of both ways, and their paired differences."""
    kinds, tolerance = {column: "number"}, NumberSpec(within=within).tolerance
    scores = [metrics.score(kinds, truths, one, ids, within=tolerance)["fields"][column] for one in both]
    every = metrics.statistics(column, "number", [*truths, *truths], [*both[0], *both[1]], tolerance)
    apart = paired({name: every[name] for name in FIGURES}, len(truths), ids)
    table = Table(title=title)
    for heading in ("", "token by token", "median", "difference (95 % interval)"):
        table.add_column(heading)
    for name in FIGURES:
        change = apart[name]
        shown = [f"{100 * score[name]['value']:.1f} %" for score in scores]
        told = f"{100 * change['value']:+.1f} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
        table.add_row(metrics.tolerating(metrics.METRICS[name], tolerance).label, *shown, told)
    console.print(table)


def _print_sorting(
    run: Run,
    tolerance: Tolerance,
    column: str,
    truths: Rows,
    values: Sequence[Any],
    answers: Sequence[Completion],
    console: Console,
) -> None:
    """Print how well the probability of a number tells right ones from wrong ones, alone and jointly."""
    known = [n for n, said in enumerate(values) if said is not None]
    some_truths, some_values = ([part[n] for n in known] for part in (truths, values))
    right = metrics.correctness(column, "number", some_truths, some_values, tolerance)
    scores = [field_scores(run.prompt, answers[n], "<|end|>", tolerance)[column] for n in known]
    for joint, told in ((False, "alone"), (True, "jointly with the fields before it")):
        odds = log_odds("number", scores, joint)
        sorts = roc_auc_score(right, odds) if 0 < right.mean() < 1 else float("nan")
        order = np.argsort(-odds, kind="stable")
        wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
        most = (np.flatnonzero(wrong <= 0.05)[-1] + 1) / len(order) if (wrong <= 0.05).any() else 0.0
        console.print(
            f"its probability {told}: area under the ROC curve {sorts:.2f}, "
            f"{most:.0%} of the rows at 5 % wrong, had the test rows set the threshold"
        )


def _draw(
    run: Run,
    number: NumberSpec,
    column: str,
    target: float,
    truths: Rows,
    values: Sequence[Any],
    answers: Sequence[Completion],
    learned: int,
    seed: int,
) -> tuple[float, ...]:
    """Give coverage, log width, share accepted, broken promise and even bounds, of products dealt anew.

    `learned` of them calibrate, the others are held to it.
    """
    order = np.random.default_rng(seed).permutation(len(truths)).tolist()
    first, rows = order[:learned], order[learned:]
    calibration = _fitted(run, number, *([part[i] for i in first] for part in (truths, values, answers)))
    threshold = calibration.threshold(column, target)
    covered, widths, accepted, wrong = [], [], 0, 0
    right = metrics.correctness(
        column, "number", [truths[i] for i in rows], [values[i] for i in rows], number.tolerance
    )
    for i, good in zip(rows, right, strict=True):
        said, answer = values[i], answers[i]
        if said is None:
            covered.append(False)
            continue
        bounds = calibration.bounds(column, said[column], answer.distributions.get(column))
        if bounds:
            covered.append(bounds[0] <= truths[i][column] <= bounds[1])
            widths.append(np.log(bounds[1] / bounds[0]))
        score = field_scores(run.prompt, answer, "<|end|>", number.tolerance)[column]
        if threshold is not None and calibration.apply(column, score) >= threshold:
            accepted += 1
            wrong += not good
    shape = calibration.fields[column].bound
    even = float(shape is not None and shape.shape == "even")
    return (
        float(np.mean(covered)),
        float(np.mean(widths)),
        accepted / len(rows),
        float(wrong > target * accepted) if accepted else 0.0,
        even,
    )


def _print_draws(drawn: Any, learned: int, target: float, console: Console) -> None:
    """Print what `_draw` gave, [draws, ways, 5]."""
    table = Table(
        title=f"{learned} products of validation and test calibrate, the others are held to it, {len(drawn)} deals"
    )
    for heading in ("", "intervals hold", "mean width", "narrower", "even", "accepted", f"over {target:.0%} wrong"):
        table.add_column(heading)
    for n, how in enumerate(("token by token", "median")):
        held, width, accepted, broken, even = drawn[:, n].mean(axis=0)
        saved = 1 - drawn[:, n, 1] / drawn[:, 0, 1]
        low, high = np.quantile(saved, [0.025, 0.975])
        told = f"{100 * saved.mean():.0f} % ({100 * low:.0f} to {100 * high:.0f})" if n else ""
        shares = (f"{100 * one:.0f} %" for one in (even, accepted, broken))
        table.add_row(how, f"{100 * held:.1f} %", f"{width:.3f}", told, *shares)
    console.print(table)


def _fitted(run: Run, number: NumberSpec, truths: Rows, values: Sequence[Any], answers: Any) -> Calibration:
    scores = [
        {} if said is None else field_scores(run.prompt, one, "<|end|>", number.tolerance)
        for said, one in zip(values, answers, strict=True)
    ]
    spreads = [one.distributions for one in answers] if number.estimate != "mode" else None
    candidates = run.recipe.training.num_evals
    return fit_calibration(run.prompt, truths, values, scores, 0.9, candidates, spreads, number)


def _image(run: Run) -> str:
    return Catalog(run.recipe.catalog).card.roles.image


def rows_of(run: Run, split: str) -> list[dict[str, Any]]:
    return load_examples(Catalog(run.recipe.catalog), Encoder(run.processor, run.prompt), split).rows


def written(run: Run, rows: Rows, how: Any) -> list[Completion]:
    spec = run.recipe.evaluation
    writer = Generator(
        run.model, run.processor, run.prompt, spec.batch_size, spec.max_new_tokens, run.space, estimate=how
    )
    return writer.generate([row[_image(run)] for row in rows])


def values_of(run: Run, answers: Sequence[Completion]) -> list[Any]:
    return [parse_answer(run.prompt, one.text, "<|end|>").values for one in answers]


if __name__ == "__main__":
    main()
