"""Prove that a refactoring changed nothing: keep what the commands make, change the code, compare.

    python scripts/golden.py keep ../golden                 # before the first move, eight minutes of one core
    python scripts/golden.py keep ../golden --only demo     # the whole demo too, which is asked for by name
    python scripts/golden.py compare ../golden --only sample prepare prepare-urls             # after each move

     case          compared                                  files  largest difference  verdict  seconds
     sample        catalogues of three seeds                 15     0                   same     109
     prepare       catalogues from CSV, JSONL, Parquet       23     0                   same     109
     prepare-urls  catalogue from a hostile server; kill -9  12     0                   same     124

The cases stand in golden_cases.py: `python -m catalens` in an empty folder, one thread each. Equal bytes are "same",
"equal" files that differ only in what IGNORED names. A change that is meant is kept anew: keep FOLDER --only CASE.
What was kept of an older commit can be made at any time, in a worktree of it.
"""

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from golden_cases import CASES, CaseError, Work
from rich.console import Console
from rich.live import Live
from rich.table import Table
from safetensors.numpy import load_file

IGNORED = re.compile(
    r"seconds|(.*/)?runtime|.*_per_second|ms_per_picture"  # durations and rates
    r"|train/(mfu|waiting_for_data|peak_memory_gb)"
    r"|catalens|python|platform|host|run_id|.*version.*"  # the machine and the run
)
"""Keys of JSON that may differ. Absolute paths are masked, and lines of metrics.jsonl with the whole run's duration
are left out. Not kept at all: recipe.yaml and versions.json of a run, checkpoints, pages."""
SETS = {"target_modules"}
"""Keys of JSON with lists in any order: PEFT writes a set of names, as they are hashed in that process."""
ROOT = Path(__file__).parents[1]
NOT_KEPT = {"recipe.yaml", "versions.json", "checkpoints", ".html"}


