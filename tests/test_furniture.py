"""The real catalogue, in short form: prepare, train, evaluate with the shipped recipe."""

import os
from pathlib import Path

import pytest

from catalens import prepare
from catalens.catalog import Catalog
from catalens.config import Kind, load_recipe
from catalens.evaluation import validation_scorer
from catalens.evaluation.evaluate import evaluate
from catalens.reading import Columns
from catalens.training.train import train

ROOT = Path(__file__).parents[1]
TABLE = Path(os.environ.get("CATALENS_FURNITURE") or ROOT.parent / "shared/data/furniture") / "furniture.csv"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not TABLE.is_file(), reason=f"no furniture table at {TABLE}"),
]


@pytest.fixture(scope="module")
def furniture(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("catalogs") / "furniture"
    fields: dict[str, Kind] = {"title": "text", "category3_code": "category", "width_cm": "number"}
    prepare(str(TABLE), out, Columns(fields=fields))
    return out


def test_every_row_of_the_table_is_in_the_catalogue(furniture: Path):
    card = Catalog(furniture).card
    assert sum(card.rows.values()) == 783
    assert card.left_out == {}


def test_pictures_with_transparency_stand_on_white(furniture: Path):
    from catalens.catalog import open_picture

    corners = [open_picture(row["image"]).getpixel((0, 0)) for row in Catalog(furniture).rows("test")]
    assert corners.count((255, 255, 255)) > 0.9 * len(corners)


def test_the_recipe_trains_and_scores(furniture: Path, tmp_path: Path):
    short = ["training.max_steps=4", "training.num_evals=1", "training.validation_rows=4", "tracking.to=none"]
    recipe = load_recipe(ROOT / "recipes/furniture.yaml", [f"catalog={furniture}", "evaluation.rows=12", *short])
    train(recipe, tmp_path / "run", validation_scorer(recipe))
    result = evaluate(tmp_path / "run").metrics
    assert result["rows"] == 12
    assert set(result["model"]["fields"]) == {"title", "category3_code", "width_cm"}
