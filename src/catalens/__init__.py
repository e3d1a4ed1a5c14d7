"""catalens: from a table of product pictures to a fine-tuned Phi-3-Vision with honest scores.

    import catalens

    catalens.sample("catalogs/practice", rows=400, seed=7)  # or: catalens.prepare("shop.csv", "catalogs/shop")
    catalens.check("catalogs/practice").findings
    catalens.train("recipes/tiny.yaml", "runs/practice", overrides=["catalog=catalogs/practice"])
    catalens.evaluate("runs/practice").metrics["model"]["fields"]
    predictor = catalens.load_predictor("runs/practice")
    catalens.export("runs/practice", "merged", "exports/practice").certificate.passed
    predictor.predict([photo.read_bytes()])[0].values  # {"title": "Red Tote Bag", "full_price": 129.0, ...}

Each is imported when it is first asked for: `import catalens` alone costs nothing.
"""

from typing import TYPE_CHECKING

from catalens.lazy import exports

if TYPE_CHECKING:
    from catalens.catalog.storage import Catalog
    from catalens.checking.check import check_catalog as check
    from catalens.config import Recipe, load_recipe, make_recipe
    from catalens.errors import CatalensError
    from catalens.exporting.export import export
    from catalens.inference.predictor import load_predictor
    from catalens.mimicking.mimic import mimic_catalog as mimic
    from catalens.pipeline import evaluate, train
    from catalens.preparing.prepare import PrepareSpec, prepare
    from catalens.reading.roles import Columns
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
    "export",
    "load_predictor",
    "load_recipe",
    "make_recipe",
    "mimic",
    "prepare",
    "sample",
    "train",
]

__getattr__, _ = exports(
    __name__,
    {
        "catalog.storage": "Catalog",
        "checking.check": "check=check_catalog",
        "config": "Recipe load_recipe make_recipe",
        "errors": "CatalensError",
        "exporting.export": "export",
        "inference.predictor": "load_predictor",
        "mimicking.mimic": "mimic=mimic_catalog",
        "pipeline": "evaluate train",
        "reading.roles": "Columns",
        "preparing.prepare": "PrepareSpec prepare",
        "sampling.sample": "sample=sample_catalog",
    },
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
