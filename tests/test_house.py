"""What the repository promises about itself."""

import re
import subprocess
from pathlib import Path

import pytest

from catalens.config import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def files() -> list[str]:
    """Tracked and new files, none that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid(path: Path):
    load_recipe(path)


def test_recipes_are_five_at_most():
    assert 3 <= len(RECIPES) <= 5


def test_the_file_map_of_the_readme_is_the_tree():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where things are", 1)[1].split("\n## ", 1)[0]
    mapped = set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))
    source = {path for path in files() if path.startswith("src/catalens/")}
    parts = {"src/catalens/" + path.split("/")[2] for path in source}
    parts = {part + "/" if (ROOT / part).is_dir() else part for part in parts}
    tops = {path.split("/")[0] + ("/" if "/" in path else "") for path in files()} - {"src/"}
    expected = parts | {top for top in tops if top.endswith("/")}
    assert mapped == expected


def test_there_is_no_module_for_odds_and_ends():
    assert not [path for path in files() if re.search(r"(^|/)(utils?|helpers?|common|misc)(\.py|/)", path)]


def test_source_files_stay_readable():
    long = [
        path
        for path in files()
        if path.startswith("src/") and path.endswith(".py") and len((ROOT / path).read_text().splitlines()) > 400
    ]
    assert not long


def test_make_lists_its_targets():
    output = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "bench", "base-model", "parity"):
        assert f"make {target}" in output
