"""The commands of docs/exporting.md, run as they stand."""

import re
from pathlib import Path

import pytest

from catalens.exporting import LIMITS

TEXT = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text(encoding="utf-8")


@pytest.mark.integration
def test_the_commands_run(run_commands):
    run_commands("exporting.md")
    files = {path.name for path in Path("exports/practice").iterdir()}
    told = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    patterns = [name.replace("*", ".*") for name in re.findall(r"`([^`]+\.(?:json|safetensors|md|parquet))`", told)]
    assert {name for name in files if not any(re.fullmatch(p, name) for p in patterns)} == set()


def test_the_tolerances_are_the_ones_of_the_code():
    rows = {cells[1].strip(): cells[3:5] for line in TEXT.splitlines() if len(cells := line.split("|")) == 6}
    for name in ("pixels", "logits", "log probability"):
        for cell, precision in zip(rows[name], ("fp32", "bf16"), strict=True):
            assert float(cell) == getattr(LIMITS[precision], name.replace(" ", "_"))
    assert rows["answers"] == [" equal ", " 1 in 10 may differ "]
    assert (LIMITS["fp32"].answers, LIMITS["bf16"].answers) == (0.0, 0.1)
