"""What a check found, in a terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.checking.check import Check
from catalens.checking.page import headline
from catalens.estimates import GPUS
from catalens.pages.base import shown

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_check(check: Check, console: Console) -> None:
    """Print the outcome, one line a finding with its first row, and what training costs."""
    rows = ", ".join(f"{count:,} {split}" for split, count in check.card.rows.items())
    console.print(f"{rows} rows of {sum(check.card.products.values()):,} products", highlight=False)
    fields = [
        f"{_text(name)} ({kind}{f', {check.missing[name]:,} missing' if check.missing[name] else ''})"
        for name, kind in check.card.roles.fields.items()
    ]
    console.print(f"fields: {', '.join(fields)}", highlight=False)
    if check.findings:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for finding in check.findings:
            table.add_row(f"[{COLOURS[finding.severity]}]{finding.severity}[/]", _text(finding.title))
            if finding.rows:
                first = finding.rows[0]
                table.add_row("", f"[dim]{_text(first.row)}{': ' if first.detail else ''}{_text(first.detail)}[/]")
            table.add_row("", f"[dim]fix:[/] {_text(finding.fix)}")
        console.print(table)
    if check.costs:
        console.print(_costs(check))
    console.print(f"[bold]{headline(check.findings)}[/]", highlight=False)


def _costs(check: Check) -> Table:
    """The recipe's method by `num_crops`, or LoRA where it names none of them."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title="largest batch by GPU memory")
    table.add_column("num_crops")
    for heading in ("tokens\na row", "steps\nan epoch", "TFLOP\na row", *(f"{gpu}\nGB" for gpu in GPUS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in check.costs:
        method = next(method for method in cost.methods if method.chosen)
        batches = [f"{plain:,}" if plain else "-" for plain, _ in method.batches]
        figures = (f"{cost.tokens:,.0f}", f"{cost.steps:,}", f"{method.tflop:,.3g}")
        table.add_row(f"{cost.num_crops} {method.name.lower()}", *figures, *batches)
    return table


def _text(value: str) -> str:
    return escape(shown(value))
