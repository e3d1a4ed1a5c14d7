"""The commands of docs/exporting.md, run as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catalens.cli import app
from catalens.exporting import LIMITS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "exporting.md").read_text(encoding="utf-8")


@pytest.mark.integration
def test_the_commands_run(adapted, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(adapted, tmp_path / "runs" / "practice")
    monkeypatch.chdir(tmp_path)
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) >= 4
    for command in commands:
        name, *arguments = shlex.split(command)
        assert name == "catalens"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}{result.exception}"
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
