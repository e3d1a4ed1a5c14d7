"""Prove that a refactoring changed nothing: keep what the commands make, change the code, compare.

    python scripts/golden.py keep ../golden           # before the first move, about three minutes
    python scripts/golden.py compare ../golden        # after each move; --only prepare train-full for some cases
    python scripts/golden.py keep ../golden --only demo     # the whole demo, some minutes more; asked for by name

RECORD
Everything runs through `python -m catalens` in a folder of its own, one thread each. Equal bytes are "same"; "equal"
are files that differ only in what IGNORED names. A change that is meant is kept anew: keep FOLDER --only CASE.
"""

import argparse
import csv
import fcntl
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
PORT = 38_917
"""Of the hostile server: URLs are kept, so it is always the same, and one comparison at a time has it."""
IGNORED = re.compile(
    r"seconds|(.*/)?runtime|.*_per_second|ms_per_picture"  # durations and rates
    r"|train/(mfu|waiting_for_data|peak_memory_gb)"
    r"|catalens|python|platform|host|run_id|.*version.*"  # the machine and the run
)
"""Keys of JSON that may differ. Absolute paths are masked, and lines of metrics.jsonl with the whole run's duration
are left out. Not kept at all: recipe.yaml and versions.json of a run, checkpoints, pages."""
NOT_KEPT = {"recipe.yaml", "versions.json", "checkpoints", ".html"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200",
}
HOSTILE = """
cmyk png16 animated rotated mislabelled gzipped unmeasured busy shaky dropped redirect html svg truncated bomb missing
gone forbidden part broken empty gzip-broken short cut-chunk not-http hung-up redirect-loop redirect-file noai
"""
"""What the hostile server does to some rows; see tests/hostile.py."""
RECIPE = """
catalog: shop
training: {max_steps: 6, batch_size: %d, evaluations: 2, validation_rows: 4, checkpoints: 6, seed: 3, %s}
evaluation: {batch_size: 8, max_new_tokens: 48, resamples: 100}
tracking: {to: none}
"""
ALWAYS = "evaluation_budget: 1.0"  # below 1 it goes by the clock
METHODS = {
    "full": f"{ALWAYS}, method: full, parts: {{vision: frozen}}, optimizer: muon, learning_rate: 0.003",
    "lora": f"{ALWAYS}, method: lora, learning_rate: 0.001, feature_cache: true",
}
ROLES = ("--image=photo", "--id=sku", "--text=title", "--category=kind", "--number=price", "--max-bad=90%")


class CaseError(Exception):
    """A command failed, or a case is not what it should be whatever the kept one says."""


