"""The README's commands are run as they stand, in a folder that has what they name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from catalens.config import make_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.integration
def test_the_commands_run(tmp_path: Path):
    for folder in ("recipes", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    commands = [line for block in blocks("bash") for line in block.splitlines() if line]
    assert len(commands) >= 6
    output = ""
    for command in commands:
        result = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        output += result.stdout
    assert (tmp_path / "runs/practice/evaluation/report.html").is_file()
    assert '"file": "examples/shop/photos/10023757-0.webp"' in output


def test_the_first_commands_are_the_two_that_matter():
    assert [line.split("#")[0].strip() for line in README.splitlines()[2:4]] == ["make demo", "make test"]


def test_the_recipes_in_the_documentation_are_valid():
    recipes = blocks("yaml", TRAINING)
    assert recipes
    for block in recipes:
        make_recipe(yaml.safe_load(block))


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200


def test_links_and_pictures_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
