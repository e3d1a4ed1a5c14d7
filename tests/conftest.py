"""What several test files share: a small drawn catalogue, and a run of the tiny model on it."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two workers on two cores: one thread each, and none that spins. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "CATALENS_CACHE" not in os.environ:  # nothing at home
    os.environ["CATALENS_CACHE"] = tempfile.mkdtemp(prefix="catalens-")
    atexit.register(shutil.rmtree, os.environ["CATALENS_CACHE"], ignore_errors=True)

# The same examples every time, and no clock: a busy machine is not a failure.
settings.register_profile("calm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

ROOT = Path(__file__).parents[1]
LONGEST = ("test_readme.py", "test_torture.py", "test_resuming.py", "test_cli.py")
"""Files with the longest tests: begun first, so that no worker waits for them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name long bytes without their content: a workbook's holds the time, and workers would disagree."""
    return "bytes" if isinstance(val, bytes) and len(val) > 40 else None


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 80 drawn rows."""
    from catalens.sampling import sample_catalog

    folder = tmp_path_factory.mktemp("catalogs") / "drawn"
    sample_catalog(folder, 80, seed=5, fractions={"train": 0.6, "validation": 0.2, "test": 0.2})
    return folder


@pytest.fixture(scope="session")
def recipe(drawn: Path):
    """A recipe that trains for some seconds."""
    from catalens.config import make_recipe

    training = {
        "method": "full",
        "parts": {"vision": "frozen"},
        "optimizer": "muon",
        "learning_rate": 3e-3,
        "max_steps": 6,
        "batch_size": 8,
    }
    return make_recipe(
        {
            "catalog": str(drawn),
            "training": training | {"num_evals": 2, "validation_rows": 4},
            "evaluation": {"batch_size": 8, "max_new_tokens": 48, "resamples": 100},
            "tracking": {"to": "none"},
        }
    )


@pytest.fixture(scope="session")
def run(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of that recipe."""
    from catalens.evaluation import validation_scorer
    from catalens.training.train import train

    folder = tmp_path_factory.mktemp("runs") / "quick"
    train(recipe, folder, validation_scorer(recipe))
    return folder
