"""The score table, in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.config import PromptSpec
from catalens.metrics import METRICS, share_right
from catalens.pages.format import label, rows_of
from catalens.pages.scores import SYSTEMS, image_use_in_words, scores_of, training_made_worse, truths_in
from catalens.predictions import tolerance_of


def print_scores(result: Mapping[str, Any], prompt: PromptSpec, console: Console) -> None:
    """Print the content of `metrics.json` as a table, the model's figures with their 95 % intervals."""
    table = _table(
        f"{rows_of(result['rows'], result['products'], result['split'])}, free generation, 95 % intervals",
        "* constrained, since it was never told the form of an answer" if result.get("before") else None,
    )
    shown = [(one, scores) for one in SYSTEMS if one.heading and (scores := scores_of(result, one))]
    for n, (system, _) in enumerate(shown):
        table.add_column(system.heading, justify="right", no_wrap=True, style=None if n else "bold")
    within = tolerance_of(result)
    table.add_row("parses", *_cells("parse_rate", [scores["parse_rate"] for _, scores in shown]))
    for field in prompt.fields:
        count = truths_in(result, field.column)
        for metric in result["model"]["fields"][field.column]:
            if METRICS[metric].detail:
                continue
            figures = [scores["fields"][field.column][metric] for _, scores in shown]
            name = f"{escape(field.label)}, {label(metric, within)}"
            table.add_row(f"{name}\n[dim]{count}[/]" if count else name, *_cells(metric, figures))
        if not result["model"]["fields"][field.column]:
            table.add_row(escape(field.label), count)
    if "record_accuracy" in result["model"]:
        table.add_row("all fields right", *_cells("record_accuracy", [s["record_accuracy"] for _, s in shown]))
    console.print(table)
    if "confidence" in result:
        _print_trust(result, prompt, console)
    if left_out := result.get("left_out"):
        console.print(f"[yellow]left out {len(left_out)} rows[/], such as {escape(left_out[0])}")
    for sentence in training_made_worse(result, prompt.fields):
        console.print(sentence, style="bold red", markup=False, highlight=False)
    if use := result.get("image_use"):
        style = {"uses_image": "green", "ignores_image": "bold red", "undecided": "yellow"}[use["verdict"]]
        ignores = "It ignores the pictures. " if use["verdict"] == "ignores_image" else ""
        console.print(ignores + image_use_in_words(use, prompt.fields), style=style, markup=False, highlight=False)


def _print_trust(result: Mapping[str, Any], prompt: PromptSpec, console: Console) -> None:
    """Print what may be made of single predictions, constrained as `predict` writes them."""
    products = result["confidence"]["calibrated_on"]
    table = _table(f"constrained, as predict writes; confidences learned from {products} validation products")
    for name in ("right", "calibration\nerror", "usable\nunseen", "wrong\namong these", "intervals\nhold"):
        table.add_column(name, justify="right", no_wrap=True)
    for field in prompt.fields:
        if field.column not in result["confidence"]["fields"]:
            continue  # no truths
        measured, rule = (result[block]["fields"][field.column] for block in ("confidence", "review"))
        interval, metric = measured["interval"], share_right(field.kind)
        right = result["constrained"]["fields"][field.column][metric]
        count = truths_in(result, field.column)
        table.add_row(
            f"{escape(field.label)}, {label(metric, tolerance_of(result))}" + (f"\n[dim]{count}[/]" if count else ""),
            *_cells(metric, [right, right, measured["ece"], rule["accepted"]])[1:],
            (f"{100 * rule['error']['value']:.1f}%" if rule["error"] else "-") + f" of {100 * rule['target']:g}%",
            f"{100 * interval['coverage']['value']:.1f}% of {100 * interval['nominal']:g}%" if interval else "",
        )
    console.print(table)


def _table(title: str, caption: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title, caption=caption)
    table.add_column("", max_width=24)
    return table


def _cells(metric: str, figures: Sequence[Mapping[str, float]]) -> list[str]:
    """The first figure, the model's own, with its interval."""
    share = METRICS[metric].share

    def text(value: float) -> str:
        return f"{100 * value:.1f}" if share else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"

    first, *others = figures
    unit, interval = "%" * share, f"[dim]{text(first['low'])}-{text(first['high'])}[/]"
    return [f"{text(first['value'])}{unit}\n{interval}"] + [f"{text(figure['value'])}{unit}" for figure in others]
