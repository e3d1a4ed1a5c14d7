"""What the repository promises about itself."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from catalens.config import load_recipe

ROOT = Path(__file__).parents[1]
BUDGETS = {
    "catalog/": 1340,
    "checking/": 1123,
    "cli/": 832,
    "config/": 721,
    "evaluation/": 952,
    "exporting/": 1436,
    "inference/": 3405,
    "mimicking/": 1434,
    "model/": 1736,
    "pages/": 2198,
    "preparing/": 1482,
    "reading/": 2618,
    "sampling/": 451,
    "serving/": 1709,
    "tracking/": 501,
    "training/": 1814,
}
"""Lines by package, only ever lowered."""
TOTAL = 27289
RIDDLES = 6
"""Docstrings that ask instead of naming."""
LONG_FUNCTIONS = 0
PRIVATE_NAMES = 40
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


def lines(package: str) -> int:
    """Lines of Python, templates and scripts; data in assets/ is not counted."""
    paths = [ROOT / path for path in files() if path.startswith(f"src/catalens/{package}")]
    return sum(len(path.read_text().splitlines()) for path in paths if path.suffix in {".py", ".j2", ".js", ".css"})


@pytest.mark.parametrize(("package", "budget"), BUDGETS.items())
def test_a_package_keeps_to_its_budget(package: str, budget: int):
    assert lines(package) <= budget


def test_budgets_are_of_what_there_is():
    assert {f"{path.split('/')[2]}/" for path in files() if re.match(r"src/catalens/\w+/", path)} - {"assets/"} == {
        name for name in BUDGETS if name.endswith("/")
    }
    assert lines("") <= TOTAL
    assert max(lines(name) for name in BUDGETS if name.endswith("/")) <= 0.16 * lines("")


def test_functions_fit_a_screen():
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert len(long) <= LONG_FUNCTIONS, long


def test_docstrings_name_or_command():
    """The first line of a docstring is a noun (class) or an imperative verb (function)."""
    riddles = [
        f"{path}:{getattr(node, 'lineno', 1)}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match(r"(What|Whether|Who|How|Where|Why)\b", ast.get_docstring(node) or "")
    ]
    assert len(riddles) <= RIDDLES, riddles


OF_A_FAMILY = re.compile(r"Phi3V|crop|<\|end\|>|image_sizes|pixel_values", re.IGNORECASE)
WORDS = {
    "": "num_crops",  # the recipe's field, and a flag
    "src/catalens/checking/": "crops?",  # costs are told by num_crops
    "src/catalens/exporting/onnx_writer.py": "phi3v",  # the name that onnxruntime-genai has for it
    "src/catalens/mimicking/profile.py": "crops",  # a key of profile.json
    "src/catalens/sampling/picture.py": "crop",  # Pillow's
}
"""Users' words, and others', that stay, by where."""


def test_only_the_model_package_knows_its_family():
    """What differs from one vision-language model to the next is asked of a `Family`; docstrings may tell of one.

    `tiling.py` is the part of the family that runs without torch.
    """
    known = []
    for path, tree in sources():
        if path.startswith(("src/catalens/model/", "src/catalens/tiling.py")):
            continue
        allowed = "|".join(words for where, words in WORDS.items() if path.startswith(where))
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            words = [value for _, value in ast.iter_fields(node) if isinstance(value, str) and id(node) not in told]
            known += [
                f"{path}: {word}" for word in words if OF_A_FAMILY.search(re.sub(allowed, "", word, flags=re.I))
            ]
    assert not known


def test_tests_use_public_faces():
    """What a package or a module at the top exports is public; what lies deeper is not."""
    private = {
        f"{node.module} {alias.name}"
        for path in files()
        if path.startswith("tests/") and path.endswith(".py")
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("catalens.")
        for alias in node.names
        if (node.module or "").count(".") > 1 or alias.name.startswith("_")
    }
    assert len(private) <= PRIVATE_NAMES, sorted(private)


def sources() -> list[tuple[str, ast.Module]]:
    """Parsed Python files of the package."""
    paths = [path for path in files() if path.startswith("src/") and path.endswith(".py")]
    return [(path, ast.parse((ROOT / path).read_text())) for path in paths]


@pytest.mark.parametrize(("folders", "groups"), [(["src"], []), (["tests", "scripts", "benchmarks"], ["dev"])])
def test_every_package_that_is_imported_is_declared(folders: list[str], groups: list[str]):
    """What another package happens to bring is gone when that one changes its mind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for name in optional if name != "dev" for line in optional[name])]
    needed += [line for name in groups for line in optional[name]]
    declared = {normal(re.split(r"[\s>=<!\[;]", line)[0]) for line in needed} | {"catalens"}
    ours = {Path(path).stem for path in files() if path.endswith(".py") and not path.startswith("src/")}
    providers = packages_distributions()
    imported = {
        (name.split(".")[0], path)
        for path in files()
        if path.endswith(".py") and path.split("/")[0] in folders
        for name in imports(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    }
    missing = {
        f"{name} ({path})"
        for name, path in imported
        if name not in sys.stdlib_module_names | ours
        and not {normal(package) for package in providers.get(name, [name])} & declared
    }
    assert not missing


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def normal(package: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def test_make_lists_its_targets():
    output = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "bench", "base-model", "parity"):
        assert f"make {target}" in output
