"""The wheel, installed with plain pip into an environment of its own, runs the demo outside the repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_the_demo(tmp_path: Path):
    def run(*command: str | Path) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HOME": str(tmp_path), "OMP_NUM_THREADS": "2", "CATALENS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout + done.stderr

    run(sys.executable, "-m", "venv", "env")
    pip = [tmp_path / "env/bin/python", "-m", "pip", "--disable-pip-version-check", "-q"]
    run(*pip, "wheel", "--no-deps", "-w", "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("catalens-*.whl")
    run(*pip, "install", wheel, "-c", ROOT / "constraints.txt")
    said = run(tmp_path / "env/bin/catalens", "demo", "--rows", "300", "--set", "training.max_steps=8")
    assert "report: runs/demo/evaluation/report.html" in said
    assert (tmp_path / "runs/demo/evaluation/metrics.json").is_file()
