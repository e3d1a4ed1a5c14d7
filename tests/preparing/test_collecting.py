"""Pictures from servers that do their worst: every row ends with its reason, and nothing finished is done again."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile import KINDS, SLOW, Hostile, expected_reason, hostile_server  # noqa: F401

from catalens import prepare
from catalens.catalog import SPLITS, Catalog, CatalogCard
from catalens.errors import TooManyBadRowsError
from catalens.preparing import DownloadSpec, PrepareSpec, TableJournal

ROOT = Path(__file__).parents[2]
HASTY = DownloadSpec(
    per_host=64,
    per_host_rate=1e6,
    connect_timeout=5,
    max_bytes=500_000,
    retries=1,
    backoff=0.01,
    host_patience=3600,
    allow_private_hosts=True,
)


def table(path: Path, urls: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "title", "category", "price", "image_url"])
        writer.writerows([f"P{n}", f"Bag {n}", f"KIND {n % 3}", n + 1, url] for n, url in enumerate(urls))
    return path


def prepared(path: Path, out: Path, retry_failed: bool = False, **spec) -> CatalogCard:
    spec = {"download": HASTY, "max_bad": 1.0} | spec
    return prepare(str(path), out, spec=PrepareSpec(**spec), retry_failed=retry_failed)[1]


def rows_of(out: Path) -> set[str]:
    catalog = Catalog(out)
    return {row["sku"] for split in SPLITS if catalog.card.rows[split] for row in catalog.rows(split, ["sku"])}


def rejected(out: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()}


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.integration
def test_every_row_of_a_hostile_table_ends_with_its_reason(hostile: Hostile, tmp_path: Path):
    kinds = list(KINDS)
    asked = [kinds[n % len(kinds)] for n in range(2000)]
    asked = [kind if kind not in SLOW or n < 300 else "jpeg" for n, kind in enumerate(asked)]
    path = table(tmp_path / "table.csv", [hostile.url(kind, n) for n, kind in enumerate(asked)])
    # as short as servers that never answer allow, and long enough for a busy machine
    bounded = HASTY.model_copy(update={"read_timeout": 5, "total_timeout": 10})
    card = prepared(path, tmp_path / "out", download=bounded)
    kept, reasons = rows_of(tmp_path / "out"), rejected(tmp_path / "out")
    assert len(kept) + len(reasons) == 2000
    assert sum(card.left_out.values()) == len(reasons)
    for n, kind in enumerate(asked):
        reason = expected_reason(kind, allow_private_hosts=True)
        row = f"P{n}"
        if reason is not None:
            assert reasons[row].startswith(reason), (kind, reasons[row])
        elif kind != "redirect-private" and not KINDS[kind].picture:
            assert reasons[row].startswith("picture: "), (kind, reasons.get(row))
        else:  # a picture that many rows share may tie two splits
            assert row in kept or reasons[row] == "tied to products of two splits", (kind, reasons.get(row))
    assert hostile.counts["/missing/" + str(asked.index("missing"))] == 1
    assert hostile.counts["/shaky/" + str(asked.index("shaky"))] == 2


def test_private_addresses_are_refused_unless_allowed(hostile: Hostile, tmp_path: Path):
    path = table(tmp_path / "table.csv", [hostile.url("jpeg", n) for n in range(3)])
    with pytest.raises(TooManyBadRowsError, match=r"address refused: 127\.0\.0\.1"):
        prepared(path, tmp_path / "out", download=HASTY.model_copy(update={"allow_private_hosts": False}))
    assert not hostile.counts


def test_what_failed_is_asked_for_again_and_nothing_else(hostile: Hostile, tmp_path: Path):
    urls = [hostile.url("shaky" if n % 4 == 0 else "jpeg", n) for n in range(40)]
    path = table(tmp_path / "table.csv", urls)
    once = HASTY.model_copy(update={"retries": 0})
    with pytest.raises(
        TooManyBadRowsError,
        match=r"10 of 40 rows .* more than --max-bad 5%: 10 HTTP 500; such as row 1 \(P0\): HTTP 500",
    ):
        prepared(path, tmp_path / "out", max_bad=0.05, download=once)
    card = prepared(path, tmp_path / "out", max_bad=0.3, download=once)
    assert card.left_out == {"HTTP 500": 10}
    assert set(hostile.counts.values()) == {1}
    assert prepared(path, tmp_path / "out", max_bad=0.3, download=once) == card  # complete: nothing is done
    assert set(hostile.counts.values()) == {1}
    card = prepared(path, tmp_path / "out", retry_failed=True, max_bad=0.05, download=once)
    assert (sum(card.rows.values()), card.left_out) == (40, {})
    assert all(count == (2 if "shaky" in path else 1) for path, count in hostile.counts.items())


def test_other_splits_need_no_picture_again(hostile: Hostile, tmp_path: Path):
    path = table(tmp_path / "table.csv", [hostile.url("jpeg", n) for n in range(30)])
    prepared(path, tmp_path / "out")
    card = prepared(path, tmp_path / "out", fractions={"train": 0.4, "validation": 0.3, "test": 0.3})
    assert min(card.rows.values()) >= 8
    assert set(hostile.counts.values()) == {1}


def test_categories_too_rare_for_every_split_are_named(hostile: Hostile, tmp_path: Path):
    path = table(tmp_path / "table.csv", [hostile.url("jpeg", n) for n in range(30)])
    path.write_text(path.read_text().replace("KIND 0", "HATS", 1))
    told: list[str] = []
    prepare(str(path), tmp_path / "out", spec=PrepareSpec(download=HASTY, max_bad=1.0), notice=told.append)
    (rare,) = (text for text in told if "too rare" in text)
    assert "HATS (1)" in rare


def test_what_came_of_each_row_is_on_record(hostile: Hostile, tmp_path: Path):
    prepared(table(tmp_path / "table.csv", [hostile.url("redirect", 1), hostile.url("gone", 2)]), tmp_path / "out")
    with TableJournal.open(tmp_path / "out.work/journal.sqlite", "") as journal:
        found = journal.database.execute(
            "SELECT reason, status, final_url, attempts, bytes > 20000, length(sha256) FROM pictures ORDER BY picture"
        ).fetchall()
    assert found == [
        (None, 200, hostile.url("jpeg", 1), 1, 1, 32),
        ("HTTP 410", 410, hostile.url("gone", 2), 1, 0, None),
    ]


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[str]:
    """The server in a process of its own, with a latency; its address."""
    command = [sys.executable, str(ROOT / "tests/hostile.py"), "--latency", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def counts(server: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{server}/-/counts") as answer:
        return json.load(answer)


def killed_prepare(server: str, folder: Path, rows: int, kills: int) -> None:
    """Prepare, killed that often at random moments; then to the end, and compared with a run in peace."""
    kinds = ["jpeg"] * 9 + ["missing"]
    path = table(folder / "table.csv", [f"{server}/{kinds[n % 10]}/{n}" for n in range(rows)])
    flags = ["--allow-private-hosts", "--rate", "100000", "--max-bad", "20%", "--concurrency", "8", "--per-host", "8"]
    command = [sys.executable, "-m", "catalens", "prepare", str(path), *flags, "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    dice = random.Random(0)
    finished: set[str] = set()
    before: dict[str, int] = {}
    for _ in range(kills):
        work = folder / "killed.work"
        with subprocess.Popen([*command, str(folder / "killed")], env=environment, stderr=subprocess.DEVNULL) as run:
            asked = sum(counts(server).values())
            more = dice.randint(0, 2 * rows // kills)
            while run.poll() is None and sum(counts(server).values()) < asked + more:
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
        now = counts(server)
        assert all(now[name] == before[name] for name in finished)
        if (work / "journal.sqlite").exists():
            with TableJournal.open(work / "journal.sqlite", "") as journal:
                done = journal.database.execute("SELECT key FROM pictures WHERE made IS NOT NULL")
                finished |= {key.removeprefix(server) for (key,) in done}
        before = now
    subprocess.run([*command, str(folder / "killed")], env=environment, check=True, stderr=subprocess.DEVNULL)
    now = counts(server)
    assert all(now[name] == before[name] for name in finished)
    assert len(finished) > rows // 3
    assert sum(now.values()) <= rows + 8 * kills  # of what is asked again there is no more than connections
    subprocess.run([*command, str(folder / "peace")], env=environment, check=True, stderr=subprocess.DEVNULL)
    killed, peace = files(folder / "killed"), files(folder / "peace")
    killed["README.md"] = killed["README.md"].replace(b"killed", b"peace")
    killed["catalog.json"] = killed["catalog.json"].replace(b'"killed"', b'"peace"')
    assert killed == peace


@pytest.mark.integration
def test_kill_loses_nothing_and_repeats_nothing(patient: str, tmp_path: Path):
    killed_prepare(patient, tmp_path, rows=300, kills=3)


@pytest.mark.slow
def test_twenty_kills_of_two_thousand_rows(patient: str, tmp_path: Path):
    killed_prepare(patient, tmp_path, rows=2000, kills=20)
