"""A table with gaps from `prepare` to the report: rows teach what they have, figures say of how many rows."""

import csv
import importlib.util
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import f1_score
from typer.testing import CliRunner

import catalens
from catalens.catalog import SPLITS, Catalog, CatalogWriter
from catalens.checkpoint import load_processor
from catalens.cli import app
from catalens.config import PromptSpec, make_recipe
from catalens.data import Encoder, load_examples
from catalens.errors import CatalogError, PromptError, TrainingError
from catalens.evaluation import figures, validation_scorer
from catalens.evaluation.compare import compare
from catalens.evaluation.evaluate import evaluate
from catalens.examples import load_form
from catalens.inference import load_predictor
from catalens.pages import print_scores, write_comparison
from catalens.predictions import Evaluation
from catalens.training.train import train

pytestmark = pytest.mark.integration
needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime_genai") is None, reason="no onnx: make setup")

FIELDS = {"title": "text", "category3_code": "category", "full_price": "number"}
LABELS = {"title": "Product", "category3_code": "Category", "full_price": "Full Price"}
COLUMNS = catalens.Columns("photo", "product_code", FIELDS)  # type: ignore[arg-type]
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def shop(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn rows as a table, a fifth of the cells of each field blank."""
    folder = tmp_path_factory.mktemp("shop")
    rng = random.Random(4)
    with (folder / "shop.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "product_code", *FIELDS])
        rows = [row for split in SPLITS for row in Catalog(drawn).rows(split)]
        for number, row in enumerate(rows):
            (folder / f"{number}.png").write_bytes(row["image"])
            cells = ["" if rng.random() < 0.2 else row[name] for name in FIELDS]
            writer.writerow([f"{number}.png", f"P{number}", *cells])
    return folder / "shop.csv"


@pytest.fixture(scope="module")
def catalog(shop: Path) -> Path:
    spec = catalens.PrepareSpec(fractions=SHARES, max_bad=0.05)
    return catalens.prepare(str(shop), shop.parent / "catalog", COLUMNS, spec)[0]


def recipe_of(recipe: Any, catalog: Path, **training: Any) -> Any:
    data = recipe.model_dump(mode="json") | {"catalog": str(catalog)}
    data["training"] |= training
    return make_recipe(data)


def trained(recipe: Any, folder: Path) -> Path:
    train(recipe, folder, validation_scorer(recipe), Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def gaps(recipe: Any, catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on rows with gaps, long enough that it writes answers of the right form without constraints."""
    return trained(
        recipe_of(recipe, catalog, max_steps=60, num_evals=2, validation_rows=16),
        tmp_path_factory.mktemp("runs") / "gaps",
    )


@pytest.fixture(scope="module")
def evaluation(gaps: Path) -> Evaluation:
    return evaluate(gaps, console=Console(quiet=True))


def test_the_table_has_gaps_everywhere(catalog: Path):
    rows = [row for split in SPLITS for row in Catalog(catalog).rows(split)]
    for name in FIELDS:
        assert 0.1 < sum(row[name] is None for row in rows) / len(rows) < 0.3
    assert len(rows) >= 78  # a row without any field is the exception


def test_a_check_counts_the_gaps_and_finds_nothing_wrong_in_them(catalog: Path, tmp_path: Path):
    found = catalens.check(catalog, out=tmp_path / "check.html")
    missing = [finding for finding in found.findings if " is missing in " in finding.title]
    assert len(missing) == 3
    assert {finding.severity for finding in missing} == {"note"}
    assert found.count("error") == 0
    rows = [row for split in SPLITS for row in Catalog(catalog).rows(split)]
    assert {f["name"]: f["missing"] for f in found.view["fields"]} == {
        name: sum(row[name] is None for row in rows) for name in FIELDS
    }
    assert found.costs


def test_answers_of_a_model_that_learnt_from_gaps_are_whole(gaps: Path, evaluation: Evaluation):
    assert all(row.error is None and row.values and row.values.keys() == FIELDS.keys() for row in evaluation.rows)
    assert sum(row.free_error is None for row in evaluation.rows) > 0.8 * len(evaluation.rows)
    picture = bytes(evaluation.rows[0].picture)
    assert load_predictor(gaps).predict([picture])[0].values is not None
    assert not (gaps / "left_out.jsonl").exists()
    assert "Validation rows without a value: `" in (gaps / "README.md").read_text()


def test_a_catalogue_with_gaps_is_predicted(gaps: Path, catalog: Path, tmp_path: Path):
    arguments = ["predict", str(gaps), str(catalog), "--split", "test", "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == len(Catalog(catalog).rows("test"))
    assert all(line["error"] is None and None not in [line[name] for name in FIELDS] for line in lines)


def test_every_field_is_scored_on_the_rows_that_have_it(catalog: Path, evaluation: Evaluation):
    rows = Catalog(catalog).rows("test")
    known = {name: sum(row[name] is not None for row in rows) for name in FIELDS}
    assert evaluation.metrics["n"] == known
    assert all(0 < count < len(rows) for count in known.values())
    on_disk = json.loads((evaluation.folder / "metrics.json").read_text())
    assert on_disk == evaluation.metrics

    def numbers(node: Any) -> list[float]:
        if isinstance(node, dict | list):
            return [n for one in (node.values() if isinstance(node, dict) else node) for n in numbers(one)]
        return [node] if isinstance(node, float) else []

    assert all(map(math.isfinite, numbers(on_disk)))
    for name in FIELDS:
        own = [row for row in evaluation.rows if row.truth[name] is not None]
        right = sum(bool(row.values) and row.values[name] == row.truth[name] for row in own if row.values)
        if name != "full_price":
            metric = "exact" if name == "title" else "accuracy"
            figure = evaluation.metrics["constrained"]["fields"][name][metric]["value"]
            assert figure == pytest.approx(right / len(own))
        assert sum(b["rows"] for b in evaluation.metrics["confidence"]["fields"][name]["bins"]) == len(own)


def test_truths_that_are_missing_are_nulls_on_disk(gaps: Path, evaluation: Evaluation):
    table = pq.read_table(evaluation.folder / "predictions.parquet")
    assert {f"{end}.full_price" for end in ("low", "high")} < set(table.column_names)
    for name, count in evaluation.metrics["n"].items():
        assert table.num_rows - table.column(f"truth.{name}").null_count == count
    again = Evaluation.load(gaps)
    assert [row.truth for row in again.rows] == [row.truth for row in evaluation.rows]
    assert [row.values for row in again.rows] == [row.values for row in evaluation.rows]


def test_report_and_terminal_say_how_many_rows_a_figure_is_of(evaluation: Evaluation):
    page = (evaluation.folder / "report.html").read_text()
    console = Console(record=True, width=200, file=io.StringIO())
    print_scores(evaluation.metrics, evaluation.prompt, console)
    text = console.export_text()
    for count in evaluation.metrics["n"].values():
        assert f"n = {count} of {len(evaluation.rows)}" in page
        assert f"n = {count} of {len(evaluation.rows)}" in text
    assert "nan" not in text.lower()


def test_runs_are_compared_on_the_rows_that_have_a_truth(gaps: Path, evaluation: Evaluation, tmp_path: Path):
    (tmp_path / "other").symlink_to(gaps)
    other = Evaluation(**{**vars(Evaluation.load(gaps)), "name": "other", "folder": tmp_path / "other"})
    other.folder.unlink()
    other.folder.mkdir()
    found = compare([evaluation, other], resamples=200)
    assert figures(found)["n"] == evaluation.metrics["n"]
    count = evaluation.metrics["n"]["title"]
    assert f"Product exact (n = {count} of {len(evaluation.rows)})" in found.claims[0].sentence
    assert [one.metric for one in found.differences if abs(one.figure["value"]) > 1e-12] == []


def test_a_field_that_no_test_row_has_is_said_to_have_no_truths(gaps: Path, catalog: Path, tmp_path: Path):
    """Another catalogue, whose test rows have no price, is no reason to stop."""
    out = blanked(catalog, tmp_path / "priceless", "full_price", ("test",))
    run = Evaluation.load(gaps)
    mine = run.recipe.model_copy(update={"catalog": str(out)})
    found = evaluate(gaps, mine, Console(quiet=True))
    assert found.metrics["n"]["full_price"] == 0
    assert found.metrics["model"]["fields"]["full_price"] == {}
    assert "full_price" not in found.metrics["confidence"]["fields"]
    assert "full_price" not in found.metrics["image_use"]["fields"]
    assert "no truths" in (found.folder / "report.html").read_text()
    console = Console(record=True, width=200, file=io.StringIO())
    print_scores(found.metrics, found.prompt, console)
    assert "no truths" in console.export_text()
    again = Evaluation.load(found.folder)
    assert [row.truth for row in again.rows] == [row.truth for row in found.rows]
    two = Evaluation(**{**vars(again), "name": "two", "folder": tmp_path})
    compared = compare([again, two], resamples=200)
    assert {one.field.column for one in compared.claims} == {"title", "category3_code"}
    write_comparison(tmp_path / "compare.html", compared, compared.rows)
    assert "has no truths in these rows" in (tmp_path / "compare.html").read_text()


def blanked(catalog: Path, out: Path, column: str, splits: tuple[str, ...]) -> Path:
    stored = Catalog(catalog)
    with CatalogWriter(out, stored.card.roles, {}) as writer:
        for split in SPLITS:
            for row in stored.rows(split):
                values = row | ({column: None} if split in splits else {})
                writer.add(split, row["image"], row["product_code"], values)
    return out


@pytest.fixture(scope="module")
def bagless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn catalogue in which no bag has a category: that it is absent shows in the picture."""
    folder = tmp_path_factory.mktemp("bagless")
    catalens.sample(folder / "drawn", 300, seed=5, fractions={"train": 0.6, "validation": 0.1, "test": 0.3})
    stored = Catalog(folder / "drawn")
    with CatalogWriter(folder / "catalog", stored.card.roles, {}) as writer:
        for split in SPLITS:
            for row in stored.rows(split):
                bag = row["category3_code"] == "BAGS"
                writer.add(split, row["image"], row["product_code"], row | ({"category3_code": None} if bag else {}))
    return folder / "catalog"


def stating(recipe: Any, catalog: Path, **training: Any) -> Any:
    """Recipe of the category alone, with a word for what is absent."""
    field = {"column": "category3_code", "label": "Category", "kind": "category", "absent": "not visible"}
    data = recipe_of(recipe, catalog, **training).model_dump(mode="json")
    return make_recipe(data | {"prompt": {"fields": [field]}})


@pytest.fixture(scope="module")
def stated(recipe: Any, bagless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        stating(recipe, bagless, max_steps=200, num_evals=1, validation_rows=16),
        tmp_path_factory.mktemp("runs") / "stated",
    )


def test_a_model_says_that_a_value_is_absent_where_the_picture_shows_it(stated: Path, bagless: Path, tmp_path: Path):
    found = evaluate(stated, console=Console(quiet=True))
    block = found.metrics["absent"]["category3_code"]
    rows = Catalog(bagless).rows("test")
    lacking = sum(row["category3_code"] is None for row in rows)
    assert (block["word"], block["rows"]) == ("not visible", lacking)
    assert found.metrics["n"]["category3_code"] == len(rows)
    said = [[row.truth["category3_code"], (row.values or {}).get("category3_code")] for row in found.rows]
    truths, answers = ([value == "not visible" for value in column] for column in zip(*said, strict=True))
    assert block["constrained"]["value"] == pytest.approx(f1_score(truths, answers))
    always = 2 * lacking / (len(rows) + lacking)
    assert always < min(block[name]["low"] for name in ("model", "constrained"))
    assert "F1 of “<bdi>not visible</bdi>”: " in (found.folder / "report.html").read_text()
    assert (
        "not visible"
        in json.loads((stated / "best" / "answers.json").read_text())["fields"]["category3_code"]["values"]
    )
    assert (
        not (stated / "unwritable.jsonl").exists() or "not visible" not in (stated / "unwritable.jsonl").read_text()
    )
    arguments = ["predict", str(stated), str(bagless), "--split", "test", "--out", str(tmp_path / "out.csv")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    with (tmp_path / "out.csv").open() as file:
        assert sum(row["category3_code"] == "not visible" for row in csv.DictReader(file)) == sum(answers)


@pytest.mark.parametrize("to", ["vllm", pytest.param("onnx", marks=needs_onnx)])
def test_an_export_knows_the_word_for_what_is_absent(stated: Path, to: str, tmp_path: Path):
    folder = catalens.export(stated, to, tmp_path / to, rows=4, console=Console(quiet=True)).folder
    prompt, schema = load_form(folder)
    assert prompt.fields[0].absent == "not visible"
    assert "not visible" in schema.of("category3_code").values


def test_a_check_says_what_becomes_of_what_is_absent(recipe: Any, bagless: Path, tmp_path: Path):
    finding = next(
        one
        for one in catalens.check(bagless, stating(recipe, bagless), tmp_path / "check.html").findings
        if " is missing in " in one.title
    )
    assert finding.why == "The model learns to write 'not visible' for them, and is scored on it."


def test_runs_that_state_other_words_are_not_compared(evaluation: Evaluation, tmp_path: Path):
    fields = [
        field.model_copy(update={"absent": "?"} if field.kind == "text" else {}) for field in evaluation.prompt.fields
    ]
    prompt = evaluation.prompt.model_copy(update={"fields": tuple(fields)})
    other = replace(
        evaluation, name="other", folder=tmp_path, recipe=evaluation.recipe.model_copy(update={"prompt": prompt})
    )
    with pytest.raises(
        CatalogError, match=r"^the word for a missing title is None in gaps and '\?' in other: compare runs"
    ):
        compare([evaluation, other])


@pytest.mark.parametrize("column", FIELDS)
def test_a_field_that_no_training_row_has_stops_a_training_before_it_starts(
    recipe: Any, drawn: Path, column: str, tmp_path: Path
):
    catalog = blanked(drawn, tmp_path / "catalog", column, ("train",))
    with pytest.raises(PromptError, match=f"^no training row has a value of field '{column}': fill some in, or "):
        train(recipe_of(recipe, catalog), tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
    found = catalens.check(catalog, recipe_of(recipe, catalog), tmp_path / "check.html")
    assert [one.title for one in found.findings if one.severity == "error"] == [
        f"Field {column} has no value in any training row"
    ]


def test_a_figure_of_a_field_that_no_validation_row_has_chooses_no_model(recipe: Any, drawn: Path, tmp_path: Path):
    catalog = blanked(drawn, tmp_path / "catalog", "full_price", ("validation",))
    mine = recipe_of(recipe, catalog, max_steps=2, num_evals=1, metric_for_best_model="full_price.mdape")
    with pytest.raises(TrainingError, match="no row of the validation sample has a value of 'full_price': choose"):
        train(mine, tmp_path / "run", validation_scorer(mine), Console(quiet=True))


def test_unwritable_rows_are_named_by_the_values_that_they_have(recipe: Any, drawn: Path, tmp_path: Path):
    stored = Catalog(drawn)
    with CatalogWriter(tmp_path / "catalog", stored.card.roles, {}) as writer:
        for split in SPLITS:
            for number, row in enumerate(stored.rows(split)):
                values = row | ({"title": None} if number % 2 else {"category3_code": None})
                if split == "validation" and number == 1:
                    values["full_price"] = 1e9
                writer.add(split, row["image"], row["product_code"], values)
    mine = recipe_of(recipe, tmp_path / "catalog", max_steps=1, num_evals=1, validation_rows=0)
    train(mine, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "unwritable.jsonl").read_text().splitlines()]
    assert [line["field"] for line in lines if line["value"] == 1e9] == ["full_price"]
    assert all(line["value"] is not None for line in lines)
    assert len(lines) < 8


@pytest.mark.parametrize(("flag", "rows"), [("keep", None), ("refuse", 0.6)])
def test_the_flag_of_the_command(shop: Path, tmp_path: Path, flag: str, rows: float | None):
    arguments = ["prepare", str(shop), "--out", str(tmp_path / "out"), "--missing", flag, "--max-bad", "80%"]
    arguments += ["--image", "photo", "--id", "product_code", "--text", "title", "--number", "full_price"]
    result = CliRunner().invoke(app, [*arguments, "--category", "category3_code"])
    assert result.exit_code == 0, result.output
    stored = [
        row
        for split, count in Catalog(tmp_path / "out").card.rows.items()
        if count
        for row in Catalog(tmp_path / "out").rows(split)
    ]
    lacking = sum(row[name] is None for row in stored for name in FIELDS)
    assert (lacking == 0) == (flag == "refuse")
    assert ("rows without a value: " in " ".join(result.output.split())) == (flag == "keep")


def test_another_word_for_missing_is_refused_by_the_flag(shop: Path, tmp_path: Path):
    result = CliRunner().invoke(app, ["prepare", str(shop), "--out", str(tmp_path / "out"), "--missing", "drop"])
    assert result.exit_code != 0
    assert "missing" in str(result.exception)


def test_a_mimicked_catalogue_has_as_many_gaps(catalog: Path, tmp_path: Path):
    catalens.mimic(tmp_path / "like", catalog, 200)
    rows, drawn = (
        [r for s in SPLITS if Catalog(f).card.rows[s] for r in Catalog(f).rows(s)]
        for f in (catalog, tmp_path / "like")
    )
    for name in FIELDS:
        before, after = (sum(row[name] is None for row in some) / len(some) for some in (rows, drawn))
        assert after == pytest.approx(before, abs=0.08)
    encoder = Encoder(load_processor("tiny"), PromptSpec())
    assert len(load_examples(Catalog(tmp_path / "like"), encoder, "train")) > 0
    assert catalens.check(tmp_path / "like", out=tmp_path / "check.html").costs
