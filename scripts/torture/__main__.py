"""Try `catalens prepare` as nobody should: `make torture`, about 15 minutes on two cores, before a release.

    kills    200 times `kill -9`, at random moments or when a file appears, two starts at once now and then
    folders  100 work folders with a file truncated, scrambled, deleted or replaced, and a user's files inside
    rows     300 rows of CSV, JSONL and Parquet with what no table should hold

Every run is a process of its own against a web server on loopback, seen from outside: output, exit code, requests,
files. It has to end with the bytes of an undisturbed run or refuse in one sentence, and to leave alone what is not
its own. All is written below one temporary folder; the cases that failed stay there.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from folders import damage_folders
from kills import kill_runs
from processes import Report
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rows import try_rows

PARTS: dict[str, Callable[[Report, Path, int, Random], None]] = {
    "kills": kill_runs,
    "folders": damage_folders,
    "rows": try_rows,
}


def main() -> None:
    """Run the parts and print a table; exit code 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--folders", type=int, default=100)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(PARTS))
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="catalens-torture-"))
    reports = []
    with Progress(console=Console(stderr=True)) as bar:
        for name in [options.only] if options.only else PARTS:
            wanted = getattr(options, name)
            reports.append(Report(name, partial(bar.advance, bar.add_task(name, total=wanted))))
            PARTS[name](reports[-1], work / name, wanted, Random(options.seed))
    console = Console()
    table = Table("part", "outcomes", "failures", title=f"torture, seed {options.seed}")
    for report in reports:
        for failure in report.failures:
            console.print(f"[red]failed:[/] {escape(failure)}", highlight=False, soft_wrap=True)
        outcomes = ", ".join(f"{count} {what}" for what, count in sorted(report.counts.items()))
        table.add_row(report.name, outcomes, str(len(report.failures)))
    console.print(table)
    if any(report.failures for report in reports):
        console.print(f"the cases that failed are in {work}")
        sys.exit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
