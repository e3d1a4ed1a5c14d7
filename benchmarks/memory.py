"""Resident memory of a training by the rows of its catalogue: their pictures stay on disk.

    python benchmarks/memory.py                    5,000 and 50,000 rows of tiny pictures; some minutes
    python benchmarks/memory.py --rows 200 1000

Each size is trained for some steps in a process of its own, nothing cached, and the peak of that process is printed.
"""

import argparse
import io
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from catalens.catalog.storage import CatalogWriter, Roles

SIDE = 24
"""Pixels of a picture; PNG makes 1.8 KB of their noise."""
TRAINING = {"max_steps": 3, "num_evals": 1, "validation_rows": 0, "feature_cache": False}


def write_catalog(folder: Path, rows: int) -> None:
    """Write so many training rows, and a tenth as many to validate on."""
    rng = np.random.default_rng(0)
    roles = Roles(id="code", fields={"title": "text", "category3_code": "category", "full_price": "number"})
    with CatalogWriter(folder, roles, {}) as writer:
        for number in range(rows + max(1, rows // 10)):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(buffer, "PNG")
            values = {"title": f"Bag number {number}", "category3_code": "BAGS", "full_price": float(number)}
            writer.add("train" if number < rows else "validation", buffer.getvalue(), f"P{number}", values)


def train_on(catalog: Path, out: Path) -> float:
    """Train, and give the peak of this process's resident memory in MB."""
    from catalens import make_recipe
    from catalens.training import train

    train.PICTURE_CACHE = 0
    recipe = {"catalog": str(catalog), "num_crops": 1, "training": TRAINING, "tracking": {"to": "none"}}
    train.train(make_recipe(recipe), out, console=Console(quiet=True))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak(rows: int) -> float:
    """Measure a catalogue of so many rows in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = Path(folder) / "catalog"
        write_catalog(catalog, rows)
        code = "import sys; from pathlib import Path; import memory; "
        code += "print(memory.train_on(*map(Path, sys.argv[1:])))"
        command = [sys.executable, "-c", code, str(catalog), str(Path(folder) / "run")]
        done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5000, 50_000])
    options = parser.parse_args(arguments)
    table = Table("rows", "peak MB", "of the first", title="resident memory of a training, nothing cached")
    first = 0.0
    for rows in options.rows:
        megabytes = peak(rows)
        first = first or megabytes
        table.add_row(f"{rows:,}", f"{megabytes:,.0f}", f"{megabytes / first:.1%}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
