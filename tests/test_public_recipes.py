"""The recipes for public data, on made tables of the same columns."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from catalens import train
from catalens.cli import app
from catalens.sampling import draw_catalog

ROOT = Path(__file__).parents[1]
DRAWN = list(draw_catalog(40, seed=4))
SMALL = [
    "model=tiny",
    "num_crops=1",
    "training.max_steps=2",
    "training.validation_rows=4",
    "tracking.to=none",
    "evaluation.before=false",
]

pytestmark = pytest.mark.integration


def prepared(*arguments: str) -> None:
    ended = CliRunner().invoke(app, ["prepare", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output


def scores(catalog: Path, recipe: str, tmp_path: Path) -> dict:
    """What `train` and `evaluate` make of a catalogue by a recipe, on a tiny model."""
    run = tmp_path / "run"
    train(ROOT / "recipes" / recipe, run, overrides=[f"catalog={json.dumps(str(catalog))}", *SMALL])
    ended = CliRunner().invoke(app, ["evaluate", str(run)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return json.loads((run / "evaluation/metrics.json").read_bytes())["constrained"]["fields"]


def test_the_catalogue_of_shopify(tmp_path: Path):
    rows = [
        {
            "product_title": row.title,
            "product_description": f"A fine {row.title.lower()}.",
            "product_image": {"bytes": row.image, "path": None},
            "potential_product_categories": ["Apparel > Bags", "Apparel"],
            "ground_truth_category": f"Apparel > {['Bags', 'Shoes'][n % 2]} > {['Old', 'New'][n % 3 > 0]}",
            "ground_truth_brand": ["Acme", "Globex"][n % 2],
            "ground_truth_is_secondhand": n % 3 == 0,
        }
        for n, row in enumerate(DRAWN)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shopify.parquet")
    catalog = tmp_path / "catalog"
    categories = ["--category", "ground_truth_category", "--category", "ground_truth_is_secondhand"]
    given = ["--input", "product_title", "--input", "product_description"]
    picture = ["--image", "product_image", "--text", "ground_truth_brand"]
    prepared(str(tmp_path / "shopify.parquet"), *picture, *categories, *given, "--out", str(catalog))
    found = scores(catalog, "shopify.yaml", tmp_path)
    category = found["ground_truth_category"]
    assert category["accuracy"]["value"] <= category["hierarchical_f1"]["value"] <= 1
    assert category["hierarchical_f1"]["value"] >= 1 / 3, "the root at least is always right"
    assert set(found["ground_truth_brand"]) == {"exact", "similarity", "token_f1", "fuzzy"}


def test_the_prices_of_amazon(tmp_path: Path):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "catalog_content", "image_link", "price"])
        for n, row in enumerate(DRAWN):
            (tmp_path / f"{n}.jpg").write_bytes(row.image)
            writer.writerow([n, f"Item Name: {row.title}\nValue: 12.0\nUnit: Ounce", f"{n}.jpg", row.full_price / 7])
    catalog = tmp_path / "catalog"
    columns = ["--id", "sample_id", "--image", "image_link", "--number", "price", "--input", "catalog_content"]
    prepared(str(tmp_path / "train.csv"), *columns, "--out", str(catalog))
    price = scores(catalog, "amazon-prices.yaml", tmp_path)["price"]
    assert 0 < price["smape"]["value"] <= 2
