"""catalens: from a table of product pictures to a fine-tuned Phi-3-Vision with honest scores.

    import catalens

    catalens.sample("catalogs/practice", rows=400, seed=7)  # or: catalens.prepare("shop.csv", "catalogs/shop")
    catalens.check("catalogs/practice").findings
    catalens.train("recipes/tiny.yaml", "runs/practice", overrides=["catalog=catalogs/practice"])
    catalens.evaluate("runs/practice").metrics["model"]["fields"]
    predictor = catalens.load_predictor("runs/practice")
    predictor.predict([photo.read_bytes()])[0].values  # {"title": "Red Tote Bag", "full_price": 129.0, ...}

Each is imported when it is first asked for: `import catalens` alone costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catalens.catalog.storage import Catalog
    from catalens.checking.check import check_catalog as check
    from catalens.config import Recipe, load_recipe, make_recipe
    from catalens.errors import CatalensError
    from catalens.inference import load_predictor
    from catalens.mimicking.mimic import mimic_catalog as mimic
    from catalens.pipeline import evaluate, train
    from catalens.preparing.prepare import PrepareSpec, prepare
    from catalens.preparing.roles import Columns
    from catalens.sampling.sample import sample_catalog as sample

__version__ = "0.1.0"
__all__ = [
    "CatalensError",
    "Catalog",
    "Columns",
    "PrepareSpec",
    "Recipe",
    "check",
    "evaluate",
    "load_predictor",
    "load_recipe",
    "make_recipe",
    "mimic",
    "prepare",
    "sample",
    "train",
]

_HOMES = {
    "CatalensError": "errors",
    "Catalog": "catalog.storage",
    "Columns": "preparing.roles",
    "PrepareSpec": "preparing.prepare",
    "Recipe": "config",
    "check": "checking.check:check_catalog",
    "evaluate": "pipeline",
    "load_predictor": "inference",
    "load_recipe": "config",
    "make_recipe": "config",
    "mimic": "mimicking.mimic:mimic_catalog",
    "prepare": "preparing.prepare",
    "sample": "sampling.sample:sample_catalog",
    "train": "pipeline",
}
"""Module of each public name, and its name there where it is another."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
