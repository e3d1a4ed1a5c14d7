"""What a run prints before and after its progress bar."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Column, Table

from catalens.config import Part
from catalens.metrics import ImageUse
from catalens.training.parts import Coverage

IMAGE_USE: Mapping[ImageUse, str] = {
    "uses_image": "Its score on the validation sample falls with other products' pictures: it uses the pictures.",
    "ignores_image": "Its score on the validation sample does not fall with other products' pictures: it ignores "
    "them. See that pictures and texts belong together, train the projector or longer, or take more rows.",
    "undecided": "The validation sample cannot tell whether it uses the pictures: `catalens evaluate` asks all test "
    "rows, and a larger training.validation_rows asks more here.",
}
"""What the check of the pictures found, in words."""

IGNORES_IMAGE = "the pictures are ignored"
"""Title of the warning."""


def print_coverage(covered: Mapping[Part, Coverage], rows: Mapping[str, int], console: Console) -> None:
    """Print what trains, by part."""
    table = Table("part", "", *(Column(name, justify="right") for name in ("parameters", "train", "", "adapters")))
    table.box, table.title = box.SIMPLE_HEAD, ", ".join(f"{count} {split}" for split, count in rows.items()) + " rows"
    for part, entry in covered.items():
        share = f"{entry.trained / max(1, entry.parameters):.1%}"
        adapters = f"on {len(entry.adapted)} modules" if entry.adapted else ""
        table.add_row(part, entry.train, f"{entry.parameters:,}", f"{entry.trained:,}", share, adapters)
    console.print(table)


def print_throughput(speed: Mapping[str, float], console: Console) -> None:
    """Print how fast a run went, in one line."""
    if speed:
        console.print(
            f"{speed['samples_per_second']:.3g} samples/s, {speed['tokens_per_second']:,.0f} tokens/s, "
            f"{speed['useful_tokens']:.0%} of the positions useful, "
            f"model FLOPs utilisation {speed['mfu']:.0%}, peak memory {speed['peak_memory_gb']:.1f} GB, "
            f"{speed['waiting_for_data']:.0%} of the time waiting for data",
            highlight=False,
            soft_wrap=True,
        )


def print_image_use(found: ImageUse, console: Console) -> None:
    """Print whether a model uses its pictures; loudly where it was shown to ignore them."""
    if found == "ignores_image":
        console.print(Panel(f"[bold]{IMAGE_USE[found]}[/]", title=IGNORES_IMAGE, style="red"))
    else:
        console.print(IMAGE_USE[found], highlight=False, markup=False, soft_wrap=True)
