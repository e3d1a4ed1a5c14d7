"""Drawn catalogues: the same arguments give the same folder, split by product, with the floor of the price."""

from pathlib import Path
from typing import Any

import pytest

from catalens.catalog import SPLITS, Catalog, open_picture
from catalens.errors import CatalogError
from catalens.sampling import SAMPLE_ROLES, sample_catalog
from catalens.sampling.assortment import BASE

ROWS = 40


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_by_split(folder: Path) -> dict[str, list[dict[str, Any]]]:
    catalog = Catalog(folder)
    return {split: catalog.rows(split) for split in SPLITS if catalog.card.rows[split]}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled") / "shop"
    sample_catalog(folder, ROWS, seed=3)
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_seed_gives_the_same_folder_byte_for_byte(sampled: Path, tmp_path: Path, workers: int):
    sample_catalog(tmp_path / "shop", ROWS, seed=3, workers=workers)
    assert contents(tmp_path / "shop") == contents(sampled)


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"noise": 0.2}, {"assortment": BASE}], ids=lambda change: next(iter(change))
)
def test_another_seed_noise_or_assortment_gives_another_catalogue(tmp_path: Path, change: dict[str, Any]):
    one = sample_catalog(tmp_path / "one", 4, seed=3)
    other = sample_catalog(tmp_path / "other", 4, **{"seed": 3} | change)
    assert one.content_hash != other.content_hash


def test_a_longer_catalogue_keeps_the_splits_of_the_shorter(sampled: Path, tmp_path: Path):
    sample_catalog(tmp_path / "short", 12, seed=3)
    long = {row["product_code"]: split for split, rows in rows_by_split(sampled).items() for row in rows}
    for split, rows in rows_by_split(tmp_path / "short").items():
        for row in rows:
            assert long.get(row["product_code"], split) == split


def test_the_rows_are_those_of_a_shop(sampled: Path):
    splits = rows_by_split(sampled)
    rows = [row for rows in splits.values() for row in rows]
    assert len(rows) == ROWS == sum(Catalog(sampled).card.rows.values())
    for row in rows:
        assert list(row) == ["image", "product_code", "title", "category3_code", "full_price"]
        assert row["full_price"] > 0
        assert isinstance(row["full_price"], float)
        assert row["title"] == " ".join(row["title"].split())
        assert min(open_picture(row["image"]).size) >= 64


def test_variants_of_a_product_share_a_split(sampled: Path):
    splits = rows_by_split(sampled)
    codes = [{row["product_code"] for row in rows} for rows in splits.values()]
    assert sum(map(len, codes)) == len(set().union(*codes)) == sum(Catalog(sampled).card.products.values())
    assert len(set().union(*codes)) < ROWS


def test_the_card_holds_the_settings_and_the_floor(sampled: Path):
    card = Catalog(sampled).card
    assert card.roles == SAMPLE_ROLES
    assert card.provenance == {
        "command": "sample",
        "rows": ROWS,
        "seed": 3,
        "assortment": "demo",
        "noise": 0.08,
        "fractions": {"train": 0.8, "validation": 0.1, "test": 0.1},
    }
    assert 0.02 < card.figures["mdape"] < 0.12  # the median of |a normal of 0.08| is 0.054
    assert card.figures["mae"] > 0


def test_without_noise_a_picture_tells_the_price(tmp_path: Path):
    figures = sample_catalog(tmp_path / "shop", 6, noise=0.0).figures
    assert figures["mdape"] < 0.01


def test_fractions_and_progress(tmp_path: Path):
    seen: list[Any] = []
    fractions = {"train": 0.0, "validation": 0.0, "test": 1.0}
    card = sample_catalog(tmp_path / "shop", 5, fractions=fractions, progress=lambda *called: seen.append(called))
    assert card.rows == {"train": 0, "validation": 0, "test": 5}
    assert seen == [("drawing", done, 5) for done in range(1, 6)]


def test_an_existing_folder_is_refused_before_anything_is_drawn(sampled: Path):
    seen: list[Any] = []
    with pytest.raises(CatalogError, match="exists already"):
        sample_catalog(sampled, 10**9, progress=lambda *called: seen.append(called))
    assert seen == []
