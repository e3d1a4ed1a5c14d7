"""A run with an adapter, and the merged exports of it and of the run of all tests."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # parity.py, with the golden models


@pytest.fixture(scope="session")
def adapted(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run, calibrated."""
    from catalens.config import make_recipe
    from catalens.pipeline import train

    fields = recipe.model_dump(mode="json")
    training = {"method": "lora", "max_steps": 6, "batch_size": 8, "num_evals": 1, "validation_rows": 0}
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    train(make_recipe(fields | {"training": training | {"learning_rate": 0.01}}), folder)
    return folder


@pytest.fixture(scope="session")
def merged(adapted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its merged export."""
    from catalens import export

    return export(adapted, "merged", tmp_path_factory.mktemp("exports") / "merged", rows=6).folder


@pytest.fixture(scope="session")
def photos(drawn: Path) -> list[bytes]:
    """Pictures of the drawn catalogue."""
    from catalens import Catalog

    return [row["image"] for batch in Catalog(drawn).batches("train", ["image"]) for row in batch][:40]


@pytest.fixture
def run_commands(adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Runs the commands of a page of docs/ on that run, in a folder of its own; gives the page's text."""
    from catalens.cli import app

    root = Path(__file__).parents[2]

    def run(page: str) -> str:
        text = (root / "docs" / page).read_text(encoding="utf-8")
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "practice").symlink_to(adapted)
        (tmp_path / "examples").symlink_to(root / "examples")
        monkeypatch.chdir(tmp_path)
        (block,) = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        for command in block.splitlines():
            few = ["--rows", "8"] if "--to" in command else []
            result = CliRunner().invoke(app, [*shlex.split(command)[1:], *few])
            assert result.exit_code == 0, f"{command}\n{result.output}"
        return text

    return run
