"""The score table, in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.config import PromptSpec
from catalens.evaluation.wording import METRIC_NAMES, image_use_in_words, rows_of

CONDITIONS = (
    ("this\nmodel", ("model",)),
    ("before\ntrain.*", ("before",)),
    ("nearest\npicture", ("baselines", "nearest_neighbour")),
    ("\nmajority", ("baselines", "majority")),
    ("blank\npicture", ("image_use", "blank")),
    ("shuffled\npicture", ("image_use", "shuffled")),
)


def print_scores(result: Mapping[str, Any], prompt: PromptSpec, console: Console) -> None:
    """Print the content of `metrics.json` as a table, the model's figures with their 95 % intervals."""
    scores = {name: _at(result, path) for name, path in CONDITIONS}
    scores = {name: score for name, score in scores.items() if score}
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        title=f"{rows_of(result['rows'], result['products'], result['split'])}, free generation, 95 % intervals",
        caption="* constrained, since it was never told the form of an answer" if result.get("before") else None,
    )
    table.add_column("", max_width=24)
    for name in scores:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "this\nmodel" else None)
    table.add_row("parses", *_cells("parse_rate", [score["parse_rate"] for score in scores.values()]))
    for field in prompt.fields:
        label = escape(field.label)
        for metric in result["model"]["fields"][field.column]:
            figures = [score["fields"][field.column][metric] for score in scores.values()]
            table.add_row(f"{label}, {METRIC_NAMES[metric]}", *_cells(metric, figures))
    console.print(table)
    if "confidence" in result:
        _print_trust(result, prompt, console)
    if left_out := result.get("left_out"):
        console.print(f"[yellow]left out {len(left_out)} rows[/], such as {escape(left_out[0])}")
    if use := result.get("image_use"):
        style = {"uses_image": "green", "ignores_image": "bold red", "undecided": "yellow"}[use["verdict"]]
        ignores = "It ignores the pictures. " if use["verdict"] == "ignores_image" else ""
        console.print(ignores + image_use_in_words(use, prompt.fields), style=style, markup=False, highlight=False)


def _print_trust(result: Mapping[str, Any], prompt: PromptSpec, console: Console) -> None:
    """What may be made of single predictions, constrained as `predict` writes them."""
    products = result["confidence"]["calibrated_on"]
    title = f"constrained, as predict writes; confidences learned from {products} validation products"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title)
    table.add_column("", max_width=24)
    for name in ("right", "calibration\nerror", "usable\nunseen", "wrong\namong these", "intervals\nhold"):
        table.add_column(name, justify="right", no_wrap=True)
    for field in prompt.fields:
        measured, rule = (result[block]["fields"][field.column] for block in ("confidence", "review"))
        interval, figures = measured["interval"], result["constrained"]["fields"][field.column]
        metric = "within_10pct" if field.kind == "number" else next(iter(figures))
        table.add_row(
            f"{escape(field.label)}, {METRIC_NAMES[metric]}",
            *_cells(metric, [figures[metric], figures[metric], measured["ece"], rule["accepted"]])[1:],
            f"{100 * rule['error']['value']:.1f}%" if rule["error"] else "",
            f"{100 * interval['coverage']['value']:.1f}% of {100 * interval['nominal']:g}%" if interval else "",
        )
    console.print(table)
    targets = {rule["target"] for rule in result["review"]["fields"].values()}
    console.print(f"usable unseen: with at most {100 * max(targets):g}% wrong", highlight=False)


def _at(result: Mapping[str, Any], path: Sequence[str]) -> Any:
    node: Any = result
    for key in path:
        node = node.get(key, {})
    return node


def _cells(metric: str, figures: Sequence[Mapping[str, float]]) -> list[str]:
    """The first figure, the model's own, with its interval."""
    scale, unit = (1, "") if metric == "mae" else (100, "%")
    first, *others = figures
    interval = f"[dim]{scale * first['low']:.1f}-{scale * first['high']:.1f}[/]"
    return [f"{scale * first['value']:.1f}{unit}\n{interval}"] + [f"{scale * f['value']:.1f}{unit}" for f in others]
