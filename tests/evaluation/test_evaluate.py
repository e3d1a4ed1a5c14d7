import json
import shutil

import pyarrow.parquet as pq
import pytest

from catalens.catalog.pictures import open_picture
from catalens.catalog.storage import Catalog, CatalogWriter
from catalens.config import METRICS, PromptSpec
from catalens.errors import CatalogError
from catalens.evaluation import evaluate, flatten
from catalens.evaluation.image_use import blanked, pictures_matter, shuffle
from catalens.evaluation.rows import truth_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def result(run):
    return evaluate(run).metrics


def test_every_figure_has_its_interval_in_the_same_structure_everywhere(result, recipe):
    scores = [result["model"], result["before"], *result["baselines"].values()]
    scores += [result["image_use"]["blank"], result["image_use"]["shuffled"]]
    assert set(result["baselines"]) == {"majority", "nearest_neighbour"}
    for score in scores:
        figures = [score["parse_rate"]]
        for field in recipe.prompt.fields:
            assert tuple(score["fields"][field.column]) == METRICS[field.kind]
            figures += score["fields"][field.column].values()
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)
    assert result["split"] == "test"


def test_what_is_on_disk_is_what_is_returned(result, run, drawn):
    folder = run / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == result
    rows = Catalog(drawn).rows("test")
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert result["rows"] == len(rows) == len(table)
    assert [row["id"] for row in table] == [row["product_code"] for row in rows]
    assert [row["truth.full_price"] for row in table] == [row["full_price"] for row in rows]
    for row in table:
        assert (row["error"] is None) == (row["predicted.full_price"] is not None)
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_the_figures_are_those_of_the_predictions(result, run):
    table = pq.read_table(run / "evaluation" / "predictions.parquet").to_pylist()
    exact = sum(row["predicted.title"] == row["truth.title"] for row in table) / len(table)
    assert result["constrained"]["fields"]["title"]["exact"]["value"] == pytest.approx(exact)
    assert flatten(result["model"])["title.exact"]["value"] == pytest.approx(exact)


def test_blanked_pictures_keep_their_size_and_show_nothing(drawn):
    picture = Catalog(drawn).rows("test")[0]["image"]
    blank = open_picture(blanked(picture))
    assert blank.size == open_picture(picture).size
    assert len(blank.getcolors()) == 1


@pytest.mark.parametrize("rows", [2, 3, 10, 11])
def test_shuffling_gives_every_row_the_picture_of_another_product(rows: int):
    ids = [f"product {n // 2}" if rows > 4 else f"product {n}" for n in range(rows)]
    pictures = [id.encode() for id in ids]
    shuffled = shuffle(pictures, ids)
    assert sorted(shuffled) == sorted(pictures)
    assert all(picture != id.encode() for picture, id in zip(shuffled, ids, strict=True))


def test_pictures_matter_only_where_the_intervals_part():
    def score(low: float, high: float):
        return {"fields": {"title": {"exact": {"value": (low + high) / 2, "low": low, "high": high}}}}

    assert pictures_matter(score(0.8, 0.9), score(0.0, 0.1))
    assert not pictures_matter(score(0.8, 0.9), score(0.7, 0.85))
    assert not pictures_matter(score(0.0, 0.1), score(0.8, 0.9))  # wrong pictures helped


def test_pictures_matter_where_an_error_grows():
    def score(low: float, high: float):
        return {"fields": {"width": {"mae": {"value": (low + high) / 2, "low": low, "high": high}}}}

    assert pictures_matter(score(1.0, 2.0), score(8.0, 9.0))
    assert not pictures_matter(score(8.0, 9.0), score(1.0, 2.0))


def changed(recipe, **evaluation):
    evaluation |= {"before": False, "image_use": False}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})


def test_other_rows_than_the_recipes_stand_beside_its_evaluation(result, run, recipe, drawn, tmp_path):
    seen = evaluate(run, changed(recipe, split="validation", rows=3))
    assert seen.folder == run / "evaluation-validation-3"
    assert seen.metrics["rows"] == 3
    assert json.loads((run / "evaluation" / "metrics.json").read_text()) == result
    shutil.copytree(drawn, tmp_path / "elsewhere")
    elsewhere = changed(recipe, rows=3).model_copy(update={"catalog": str(tmp_path / "elsewhere")})
    assert evaluate(run, elsewhere).folder == run / "evaluation-elsewhere-3"


def test_a_catalogue_that_has_changed_since_training_is_refused(run, recipe, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    versions = json.loads((run / "versions.json").read_text())
    (tmp_path / "run" / "versions.json").write_text(json.dumps(versions | {"catalog": "sha256:other"}))
    with pytest.raises(CatalogError, match="has changed since"):
        evaluate(tmp_path / "run", changed(recipe))


def test_a_row_that_cannot_be_judged_is_named(run, recipe, drawn, tmp_path):
    picture = Catalog(drawn).rows("test")[0]["image"]
    with CatalogWriter(tmp_path / "hurt", Catalog(drawn).card.roles, {}) as writer:
        for split in ("train", "test"):
            for number in range(20):
                values = {"title": "Bag", "category3_code": "BAGS", "full_price": 1.0}
                writer.add(split, b"" if (split, number) == ("test", 7) else picture, f"P{number}", values)
    found = evaluate(run, changed(recipe, rows=4).model_copy(update={"catalog": str(tmp_path / "hurt")}))
    assert found.metrics["left_out"] == ["test row 8 (P7): picture no bytes"]
    assert "test row 8 (P7): picture no bytes" in (found.folder / "report.html").read_text()


def test_truth_is_what_an_answer_would_state():
    row = {"title": " Red \n Bag ", "category3_code": "BAGS", "full_price": 12, "other": 1}
    assert truth_of(PromptSpec(), row) == {"title": "Red Bag", "category3_code": "BAGS", "full_price": 12}


def test_single_predictions_are_judged_as_predict_writes_them(result, run):
    assert result["constrained"]["parse_rate"]["value"] == 1
    assert (run / "calibration.json").is_file()
    for field in ("title", "category3_code", "full_price"):
        assert 0 <= result["confidence"]["fields"][field]["ece"]["value"] <= 1
        assert result["review"]["fields"][field]["target"] == 0.05
    table = pq.read_table(run / "evaluation" / "predictions.parquet").to_pylist()
    assert all(row["error"] is None and 0 <= row["confidence.title"] <= 1 for row in table)
    assert result["cost"]["constrained_steps"] < result["cost"]["steps"]
