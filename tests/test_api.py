"""The public surface: names, parameters, what an import costs, and that the examples run."""

import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import catalens

ROOT = Path(__file__).parents[1]
FUNCTIONS = {
    "check": "catalog recipe out progress",
    "evaluate": "run split rows overrides console",
    "export": "run to out precision rows reference catalog console",
    "load_predictor": "run batch_size accept_error free_categories engine server",
    "load_recipe": "path overrides",
    "make_recipe": "data overrides source",
    "mimic": "out like rows seed fractions workers progress",
    "prepare": "where out columns spec retry_failed progress notice",
    "sample": "out rows seed assortment noise workers fractions progress",
    "train": "recipe out resume model overrides console",
}
CLASSES = {"CatalensError", "Catalog", "Columns", "PrepareSpec", "Recipe"}
HEAVY = {"torch", "transformers", "pyarrow", "numpy", "pydantic", "aiohttp", "fastapi", "wandb"}


def test_the_public_names():
    assert set(catalens.__all__) == {*FUNCTIONS, *CLASSES}
    assert set(catalens.__all__) < set(dir(catalens))
    assert {name for name in catalens.__all__ if inspect.isclass(getattr(catalens, name))} == CLASSES
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = catalens.nothing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_is_typed_and_says_what_it_raises(name: str):
    function = getattr(catalens, name)
    signature = inspect.signature(function)
    assert list(signature.parameters) == FUNCTIONS[name].split()
    assert inspect.Signature.empty not in {
        signature.return_annotation,
        *(p.annotation for p in signature.parameters.values()),
    }
    assert "Error" in (function.__doc__ or "")


def test_type_checkers_see_what_programs_get():
    """The imports for type checkers, which nobody runs, name the same objects."""
    source = (ROOT / "src/catalens/__init__.py").read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:\n")[1].split("\n\n")[0]
    seen: dict[str, object] = {}
    exec(inspect.cleandoc(block), seen)
    assert {name: seen[name] for name in catalens.__all__} == {
        name: getattr(catalens, name) for name in catalens.__all__
    }


def test_an_import_costs_nothing():
    code = "import json, sys, time, catalens; print(json.dumps([time.process_time(), sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    assert not HEAVY & set(modules)
    assert seconds < 0.3


@pytest.mark.integration
def test_the_example_goes_from_a_table_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    short = {
        "training.max_steps": 2,
        "training.num_evals": 1,
        "evaluation.resamples": 100,
        "evaluation.before": False,
    }
    main = runpy.run_path(str(ROOT / "examples/shop.py"))["main"]
    main(str(tmp_path), *(f"{key}={value}" for key, value in short.items()))
    printed = capsys.readouterr().out
    assert "of 2" in printed
    assert "10023757-0.webp" in printed
