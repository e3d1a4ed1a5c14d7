"""What `make torture` does before a release, in small: seconds, and the same dice every time."""

import sys
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "torture"))

from folders import damage_folders
from kills import kill_runs
from processes import Ended, Report
from rows import try_rows

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("code", "output", "fault"),
    [
        (0, "shop: 8 train rows\n", None),
        (3, "reading 8/8\nerror: shop.csv: no column 'x'\n", None),
        (-9, "reading", None),
        (1, "Traceback (most recent call last):\n  File\nKeyError: 'asked'\n", "traceback: KeyError: 'asked'"),
        (0, "row \x1b[2J\n", "control characters ['\\x1b'] in the output"),
        (3, "no column\n", "exit code 3 after 'no column\\n'"),
        (77, "error: no column\n", "exit code 77 after 'error: no column\\n'"),
        (0, "error: no column\n", "exit code 0 after 'error: no column\\n'"),
    ],
)
def test_an_end_is_judged(code: int, output: str, fault: str | None):
    assert Ended(code, output).fault == fault


def test_runs_that_are_killed_end_with_the_same_bytes(tmp_path: Path):
    report = Report("kills")
    kill_runs(report, tmp_path, 3, Random(1), size=60, names=["mixed.jsonl"])
    assert report.failures == []
    assert report.counts["kills"] == 3


def test_damaged_work_folders_are_mended_or_refused(tmp_path: Path):
    report = Report("folders")
    damage_folders(report, tmp_path, 5, Random(1), size=60, names=["mixed.jsonl"])
    assert report.failures == []
    assert report.counts["refused"] + report.counts["right in the end"] == 5


def test_hostile_rows_are_kept_as_they_are_or_rejected(tmp_path: Path):
    report = Report("rows")
    try_rows(report, tmp_path, 20, Random(1))
    assert report.failures == []
    assert report.counts["hostile rows"] == 28
