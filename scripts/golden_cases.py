"""What golden.py runs: catalens as a user runs it, in a folder of its own, one thread each.

work = Work(folder)
run, what = CASES["train-lora"]
run(work)               the files and folders to keep: [folder/lora-1]
"""

import csv
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[1]
PORT = 38_917
"""Of the hostile server: URLs are kept, so it is always the same, and one comparison at a time has it."""
BASE = f"http://127.0.0.1:{PORT}"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
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
        self.twins: list[tuple[Path, Path, set[str]]] = []
        """What was not disturbed, what was, and names of files in them that may differ."""
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
    work.twins.append((peace, killed, {"catalog.json", "README.md"}))  # with the folder's name
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
    work.twins.append((peace, killed, {"README.md", "evaluation"}))
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
    work.twins.append((work.root / "web.parquet", work.root / "killed.parquet", set()))
    return [work.root / "web.parquet"]


def compare_runs(work: Work) -> list[Path]:
    """Compare two evaluated runs."""
    runs = (work.evaluated("full").name, work.evaluated("lora").name)
    return [work.write("compare.json", work.run("compare", *runs, "--json").rpartition("exit code")[0])]


def demo(work: Work) -> list[Path]:
    """Run the demo: 3,040 drawn rows, three epochs, all scores."""
    work.run("demo", "--out=demo", "--catalog=demo-shop")
    return [work.root / "demo/evaluation", work.root / "demo/calibration.json"]


CASES: Mapping[str, tuple[Callable[[Work], list[Path]], str]] = {
    "sample": (sample, "catalogues of three seeds"),
    "prepare": (prepare, "catalogues from CSV, JSONL, Parquet"),
    "prepare-urls": (prepare_urls, "catalogue from a hostile server; kill -9"),
    "mimic": (mimic, "catalogue and profile"),
    "check": (check, "findings, costs, exit code"),
    "train-full": (lambda work: [work.train("full")], "weights, metrics, calibration"),
    "train-full-2": (lambda work: [work.train("full", 2)], "the same of two processes"),
    "train-lora": (lambda work: [work.train("lora")], "adapters, metrics, calibration"),
    "train-lora-2": (lambda work: [work.train("lora", 2)], "the same of two processes"),
    "train-killed": (train_killed, "weights and metrics after kill -9"),
    "evaluate": (
        lambda work: [work.evaluated(name) / "evaluation" for name in METHODS],
        "metrics.json, predictions.parquet",
    ),
    "compare": (compare_runs, "figures as JSON"),
    "predict": (predict, "Parquet, CSV, JSONL"),
    "predict-killed": (predict_killed, "Parquet, also after kill -9"),
    "demo": (demo, "metrics.json, predictions.parquet"),
}
"""How each case is run, and what of it is compared."""
