"""How like a drawn catalogue is to its original, in a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.mimicking.mimic import Mimicked
from catalens.pages.base import shown


def print_fidelity(made: Mimicked, console: Console) -> None:
    """Print what a row costs side by side, the distances, and what was looked for and not found."""
    fidelity = made.fidelity
    costs = Table(box=None, padding=(0, 3, 0, 0), title_justify="left")
    for heading in ("", "original", "drawn", ""):
        costs.add_column(heading, justify="right" if heading else "left")
    for cost in [*fidelity.costs, *([made.step] if made.step else [])]:
        colour = "green" if cost.close else "yellow"
        figures = f"{cost.original:,.4g}", f"{cost.drawn:,.4g}", f"[{colour}]{cost.change:+.1%}[/]"
        costs.add_row(cost.name, *figures)
    console.print(costs)
    distances = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("", "", "distance", "by chance"):
        distances.add_column(heading, justify="right" if heading else "left")
    for distance in fidelity.distances:
        chance = "" if distance.chance is None else f"{distance.chance:.3f}"
        distances.add_row(escape(shown(distance.name)), distance.measure, f"{distance.value:.3f}", chance)
    console.print(distances)
    if fidelity.checked:
        console.print(f"exact matches: 0 of {fidelity.rows:,} rows, each looked up in the original", highlight=False)
    else:
        console.print("exact matches: not looked up, the original is not at hand", highlight=False)