class Work:
    """A folder in which commands run; what several cases need is made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = os.environ | ENVIRONMENT | {"CATALENS_CACHE": str(root / "cache")}

    def command(self, *arguments: str, processes: int = 1) -> list[str]:
        """The command line of catalens, in so many processes."""
        several = ["torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
        several += ["--rdzv-endpoint", "localhost:0", "-m"]
        return [sys.executable, "-m", *(several if processes > 1 else ()), "catalens", *arguments]

    def run(self, *arguments: str, processes: int = 1, codes: Sequence[int] = (0,)) -> str:
        """Run catalens to its end and return its output; CaseError at another exit code."""
        command = self.command(*arguments, processes=processes)
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode not in codes:
            raise CaseError(f"catalens {' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-2000:]}")
        return f"{done.stdout}exit code {done.returncode}\n"

    def kill(self, *arguments: str, when: Callable[[], bool]) -> None:
        """Start catalens and kill -9 it as soon as `when` is true; CaseError where it ends before."""
        command = self.command(*arguments)
        silent = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=self.root, env=self.env, stdout=silent, stderr=silent) as process:
            while process.poll() is None and not when():
                time.sleep(0.002)
            process.kill()
        if process.returncode != -signal.SIGKILL:
            raise CaseError(f"catalens {' '.join(arguments)} ended before it was killed")

    def write(self, name: str, text: str, encoding: str = "utf-8") -> Path:
        """Write a file into the folder."""
        path = self.root / name
        path.write_text(text, encoding=encoding)
        return path

    @cached_property
    def shop(self) -> Path:
        """A drawn catalogue of 80 rows."""
        self.run("sample", "shop", "--rows=80", "--seed=5", "--splits=0.6,0.2,0.2", "--workers=1")
        return self.root / "shop"

    def train(self, method: str, processes: int = 1) -> Path:
        """A run of the tiny model; one that is there stays."""
        folder = self.root / f"{method}-{processes}"
        if not folder.exists():
            self.run("train", self.recipe(method, processes), f"--out={folder.name}", processes=processes)
        return folder

    def recipe(self, method: str, processes: int = 1) -> str:
        """Name of the recipe's file."""
        assert self.shop
        return self.write(f"{method}-{processes}.yaml", RECIPE % (4 // processes, METHODS[method])).name

    def evaluated(self, method: str) -> Path:
        """A run with its evaluation."""
        folder = self.train(method)
        if not (folder / "evaluation").exists():
            self.run("evaluate", folder.name)
        return folder

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """Rows of a shop with local pictures: variants, near-duplicates, a lost and a broken picture, odd numbers."""
        (self.root / "photos").mkdir()
        for n in range(40):
            (self.root / f"photos/{n}.jpg").write_bytes(picture(n) if n != 7 else b"<html>broken</html>")
        prices = ["", "none", "1.234,50", "0"]
        return [
            {
                "photo": f"photos/{n}.jpg" if n != 9 else "photos/lost.jpg",
                "sku": f"P{n // 2}",
                "title": f'Größe "{n % 7}"; Hat {n}',
                "kind": f"KIND {n % 4}",
                "price": prices[n // 9 - 1] if n % 9 == 0 and n else f"{n},25",
            }
            for n in range(40)
        ]

    def prepare(self, source: str, out: str, *more: str) -> Path:
        """Make a catalogue."""
        self.run("prepare", source, f"--out={out}", *ROLES, *more)
        return self.root / out


def picture(n: int) -> bytes:
    """A JPEG of coarse blocks; each eleventh is the one before in another size."""
    coarse = Image.frombytes("RGB", (6, 4), Random(n - (n % 11 == 10)).randbytes(72))
    buffer = io.BytesIO()
    coarse.resize((120 + n % 11, 80), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def hostile_server() -> Iterator[Callable[[], int]]:
    """Run tests/hostile.py on the fixed port, one golden run at a time; yields a count of the pictures asked for."""
    with (Path(tempfile.gettempdir()) / f"golden-{PORT}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, str(ROOT / "tests/hostile.py"), f"--port={PORT}", "--latency=0.02"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                if not server.stdout.readline():
                    raise CaseError(f"tests/hostile.py does not start on port {PORT}")
                yield lambda: sum(json.loads(urllib.request.urlopen(f"{BASE}/-/counts").read()).values())
            finally:
                server.kill()


BASE = f"http://127.0.0.1:{PORT}"


# Cases: each returns the files and folders to keep --------------------------------------------------------------


def sample(work: Work) -> list[Path]:
    """Draw with three seeds and sets of options."""
    work.run("sample", "drawn-1", "--rows=30", "--seed=1", "--workers=2")
    work.run("sample", "drawn-2", "--rows=30", "--seed=2", "--noise=0.2", "--splits=0.5,0.3,0.2", "--workers=1")
    return [work.shop, work.root / "drawn-1", work.root / "drawn-2"]


def prepare(work: Work) -> list[Path]:
    """Make catalogues of three formats with local and embedded pictures."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*work.table[0]], delimiter=";")
    writer.writeheader()
    writer.writerows(work.table)
    work.write("shop.csv", text.getvalue(), "latin-1")
    work.write("shop.jsonl", "".join(f"{json.dumps(row | {'price': n + 0.5})}\n" for n, row in enumerate(work.table)))
    numbers = [row | {"price": float(n), "photo": picture(n)} for n, row in enumerate(work.table)]
    pq.write_table(pa.Table.from_pylist(numbers), work.root / "embedded.parquet")
    paths = [row | {"price": n} for n, row in enumerate(work.table)]
    pq.write_table(pa.Table.from_pylist(paths), work.root / "paths.parquet")
    return [
        work.prepare("shop.csv", "from-csv", "--decimal=,", "--thousands=.", "--encoding=latin-1"),
        work.prepare("shop.jsonl", "from-jsonl", "--max-side=64", "--strip-metadata"),
        work.prepare("embedded.parquet", "from-embedded", "--splits=0.5,0.25,0.25"),
        work.prepare("paths.parquet", "from-paths"),
    ]


def prepare_urls(work: Work) -> list[Path]:
    """Make a catalogue of URLs undisturbed; killed after 20 requests and gone on with, it is the same."""
    kinds = ["jpeg"] * 24 + HOSTILE.split() + ["jpeg"] * 12
    lines = [f"{BASE}/{kind}/{n},P{n // 2},{kind} {n},KIND {n % 4},{n}.5\n" for n, kind in enumerate(kinds)]
    work.write("urls.csv", "photo,sku,title,kind,price\n" + "".join(lines))
    web = ("--allow-private-hosts", "--concurrency=4", "--per-host=4", "--rate=1000000")
    with hostile_server() as asked:
        peace = work.prepare("urls.csv", "from-urls", *web)
        once = asked()
    with hostile_server() as asked:
        work.kill("prepare", "urls.csv", "--out=killed-urls", *ROLES, *web, when=lambda: asked() >= 20)
        first = asked()
        killed = work.prepare("urls.csv", "killed-urls", *web)
        if not asked() - first <= once - 8:
            raise CaseError(f"prepare begins anew: {first} requests, then {asked() - first} more, {once} in peace")
    same_as(peace, killed, "catalog.json", "README.md")  # with the folder's name
    return [peace, killed]


def mimic(work: Work) -> list[Path]:
    """Draw a catalogue like another one."""
    work.run("sample", "like-shop", f"--like={work.shop.name}", "--rows=24", "--seed=4", "--workers=1")
    return [work.root / "like-shop"]


def check(work: Work) -> list[Path]:
    """Check a catalogue: what it finds, and apart from that what training costs."""
    said = work.run("check", work.shop.name, f"--recipe={work.recipe('full')}", "--out=check.html", codes=(0, 9))
    end = max((match.end() for match in re.finditer(r"^ +fix: .*\n", said, re.MULTILINE)), default=0)
    return [
        work.write("findings.txt", said[:end] + said[said.rindex("exit code") :]),
        work.write("costs.txt", said[end:]),
    ]


def train_killed(work: Work) -> list[Path]:
    """Train, killed when the second checkpoint appears; gone on with, it is the same run."""
    killed, peace = work.root / "killed", work.train("full")
    checkpoints = killed / "checkpoints"
    work.kill(
        "train", work.recipe("full"), "--out=killed", when=lambda: len([*checkpoints.glob("[!.]*-[0-9]*")]) >= 2
    )
    if (killed / "best").exists():
        raise CaseError("train was killed too late")
    work.run("train", "--resume", "killed")
    same_as(peace, killed, "README.md", "coverage.json", "unwritable.jsonl")
    return [killed / "best", killed / "metrics.jsonl"]


def predict(work: Work) -> list[Path]:
    """Read a catalogue, a table and a folder with a finished run, into each format."""
    run, rows = work.train("lora").name, work.table
    work.write("photos.csv", "photo,sku\n" + "".join(f"{row['photo']},{row['sku']}\n" for row in rows))
    work.run("predict", run, work.shop.name, "--split=test", "--out=shop.parquet", "--batch-size=5")
    table = ("--image=photo", "--id=sku", "--max-bad=50%", "--accept-error=20%", "--out=table.csv")
    work.run("predict", run, "photos.csv", *table)
    work.run("predict", run, "photos", "--out=folder.jsonl", "--free-categories", "--max-bad=50%")
    return [work.root / name for name in ("shop.parquet", "table.csv", "folder.jsonl")]


def predict_killed(work: Work) -> list[Path]:
    """Read pictures from URLs, killed when the fourth chunk of eight is asked for; gone on with, it is the same."""
    lines = [f"{BASE}/{'missing' if n % 9 == 4 else 'jpeg'}/{n},P{n}\n" for n in range(48)]
    work.write("web.csv", "photo,sku\n" + "".join(lines))
    given = ("predict", work.train("full").name, "web.csv", "--image=photo", "--id=sku", "--max-bad=50%")
    given += ("--allow-private-hosts", "--batch-size=1")
    with hostile_server() as asked:
        work.run(*given, "--out=web.parquet")
        once = asked()
        work.kill(*given, "--out=killed.parquet", when=lambda: asked() - once > 24)
        first = asked()
        work.run(*given, "--out=killed.parquet")
        if not asked() - first < once:
            raise CaseError(f"predict begins anew: {asked() - first} requests after the kill")
    if (work.root / "web.parquet").read_bytes() != (work.root / "killed.parquet").read_bytes():
        raise CaseError("a killed predict does not end as an undisturbed one")
    return [work.root / "web.parquet"]


def compare_runs(work: Work) -> list[Path]:
    """Compare two evaluated runs."""
    runs = (work.evaluated("full").name, work.evaluated("lora").name)
    return [work.write("compare.json", work.run("compare", *runs, "--json").rpartition("exit code")[0])]


def demo(work: Work) -> list[Path]:
    """Run the demo: 3,040 drawn rows, three epochs, all scores."""
    work.run("demo", "--out=demo", "--catalog=demo-shop")
    return [work.root / "demo/evaluation", work.root / "demo/calibration.json"]


class Case(NamedTuple):
    """Something to run, and what of it is compared, in words."""

    run: Callable[[Work], list[Path]]
    what: str


CASES: Mapping[str, Case] = {
    "sample": Case(sample, "catalogues of three seeds"),
    "prepare": Case(prepare, "catalogues from CSV, JSONL, Parquet"),
    "prepare-urls": Case(prepare_urls, "catalogue from a hostile server; kill -9"),
    "mimic": Case(mimic, "catalogue and profile"),
    "check": Case(check, "findings, costs, exit code"),
    "train-full": Case(lambda work: [work.train("full")], "weights, metrics, calibration"),
    "train-full-2": Case(lambda work: [work.train("full", 2)], "the same of two processes"),
    "train-lora": Case(lambda work: [work.train("lora")], "adapters, metrics, calibration"),
    "train-lora-2": Case(lambda work: [work.train("lora", 2)], "the same of two processes"),
    "train-killed": Case(train_killed, "weights and metrics after kill -9"),
    "evaluate": Case(
        lambda work: [work.evaluated(name) / "evaluation" for name in METHODS], "metrics.json, predictions.parquet"
    ),
    "compare": Case(compare_runs, "figures as JSON"),
    "predict": Case(predict, "Parquet, CSV, JSONL"),
    "predict-killed": Case(predict_killed, "Parquet, also after kill -9"),
    "demo": Case(demo, "metrics.json, predictions.parquet"),
}


# What is kept, and how it is compared ---------------------------------------------------------------------------


def collect(work: Work, paths: Sequence[Path], to: Path) -> None:
    """Copy what a case has made, with absolute paths masked, without what is not compared."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    for file in files:
        name = file.relative_to(work.root)
        if file.is_file() and not NOT_KEPT & {*name.parts, file.suffix}:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            (to / name).write_bytes(file.read_bytes().replace(str(work.root).encode(), b"/work"))


def same_as(peace: Path, killed: Path, *excepted: str) -> None:
    """CaseError where what was killed differs from what was not; only their common top folders and files count."""
    for file in sorted(killed.rglob("*")):
        name = file.relative_to(killed)
        if file.is_file() and not (NOT_KEPT | {*excepted}) & {*name.parts, file.suffix}:
            for found in differences(peace / name, file):
                raise CaseError(f"{name} differs after the kill: {found.where}: {found.what}")


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
                yield from values(one[key], other[key], f"{where}.{key}")
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
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = Work(Path(temporary).resolve() / "work")
        work.root.mkdir()
        for name in (name for name in CASES if name in options.only):
            started, kept, new = time.monotonic(), options.folder / name, Path(temporary) / "new" / name
            try:
                collect(work, CASES[name].run(work), new)
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
            table.add_row(name, CASES[name].what, str(files), largest, judged, seconds)
    console = Console(width=None if sys.stdout.isatty() else 118, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
