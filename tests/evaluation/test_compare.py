"""Runs are held against the first on the rows that all have; the promise of 95 % is kept; the page opens offline."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import needs_chromium, opened
from typer.testing import CliRunner

from catalens.catalog import Catalog
from catalens.cli import app
from catalens.config import REFERENCE_FIELDS, dump_recipe, make_recipe
from catalens.errors import CatalensError, CatalogError, CheckpointError, RecipeError
from catalens.evaluation import common_rows, corrected, figures, with_pictures
from catalens.evaluation.compare import compare
from catalens.metrics import METRICS, metrics_of
from catalens.pages import Comparison, Difference, headline, write_comparison
from catalens.predictions import FORMAT, Evaluation, ScoredRow

RESAMPLES = 500


def scored(n: int, title_right: bool = True, price: float = 1.0, id: str | None = None) -> ScoredRow:
    truth = {"title": f"Bag {n}", "category3_code": f"KIND {n % 3}", "full_price": 100.0 + n}
    said = truth | {"full_price": (100.0 + n) * price} | ({} if title_right else {"title": "Shoe"})
    return ScoredRow(id=id or f"row-{n}", truth=truth, values=said, answer="Product: ...")


def run(name: str, rows: Sequence[ScoredRow], split: str = "test", **recipe: Any) -> Evaluation:
    made = make_recipe({"catalog": "catalogs/none"} | recipe)
    return Evaluation(name, Path("runs") / name / "evaluation", made, {"split": split, "rows": len(rows)}, rows)


def lucky(name: str, share: float, seed: int, count: int = 200) -> Evaluation:
    """A run whose titles are right on about `share` of the rows."""
    draw = random.Random(seed)
    return run(name, [scored(n, draw.random() < share) for n in range(count)])


def claim(comparison: Comparison, run: str, column: str) -> Difference:
    return next(one for one in comparison.claims if one.run == run and one.field.column == column)


def test_a_better_run_is_called_better_and_an_equal_one_is_not():
    comparison = compare([lucky("a", 0.7, 1), lucky("b", 0.9, 2), lucky("c", 0.7, 1)], RESAMPLES)
    better = claim(comparison, "b", "title")
    assert better.shown
    assert better.better
    assert better.figure["low"] > 0
    value, low, high = (100 * better.figure[key] for key in ("value", "low", "high"))
    assert better.sentence == (
        f"b is better than a in Product exact by {value:.1f} points ({low:.1f} to {high:.1f})."
    )
    same = claim(comparison, "c", "title")
    assert not same.shown
    assert same.p == 1
    low, high = (100 * same.figure[key] for key in ("low", "high"))
    assert -3 < low < 0 < high < 3  # equal answers on 200 rows do not say that the runs are equal
    assert same.sentence == (f"No difference shown in Product exact: c 0.0 points (\u2212{-low:.1f} to +{high:.1f}).")
    assert headline(comparison) == "b is better in Product than a. c shows no difference from a."
    worse = compare([lucky("b", 0.9, 2), lucky("a", 0.7, 1)], RESAMPLES)
    assert claim(worse, "a", "title").sentence.startswith("a is worse than b in Product exact by ")


def test_of_an_error_less_is_better():
    exact, off = ([scored(n, price=price) for n in range(100)] for price in (1.05, 1.2))
    price = claim(compare([run("far", off), run("near", exact)], RESAMPLES), "near", "full_price")
    assert price.figure["value"] == pytest.approx(-0.15)
    assert price.sentence == "near is better than far in Full Price median error by 15.0 points (15.0 to 15.0)."


def test_pairing_sees_what_two_intervals_would_not():
    draw = random.Random(3)
    mine = [scored(n, draw.random() < 0.5) for n in range(200)]
    gained = {n for n, row in enumerate(mine) if row.values and row.values["title"] == "Shoe"}
    few = set(sorted(gained)[:10])
    other = [scored(n, n not in gained or n in few) for n in range(200)]
    comparison = compare([run("a", mine), run("b", other)], RESAMPLES)
    first, second = (scores["fields"]["title"]["exact"] for scores in comparison.scores)
    assert first["high"] > second["low"]
    assert claim(comparison, "b", "title").shown


def test_equal_runs_are_rarely_called_different():
    title = {"prompt": {"fields": [REFERENCE_FIELDS[0].model_dump()]}}
    wrong = 0
    for seed in range(60):
        rows = [lucky(name, 0.6, 2 * seed + n, 120).rows for n, name in enumerate("ab")]
        wrong += compare([run("a", rows[0], **title), run("b", rows[1], **title)], RESAMPLES).claims[0].shown
    assert wrong <= 7  # at 5 %, chance gives more in 1 of 100 such tests


def test_equal_runs_are_rarely_called_different_with_several_photos_of_a_product():
    title = {"prompt": {"fields": [REFERENCE_FIELDS[0].model_dump()]}}
    wrong = 0
    for seed in range(60):
        draw = random.Random(seed)
        sides = []
        for name in "ab":
            alike = [draw.random() < 0.6 for _ in range(40)]  # all photos of a product are right, or none
            sides.append(run(name, [scored(n, alike[n], id=f"P{n}") for n in range(40) for _ in range(6)], **title))
        wrong += compare(sides, RESAMPLES).claims[0].shown
    assert wrong <= 7


def test_a_handful_of_rows_decides_nothing():
    right, wrong = [scored(n) for n in range(4)], [scored(n, False, 3.0) for n in range(4)]
    comparison = compare([run("a", wrong), run("b", right)], RESAMPLES)
    assert headline(comparison) == "b shows no difference from a."


def test_holm_is_over_all_claims_and_over_nothing_else():
    figure = {"value": 0.1, "low": 0.05, "high": 0.2}
    found = [
        Difference("b", "a", REFERENCE_FIELDS[0], "exact", figure, p, claim)
        for p, claim in ((0.2, True), (0.001, True), (0.02, True), (0.0001, False))
    ]
    assert [one.shown for one in corrected(found)] == [False, True, True, False]


def test_a_claim_that_falls_to_the_correction_says_so():
    figure = {"value": 0.1, "low": 0.01, "high": 0.2}
    one = Difference("b", "a", REFERENCE_FIELDS[0], "exact", figure, 0.03, True)
    assert one.sentence.endswith("b +10.0 points (+1.0 to +20.0), which may be chance among so many comparisons.")


def test_only_the_rows_of_all_runs_are_compared():
    rows = [scored(n) for n in range(10)]
    variants = [scored(20, id="P"), scored(20, id="P")]  # two photographs of one product
    whole, sample = run("whole", [*rows, *variants]), run("sample", [rows[7], rows[2], rows[5], variants[1]])
    found = common_rows([whole, sample], REFERENCE_FIELDS)
    assert [row[0].id for row in found] == ["row-2", "row-5", "row-7"]
    assert all(mine.truth == other.truth for mine, other in found)
    both = common_rows([whole, replace(whole, name="again")], REFERENCE_FIELDS)
    assert [row[0].id for row in both] == [row.id for row in whole.rows]


def test_rows_with_other_truths_are_refused_by_name():
    mine, other = [scored(n) for n in range(4)], [scored(n) for n in range(4)]
    other[2] = replace(other[2], truth=dict(other[2].truth) | {"full_price": 1.0})
    with pytest.raises(CatalogError, match=r"row row-2: the true full_price is 102\.0 in .*a.* and 1\.0 in .*b"):
        compare([run("a", mine), run("b", other)], RESAMPLES)
    with pytest.raises(CatalogError, match="different rows: none is in all"):
        compare([run("a", mine), run("b", [scored(n) for n in range(10, 14)])], RESAMPLES)


def test_what_cannot_be_compared_is_refused():
    rows = [scored(n) for n in range(4)]
    with pytest.raises(RecipeError, match="two runs or more"):
        compare([run("a", rows)])
    with pytest.raises(RecipeError, match="each of them once"):
        compare([run("a", rows), run("a", rows)])
    with pytest.raises(RecipeError, match="name one with --split"):
        compare([run("a", rows), run("b", rows, split="validation")])
    other = {"prompt": {"fields": [{"column": "width", "label": "Width", "kind": "number"}]}}
    with pytest.raises(CatalogError, match="no field in common"):
        compare([run("a", rows), run("b", rows, training={"metric_for_best_model": "loss"}, **other)])


def test_a_single_row_and_answers_that_did_not_parse():
    one, failed = scored(1), replace(scored(1), values=None, error="is empty")
    comparison = compare([run("a", [one]), run("b", [failed])], RESAMPLES)
    assert [difference.shown for difference in comparison.differences] == [False] * len(
        METRICS.keys() - metrics_of("answer").keys()
    )
    assert np.isfinite([value for one in comparison.differences for value in one.figure.values()]).all()


def test_keys_of_the_recipe_that_differ_are_named():
    rows = [scored(n) for n in range(3)]
    first, second = run("a", rows), run("b", rows, training={"epochs": 9})
    assert compare([first, second], RESAMPLES).recipe == {
        "training.epochs": [make_recipe({"catalog": "x"}).training.epochs, 9.0]
    }


# On disk


def stored(folder: Path, catalog: Path, wrong: set[int] = frozenset(), rows: int | None = None) -> Path:
    """A run folder as `evaluate` leaves it, its titles wrong on some rows of the test split."""
    found = Catalog(catalog).rows("test")[:rows]
    records = []
    for n, row in enumerate(found):
        truth = {column: row[column] for column in ("title", "category3_code", "full_price")}
        said = truth | ({"title": "</script><script>document.title='owned'</script>"} if n in wrong else {})
        records.append(
            {"id": row["product_code"]}
            | {f"truth.{column}": value for column, value in truth.items()}
            | {f"predicted.{column}": value for column, value in said.items()}
            | {f"confidence.{column}": 0.9 for column in said}
            | {"low.full_price": said["full_price"] * 0.9, "high.full_price": said["full_price"] * 1.1}
            | {
                "needs_review": ["title"] if n in wrong else [],
                "free_answer": "Product",
                "free_error": "has no 'Category'",
            }
            | {"answer": "Product: ...", "error": None}
        )
    (folder / "evaluation").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(make_recipe({"catalog": str(catalog)})))
    cost = {"tokens_in": 39.0, "ms_per_picture": 9.2}
    metrics = {"format": FORMAT, "rows": len(found), "products": len(found), "split": "test", "cost": cost}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    pq.write_table(pa.Table.from_pylist(records), folder / "evaluation" / "predictions.parquet")
    return folder


def test_what_evaluate_stored_is_read_back(drawn: Path, tmp_path: Path):
    read = Evaluation.load(stored(tmp_path / "a", drawn, {1}))
    assert (read.name, read.metrics["split"], len(read.rows)) == ("a", "test", read.metrics["rows"])
    row = read.rows[1]
    assert row.needs_review == ("title",)
    assert row.confidence == {"title": 0.9, "category3_code": 0.9, "full_price": 0.9}
    assert row.intervals["full_price"] == pytest.approx(
        (row.truth["full_price"] * 0.9, row.truth["full_price"] * 1.1)
    )
    assert (row.free_answer, row.free_error) == ("Product", "has no 'Category'")
    assert Evaluation.load(tmp_path / "a" / "evaluation").rows == read.rows


def test_disagreements_show_the_pictures_of_the_catalogue(drawn: Path, tmp_path: Path):
    read = Evaluation.load(stored(tmp_path / "a", drawn))
    pictures = [row["image"] for row in Catalog(drawn).rows("test")]
    assert [row[0].picture for row in with_pictures([(row,) for row in read.rows], read)] == pictures
    gone = replace(read, recipe=make_recipe({"catalog": str(tmp_path / "none")}))
    assert [row[0].picture for row in with_pictures([(row,) for row in read.rows], gone)] == [b""] * len(pictures)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda run: shutil.rmtree(run / "evaluation"), "has no evaluation in .*: run `catalens evaluate"),
        (lambda run: (run / "recipe.yaml").unlink(), "is not a run"),
        (lambda run: (run / "evaluation" / "metrics.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "evaluation" / "metrics.json").write_text("[]"), "cannot be read"),
        (lambda run: (run / "evaluation" / "predictions.parquet").write_bytes(b"PAR1"), "cannot be read"),
    ],
)
def test_a_run_without_an_evaluation_is_one_sentence(drawn: Path, tmp_path: Path, harm: Any, words: str):
    folder = stored(tmp_path / "a", drawn)
    harm(folder)
    with pytest.raises(CheckpointError, match=words):
        Evaluation.load(folder)


def test_the_split_is_that_of_the_recipe_or_the_one_asked_for(drawn: Path, tmp_path: Path):
    folder = stored(tmp_path / "a", drawn)
    assert Evaluation.load(folder, "test").folder == folder / "evaluation"
    with pytest.raises(CheckpointError, match=r"evaluate .*a --split validation"):
        Evaluation.load(folder, "validation")
    with pytest.raises(CheckpointError, match="is of the test split"):
        Evaluation.load(folder / "evaluation", "validation")


def test_the_command_prints_and_writes(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    a, b = stored(tmp_path / "a", drawn), stored(tmp_path / "b", drawn, set(range(99)))
    result = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert result.exit_code == 0, result.output
    assert "b is worse than a in Product exact by" in " ".join(result.output.split())
    assert "page: compare.html" in result.output
    printed = result.output
    page = Path("compare.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "the recipes are the same" in page
    assert "a picture, written freely" in page
    result = CliRunner().invoke(app, ["compare", str(a), str(b), "--json", "--out", "other.html"])
    found = json.loads(result.stdout)
    rows = Catalog(drawn).rows("test")
    assert (found["rows"], found["products"]) == (len(rows), len({row["product_code"] for row in rows}))
    assert f"{len(rows)} test rows of {found['products']} products" in " ".join(printed.split())
    exact = next(one for one in found["differences"] if one["metric"] == "exact")
    assert exact["value"] == -1
    assert exact["shown"] is True
    assert Path("other.html").read_bytes() == Path("compare.html").read_bytes()


def test_what_goes_wrong_is_one_sentence(drawn: Path, tmp_path: Path):
    a, b = (str(stored(tmp_path / name, drawn)) for name in "ab")
    for arguments, words in (
        ([a, b, "--out", str(tmp_path)], "--out"),
        ([a], "two runs"),
        ([a, "none"], "is not a run"),
    ):
        error = CliRunner().invoke(app, ["compare", *arguments]).exception
        assert isinstance(error, CatalensError)
        assert words in str(error)


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_opens_the_comparison_offline(drawn: Path, tmp_path: Path, width: int):
    runs = [Evaluation.load(stored(tmp_path / name, drawn, wrong)) for name, wrong in (("a", {0}), ("b", {0, 2, 3}))]
    comparison = compare(runs, RESAMPLES)
    write_comparison(tmp_path / "compare.html", comparison, with_pictures(comparison.disagreements, runs[0]))
    with opened((tmp_path / "compare.html").as_uri(), width=width, dark=width == 390) as (page, problems):
        assert page.title() == "a, b \u00b7 comparison \u00b7 catalens"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_role("status").text_content() == "2 of 2 rows"
        page.get_by_label("Show").select_option("Product: a right, b wrong")
        assert page.get_by_role("status").text_content() == "2 of 2 rows"
        page.get_by_label("Show").select_option("Product: b right, a wrong")
        assert page.get_by_role("status").text_content() == "0 of 2 rows"
        page.get_by_label("Show").select_option("all rows")
        card = page.locator("#cards .card").first
        card.locator("summary").click()
        assert [text.strip() for text in card.locator("dl b.run").all_text_contents()] == ["a", "b"] * 3
        assert card.locator(".value").nth(1).text_content() == "</script><script>document.title='owned'</script>"
        assert card.locator("img").evaluate("image => image.naturalWidth") > 0
    assert problems == []


@pytest.mark.browser
@needs_chromium
def test_chromium_opens_a_comparison_without_differing_rows(drawn: Path, tmp_path: Path):
    runs = [Evaluation.load(stored(tmp_path / name, drawn, {0})) for name in ("a", "b")]
    comparison = compare(runs, RESAMPLES)
    write_comparison(tmp_path / "compare.html", comparison, with_pictures(comparison.disagreements, runs[0]))
    with opened((tmp_path / "compare.html").as_uri()) as (page, problems):
        assert page.locator("#cards").count() == 0
        assert page.locator("#gallery").count() == 1
    assert problems == []


def test_figures_are_plain_values():
    found = figures(compare([lucky("a", 0.7, 1, 50), lucky("b", 0.9, 2, 50)], RESAMPLES))
    assert json.loads(json.dumps(found)) == found
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert {one["column"] for one in found["differences"]} == {field.column for field in REFERENCE_FIELDS}


def test_rows_and_products_are_both_counted():
    rows = [scored(n, id=f"P{n}") for n in range(10) for _ in range(3)]
    comparison = compare([run("a", rows), run("b", rows)], RESAMPLES)
    found = figures(comparison)
    assert (found["rows"], found["products"]) == (30, 10)


def test_an_evaluation_of_another_version_is_one_sentence(drawn: Path, tmp_path: Path):
    folder = stored(tmp_path / "a", drawn)
    known = json.loads((folder / "evaluation" / "metrics.json").read_text())
    former = {"rows": known["rows"], "split": "test", "image_use": {"pictures_matter": True}, "constrained": {}}
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(former))
    for given in (folder, folder / "evaluation"):
        with pytest.raises(CheckpointError, match=r"another version: run `catalens evaluate .*a --split test` again"):
            Evaluation.load(given)
