import json
import shutil

import pyarrow.parquet as pq
import pytest

from catalens.catalog import Catalog, CatalogWriter, open_picture
from catalens.config import PromptSpec
from catalens.errors import CatalogError
from catalens.evaluation import blanked, flatten
from catalens.evaluation.evaluate import evaluate
from catalens.features import FeatureCache
from catalens.inference import Generator
from catalens.metrics import metrics_of
from catalens.predictions import Evaluation, truth_of

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
            assert [*score["fields"][field.column]] == [*metrics_of(field.kind)]
            figures += score["fields"][field.column].values()
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)
    assert result["split"] == "test"


def test_what_is_on_disk_is_what_is_returned(result, run, drawn):
    folder = run / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == result
    rows = Catalog(drawn).rows("test")
    table = pq.read_table(folder / "predictions.parquet").to_pylist()
    assert result["rows"] == len(rows) == len(table)
    assert result["products"] == len({row["product_code"] for row in rows}) < len(rows)
    assert [row["id"] for row in table] == [row["product_code"] for row in rows]
    assert [row["truth.full_price"] for row in table] == [row["full_price"] for row in rows]
    for row in table:
        assert (row["error"] is None) == (row["predicted.full_price"] is not None)
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert Evaluation.load(run).metrics == result


def test_the_figures_are_those_of_the_predictions(result, run):
    table = pq.read_table(run / "evaluation" / "predictions.parquet").to_pylist()
    exact = sum(row["predicted.title"] == row["truth.title"] for row in table) / len(table)
    assert result["constrained"]["fields"]["title"]["exact"]["value"] == pytest.approx(exact)
    assert flatten(result["model"])["title.exact"]["value"] == pytest.approx(exact)


def test_blanked_pictures_keep_their_size_and_show_nothing(drawn):
    picture = open_picture(Catalog(drawn).rows("test")[0]["image"])
    blank = open_picture(blanked(picture.size))
    assert blank.size == picture.size
    assert len(blank.getcolors()) == 1


def test_the_model_before_training_answers_under_the_same_constraints(result):
    assert result["before"]["parse_rate"]["value"] == 1
    for field in ("title", "category3_code"):
        for figure in result["before"]["fields"][field].values():
            assert 0 <= figure["value"] <= 1


def test_the_pictures_are_asked_about_on_the_same_rows(result, run):
    use = result["image_use"]
    assert use["verdict"] in ("uses_image", "ignores_image", "undecided")
    shown = any(field["shown"] for field in use["fields"].values())
    assert shown == (use["verdict"] == "uses_image")
    assert {name: field["metric"] for name, field in use["fields"].items()} == {
        "title": "exact",
        "category3_code": "accuracy",
        "full_price": "mdape",
    }
    own, other = (block["fields"]["title"]["exact"]["value"] for block in (result["model"], use["shuffled"]))
    assert use["fields"]["title"]["loss"]["value"] == pytest.approx(own - other)


def test_a_split_that_the_memory_cannot_hold_is_evaluated_all_the_same(result, run, recipe, tmp_path, monkeypatch):
    rooms = []

    def small(encoder) -> FeatureCache:
        rooms.append(FeatureCache(encoder, 60_000))  # of a few pictures
        return rooms[-1]

    monkeypatch.setattr("catalens.evaluation.evaluate.FeatureCache", small)
    shutil.copytree(run, tmp_path / "run")
    found = evaluate(tmp_path / "run").metrics
    assert 0 < len(rooms[0].kept) < result["rows"]
    for block in ("model", "constrained", "baselines", "image_use", "before"):
        assert found[block] == result[block]


def test_equal_pictures_are_answered_once_and_no_picture_twice(run, recipe, drawn, monkeypatch):
    asked = []
    write = Generator._generate
    monkeypatch.setattr(
        Generator, "_generate", lambda self, queries, *args: asked.append(queries) or write(self, queries, *args)
    )
    catalog = Catalog(drawn)
    picture = catalog.rows("test")[0]["image"]
    with CatalogWriter(run.parent / "twice", catalog.card.roles, {}) as writer:
        for split in ("train", "test"):
            for number in range(6):
                values = {"title": "Bag", "category3_code": "BAGS", "full_price": 1.0 + number}
                writer.add(split, catalog.rows("test")[number // 2]["image"], f"P{number}", values)
    recipe = changed(recipe, image_use=True).model_copy(update={"catalog": str(run.parent / "twice")})
    found = evaluate(run, recipe).metrics
    free, constrained, blank = asked[-3:]  # the run may be calibrated before
    assert len(free) == len(set(free)) == len(constrained) == 3
    assert len(blank) == len(set(blank)) == len({one.pictures[0].size for one in free})
    assert picture in map(bytes, free)
    assert found["rows"] == 6


@pytest.mark.parametrize(("rows", "products"), [(1, 1), (6, 1), (6, 6)])
def test_odd_tables_have_finite_figures(run, recipe, drawn, tmp_path, rows: int, products: int):
    catalog = Catalog(drawn)
    pictures = [row["image"] for row in catalog.rows("test")]
    with CatalogWriter(tmp_path / "odd", catalog.card.roles, {}) as writer:
        writer.figures = {"mdape": 1e300, "mae": 0.0, "of no field": 1.0}
        for split in ("train", "test"):
            for number in range(rows):
                values = {"title": "Bag", "category3_code": "BAGS", "full_price": 0.0}  # constant fields
                writer.add(split, pictures[number], f"P{number % products}", values)
    recipe = changed(recipe, image_use=True).model_copy(update={"catalog": str(tmp_path / "odd")})
    found = evaluate(run, recipe)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (found.folder / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse) == found.metrics
    assert (found.metrics["rows"], found.metrics["products"]) == (rows, products)
    assert found.metrics["image_use"]["verdict"] == "undecided"
    assert f"of {products} product{'s' * (products > 1)}" in (found.folder / "report.html").read_text()


def changed(recipe, **evaluation):
    evaluation = {"before": False, "image_use": False} | evaluation
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