def collect(work: Work, paths: Sequence[Path], to: Path) -> None:
    """Copy what a case has made, with absolute paths masked, without what is not compared."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    for file in files:
        name = file.relative_to(work.root)
        if file.is_file() and not NOT_KEPT & {*name.parts, file.suffix}:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            data = file.read_bytes().replace(str(work.root).encode(), b"/work")
            (to / name).write_bytes(data.replace(str(ROOT).encode(), b"/repository"))


def same_as(peace: Path, killed: Path, excepted: set[str]) -> None:
    """CaseError where a folder or file whose making was disturbed is not as the one that was left in peace."""
    for name in sorted({file.relative_to(top) for top in (peace, killed) for file in (top, *top.rglob("*"))}):
        if not (NOT_KEPT | excepted) & {*name.parts, name.suffix} and not (killed / name).is_dir():
            for found in differences(peace / name, killed / name):
                raise CaseError(f"{killed.name}/{name} is another one after the kill: {found.where}: {found.what}")


@dataclass(frozen=True)
class Difference:
    """A value that differs, by how much where it is a number, and where it is."""

    where: str
    what: str
    absolute: float = math.inf
    relative: float = math.inf


def values(one: Any, other: Any, where: str = "") -> Iterator[Difference]:
    """Differences of two JSON values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if IGNORED.fullmatch(key):
                continue
            if key not in one or key not in other:
                yield Difference(f"{where}.{key}", "only in the kept one" if key in one else "only in the new one")
            else:
                pair = (sorted(one[key]), sorted(other[key])) if key in SETS else (one[key], other[key])
                yield from values(*pair, f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from values(*pair, f"{where}[{number}]")
    elif isinstance(one, float | int) and isinstance(other, float | int):
        if one != other and not (math.isnan(one) and math.isnan(other)):
            absolute = abs(one - other)
            yield Difference(where, f"{one} -> {other}", absolute, absolute / max(abs(one), abs(other)))
    elif one != other or type(one) is not type(other):
        yield Difference(where, f"{str(one)[:60]!r} -> {str(other)[:60]!r}")


def lines_of(file: Path) -> list[Any]:
    """Lines of a JSONL file, without that of a whole training's duration."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "train/runtime" not in line]


def tables(one: Path, other: Path) -> Iterator[Difference]:
    """First differing row of each column of two Parquet files."""
    kept, new = pq.read_table(one), pq.read_table(other)
    if kept.num_rows != new.num_rows:
        yield Difference("rows", f"{kept.num_rows} -> {new.num_rows}")
    for name in dict.fromkeys([*kept.column_names, *new.column_names]):
        if name not in kept.column_names or name not in new.column_names:
            yield Difference(name, "column only in the " + ("kept" if name in kept.column_names else "new") + " one")
        elif not kept[name].equals(new[name]):
            found = values(kept[name].to_pylist(), new[name].to_pylist(), name)
            yield next(found, Difference(name, f"type {kept[name].type} -> {new[name].type}"))


def weights(one: Path, other: Path) -> Iterator[Difference]:
    """Largest difference of each tensor of two safetensors files."""
    kept, new = load_file(one), load_file(other)
    for name in {**kept, **new}:
        if name not in kept or name not in new or kept[name].shape != new[name].shape:
            yield Difference(name, "not in both of one shape")
        elif (kept[name] != new[name]).any():
            absolute = abs(kept[name] - new[name]).max()
            yield Difference(name, "weights", float(absolute), float(absolute / abs(kept[name]).max()))


def differences(one: Path, other: Path) -> list[Difference]:
    """What differs between two files beyond what may; equal values in other bytes are a difference unless JSON."""
    if not one.exists() or not other.exists():
        return [Difference("file", "only in the " + ("kept" if one.exists() else "new") + " ones")]
    if one.read_bytes() == other.read_bytes():
        return []
    match one.suffix:
        case ".json":
            return [*values(json.loads(one.read_bytes()), json.loads(other.read_bytes()))]
        case ".jsonl":
            return [*values(lines_of(one), lines_of(other))]
        case ".parquet":
            return [*tables(one, other)] or [Difference("bytes", "other bytes of the same values")]
        case ".safetensors":
            return [*weights(one, other)] or [Difference("bytes", "other bytes of the same weights")]
    pairs = zip(*(file.read_bytes().splitlines() for file in (one, other)), strict=False)
    unlike = (f"line {n}: {a[:60]!r} -> {b[:60]!r}" for n, (a, b) in enumerate(pairs, 1) if a != b)
    return [Difference("text", next(unlike, "one is longer"))]


def verdict(kept: Path, new: Path) -> tuple[int, str, str, list[str]]:
    """Number of files of a case, its largest difference, whether it is the same, and what differs."""
    files = sorted({file.relative_to(top) for top in (kept, new) for file in top.rglob("*") if file.is_file()})
    found = {file: differences(kept / file, new / file) for file in files}
    worst = {file: max(some, key=lambda one: one.absolute) for file, some in found.items() if some}
    notes = [f"{file} {one.where}: {one.what} (one of {len(found[file])})" for file, one in worst.items()]
    if worst:
        largest = max(worst.values(), key=lambda one: one.absolute)
        number = f"{largest.absolute:.1e} ({largest.relative:.1e} of it)"
        return len(files), number if math.isfinite(largest.absolute) else "not a number", "[red]differs", notes
    same = all((kept / file).read_bytes() == (new / file).read_bytes() for file in files)
    return len(files), "0", "same" if same else "equal", []


def main() -> int:
    """Keep or compare; 1 where something differs or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["keep", "compare"])
    parser.add_argument("folder", type=Path)
    usual = [name for name in CASES if name != "demo"]
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), default=usual, metavar="CASE", help=", ".join(CASES)
    )
    options = parser.parse_args()
    table = Table("case", "compared", "files", "largest difference", "verdict", "seconds", box=None)
    notes, failed = [], False
    console = Console(width=None if sys.stdout.isatty() else 118, highlight=False)
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary, Live(table, console=console):
        work = Work(Path(temporary).resolve() / "work")
        work.root.mkdir()
        for name in (name for name in CASES if name in options.only):
            started, kept, new = time.monotonic(), options.folder / name, Path(temporary) / "new" / name
            work.twins.clear()
            try:
                run, _ = CASES[name]
                collect(work, run(work), new)
                while work.twins:
                    same_as(*work.twins.pop())
            except CaseError as fault:
                files, largest, judged, more = 0, "-", "[red]failed", [str(fault)]
            else:
                if options.action == "keep":
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(new, kept)
                if kept.is_dir():
                    files, largest, judged, more = verdict(kept, new)
                else:
                    files, largest, judged, more = 0, "-", "[red]not kept", [f"{kept} is not there: keep it first"]
            judged = "kept" if options.action == "keep" and judged == "same" else judged
            failed = failed or "red" in judged
            notes += [f"{name}: {note}" for note in more]
            seconds = f"{time.monotonic() - started:.0f}"
            table.add_row(name, CASES[name][1], str(files), largest, judged, seconds)
    for note in notes:
        console.print(note, markup=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
