"""Summary of a check in a terminal."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.checking.check import Check
from catalens.pages.base import shown

COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
MEMORY = {False: "GB a step", True: "checkpointed"}


def print_check(check: Check, console: Console) -> None:
    """Print the outcome, one line a finding with its first row, and what training costs."""
    rows = ", ".join(f"{count:,} {split}" for split, count in check.card.rows.items())
    console.print(f"{rows} rows of {sum(check.card.products.values()):,} products", highlight=False)
    fields = [
        f"{_text(field['name'])} ({field['kind']}{f', {missing:,} missing' if (missing := field['missing']) else ''})"
        for field in check.view["fields"]
    ]
    console.print(f"fields: {', '.join(fields)}", highlight=False)
    if check.findings:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for finding in check.findings:
            table.add_row(f"[{COLOURS[finding.severity]}]{finding.severity}[/]", _text(finding.title))
            if finding.rows:
                row, detail = map(_text, finding.rows[0])
                table.add_row("", f"[dim]{row}{': ' if detail else ''}{detail}[/]")
            table.add_row("", f"[dim]fix:[/] {_text(finding.fix)}")
        console.print(table)
    if check.costs:
        console.print(_costs(check))
    console.print(f"[bold]{check.view['headline']}[/]", highlight=False)


def _costs(check: Check) -> Table:
    """Costs of the recipe's method by `num_crops`."""
    memory = [MEMORY[checkpointing] for checkpointing in check.costs[0].memory]
    title = f"{check.view['method']}, {check.costs[0].step_rows:,} rows a step"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title)
    for heading in ("num_crops", "tokens\na row", "steps\nan epoch", "TFLOP\na row", *memory):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits GPUs\nfrom")
    for cost in check.costs:
        figures = (f"{cost.tokens:,.0f}", f"{cost.steps:,}", f"{cost.tflop:,.3g}")
        table.add_row(str(cost.num_crops), *figures, *(f"{gb:,.1f}" for gb in cost.memory.values()), cost.fits())
    return table


def _text(value: str) -> str:
    return escape(shown(value))
