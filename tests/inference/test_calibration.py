"""The promises of a calibration, on draws from worlds whose true probabilities are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from catalens.config import FieldSpec, PromptSpec
from catalens.errors import CheckpointError
from catalens.evaluation import one_a_product
from catalens.inference import Calibration, FieldScore, fit_calibration, is_below, load_calibration, log_odds
from catalens.inference import confidences as apply_logistic
from catalens.inference.calibration import FILE

TITLE = PromptSpec(fields=(FieldSpec(column="title", label="Product", kind="text"),))
PRICE = PromptSpec(fields=(FieldSpec(column="price", label="Price", kind="number"),))
LENGTH = 6


def score(log_odds: float, tokens: int = LENGTH) -> FieldScore:
    """Of a text whose tokens have these log-odds each."""
    return FieldScore(tokens * -math.log1p(math.exp(-log_odds)), tokens)


def of_titles(log_odds: np.ndarray, right: np.ndarray, candidates: int = 1) -> Calibration:
    """Fitted to titles with these log-odds a token."""
    said = [{"title": "bag" if hit else "scarf"} for hit in right]
    scores = [{"title": score(z)} for z in log_odds]
    return fit_calibration(TITLE, [{"title": "bag"}] * len(right), said, scores, candidates=candidates)


def of_prices(
    truths: list[float], said: list[float | None], interval: float = 0.9, candidates: int = 1
) -> Calibration:
    rows = [None if price is None else {"price": price} for price in said]
    scores = [{} if price is None else {"price": FieldScore(-2.0, 5)} for price in said]
    return fit_calibration(PRICE, [{"price": price} for price in truths], rows, scores, interval, candidates)


def test_a_field_is_calibrated_on_the_rows_that_have_a_truth():
    rng = np.random.default_rng(3)
    truths = rng.lognormal(3, 1, 80).tolist()
    said = [truth * factor for truth, factor in zip(truths, rng.lognormal(0, 0.2, 80), strict=True)]
    gaps = [None if n % 4 == 1 else truth for n, truth in enumerate(truths)]
    known = [n for n, truth in enumerate(gaps) if truth is not None]
    found, alone = of_prices(gaps, said), of_prices([truths[n] for n in known], [said[n] for n in known])
    assert found.fields == alone.fields
    assert (found.products, alone.products) == (80, 60)
    assert found.fields["price"].steps[-1][1] == 60


def test_a_field_without_any_truth_promises_nothing():
    found = of_prices([None] * 40, [5.0] * 40)
    assert found.fields["price"].bound is None
    assert found.threshold("price", 0.5) is None
    assert found.bounds("price", 5.0) is None
    assert 0 < found.apply("price", FieldScore(-2.0, 5)) < 1


WORLDS = {  # log-odds of the tokens: mean, deviation; log-odds of being right: slope, offset
    "nearly all right": (4.0, 2.0, 1.0, 2.0),
    "just too many wrong": (4.0, 2.0, 1.0, -1.0),
    "overconfident": (4.0, 2.0, 0.5, -0.5),
    "unsure": (2.0, 1.5, 1.0, -1.0),
    "the score tells nothing": (3.0, 1.5, 0.0, 3.2),
    "worse where it is surer": (3.0, 1.5, -0.5, 4.5),
}


def draw(world: str, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds a token, and the true probabilities of being right."""
    mean, deviation, slope, offset = WORLDS[world]
    log_odds = rng.normal(mean, deviation, rows)
    return log_odds, expit(slope * log_odds + offset)


@pytest.mark.parametrize("target", [0.05, 0.1])
@pytest.mark.parametrize("rows", [167, 100])
@pytest.mark.parametrize("world", WORLDS)
def test_the_error_of_accepted_rows_is_kept_in_95_of_100_draws(world: str, rows: int, target: float):
    rng = np.random.default_rng(1)
    everyone, truth = draw(world, 100_000, rng)
    broken = 0
    for _ in range(100):
        log_odds, chances = draw(world, rows, rng)
        calibration = of_titles(log_odds, rng.random(rows) < chances)
        if (threshold := calibration.threshold("title", target)) is not None:
            accepted = confidences(calibration, everyone) >= threshold
            broken += bool((1 - truth[accepted]).mean() > target)
    assert broken <= 5


BOTH = PromptSpec(fields=(*TITLE.fields, FieldSpec(column="category", label="Category", kind="category")))


def draw_pair(depends: bool, rows: int, rng: np.random.Generator) -> tuple[list[dict[str, FieldScore]], np.ndarray]:
    """Scores of a title and a category, and the true probabilities of that category.

    Where it `depends` the category is wrong with the title, which is one of 8 words; else titles are of any wording.
    """
    title, own = rng.normal(3.0 if depends else -1.0, 2.0, rows), rng.normal(6.0, 1.0, rows)
    scores = [
        {"title": score(z, 1), "category": FieldScore(score(w, 1).log_probability, 1, score(z, 1).log_probability)}
        for z, w in zip(title, own, strict=True)
    ]
    return scores, expit(own) * (expit(title) if depends else 1.0)


def of_pairs(scores: list[dict[str, FieldScore]], right: np.ndarray) -> Calibration:
    said = [{"title": "bag", "category": "BAGS" if hit else "HOME"} for hit in right]
    return fit_calibration(BOTH, [{"title": "bag", "category": "BAGS"}] * len(right), said, scores)


def sure_of_pairs(calibration: Calibration, scores: list[dict[str, FieldScore]]) -> np.ndarray:
    field = calibration.fields["category"]
    odds = log_odds("category", [one["category"] for one in scores], field.joint)
    return apply_logistic(field.slope, field.offset, odds)


@pytest.mark.parametrize("depends", [True, False])
def test_the_choice_between_a_value_alone_and_jointly_does_not_break_the_promise(depends: bool):
    rng = np.random.default_rng(2)
    everyone, truth = draw_pair(depends, 4000, rng)
    broken, joint = 0, 0
    for _ in range(100):
        scores, chances = draw_pair(depends, 160, rng)
        calibration = of_pairs(scores, rng.random(160) < chances)
        joint += calibration.fields["category"].joint
        if (threshold := calibration.threshold("category", 0.05)) is not None:
            broken += bool((1 - truth[sure_of_pairs(calibration, everyone) >= threshold]).mean() > 0.05)
    assert broken <= 5
    assert joint > 95 if depends else joint < 50


def test_a_value_that_hangs_on_the_fields_before_it_is_accepted_more_often_jointly():
    rng = np.random.default_rng(4)
    scores, chances = draw_pair(True, 600, rng)
    right = rng.random(600) < chances
    alone = [{name: FieldScore(one.log_probability, one.tokens) for name, one in row.items()} for row in scores]

    def accepted(rows: list[dict[str, FieldScore]]) -> float:
        calibration = of_pairs(rows, right)
        threshold = calibration.threshold("category", 0.05) or 2.0
        return float((sure_of_pairs(calibration, rows) >= threshold).mean())

    assert accepted(scores) > accepted(alone) + 0.3


def test_the_first_field_has_one_order():
    fields = of_pairs([{"title": score(1.0), "category": score(1.0)}] * 40, np.ones(40, bool)).fields
    assert (fields["title"].orders, fields["category"].orders) == (1, 2)


def test_the_plain_share_of_wrong_rows_does_not_keep_it():
    """So the draws above are hard enough to show a broken promise."""
    rng = np.random.default_rng(1)
    everyone, truth = draw("overconfident", 100_000, rng)
    broken = 0
    for _ in range(100):
        log_odds, chances = draw("overconfident", 167, rng)
        order = np.argsort(-log_odds)
        shares = np.cumsum(rng.random(167) >= chances[order]) / np.arange(1, 168)
        if (shares <= 0.05).any():
            lowest = log_odds[order][np.flatnonzero(shares <= 0.05)[-1]]
            broken += bool((1 - truth[everyone >= lowest]).mean() > 0.05)
    assert broken > 30


def confidences(calibration: Calibration, log_odds: np.ndarray) -> np.ndarray:
    """What `apply` gives, for many: it is monotone, so a grid will do."""
    grid = np.linspace(log_odds.min(), log_odds.max(), 400)
    values = np.array([calibration.apply("title", score(z)) for z in grid])
    return values[np.searchsorted(grid, log_odds, side="right") - 1]


def accepted_wrongly(photos: int, one_each: bool, draws: int = 150) -> int:
    """How often 480 rows of which just too many are wrong, 5.01 %, are accepted at a target of 5 %; of 150 draws.

    The photos of a product are right or wrong together, but for one in ten.
    """
    rng, found = np.random.default_rng(6), 0
    for _ in range(draws):
        wrong = np.repeat(rng.random(480 // photos) < 0.0501, photos)
        wrong = np.where(rng.random(480) < 0.1, rng.random(480) < 0.0501, wrong)
        rows = [
            {"id": f"p{i // photos}", "image": rng.bytes(4), "wrong": wrong[i], "log_odds": rng.normal(3, 1.5)}
            for i in range(480)
        ]
        kept = one_a_product(rows, "id", "image") if one_each else rows
        calibration = of_titles(
            np.array([row["log_odds"] for row in kept]), ~np.array([row["wrong"] for row in kept])
        )
        found += calibration.threshold("title", 0.05) is not None
    return found


@pytest.mark.parametrize("photos", [1, 3, 6])
def test_several_photos_of_a_product_do_not_break_the_promise(photos: int):
    assert accepted_wrongly(photos, one_each=True) <= 14  # 5 % of 150, and 2.4 deviations


def test_rows_that_are_not_independent_would_break_it():
    assert accepted_wrongly(6, one_each=False) > 30


def test_a_product_gives_one_row_always_the_same_and_any_of_its_own():
    rows = [{"id": f"p{i % 40}", "image": bytes([i])} for i in range(120)]
    chosen = one_a_product(rows, "id", "image")
    assert sorted(row["id"] for row in chosen) == sorted({row["id"] for row in rows})
    assert chosen == [row for row in rows if row in chosen]
    again = one_a_product(rows[::-1], "id", "image")
    assert sorted(row["image"] for row in again) == sorted(row["image"] for row in chosen)
    assert {row["image"][0] // 40 for row in chosen} == {0, 1, 2}


def best_of_six(rng: np.random.Generator, corrected: bool) -> Calibration:
    """Of six checkpoints that are wrong about 5.01 % of 200 rows each, the one that is right most often."""
    wrong = rng.random((6, 200)) < 0.0501
    log_odds = rng.normal(3, 1.5, 200)
    return of_titles(log_odds, ~wrong[wrong.sum(axis=1).argmin()], 6 if corrected else 1)


def test_the_choice_of_the_checkpoint_by_the_same_rows_does_not_break_the_promise():
    found = {}
    for corrected in (True, False):
        rng = np.random.default_rng(7)
        calibrations = [best_of_six(rng, corrected) for _ in range(150)]
        found[corrected] = sum(one.threshold("title", 0.05) is not None for one in calibrations)
    assert found[True] <= 14
    assert found[False] > 15


def test_bounds_hold_for_the_checkpoint_that_looked_best():
    """Ratios of six checkpoints, of which the rows choose the one with the smallest bound."""
    rng, shares = np.random.default_rng(8), {True: [], False: []}
    for _ in range(200):
        errors = rng.lognormal(0, 0.4, (6, 167))
        chosen = errors[np.quantile(np.maximum(errors, 1 / errors), 0.9, axis=1).argmin()]
        new = rng.lognormal(0, 0.4, 300)
        for corrected, held in shares.items():
            calibration = of_prices([100.0] * 167, (100 * chosen).tolist(), candidates=6 if corrected else 1)
            size = calibration.fields["price"].bound.size
            held.append((np.maximum(new, 1 / new) <= size).mean())
    assert np.mean(shares[True]) > 0.9
    assert np.mean(shares[False]) < 0.88


def test_a_threshold_accepts_most_of_what_may_be_accepted():
    rng = np.random.default_rng(2)
    log_odds, chances = draw("nearly all right", 167, rng)
    calibration = of_titles(log_odds, rng.random(167) < chances)
    threshold = calibration.threshold("title", 0.05)
    assert threshold is not None
    assert np.mean([calibration.apply("title", score(z)) >= threshold for z in log_odds]) > 0.9


def test_ties_are_accepted_together_or_not_at_all():
    right = np.array([True] * 90 + [False] * 10)
    calibration = of_titles(np.full(100, 3.0), right)  # the wrong ones are as sure as the others
    assert calibration.threshold("title", 0.05) is None
    assert calibration.threshold("title", 0.3) == calibration.apply("title", score(3.0))
    sure = of_titles(np.repeat([6.0, 1.0], [180, 20]), np.repeat(right, 2))
    assert sure.threshold("title", 0.05) == sure.apply("title", score(6.0)) > sure.apply("title", score(1.0))


def test_rows_too_few_to_bear_a_wrong_one_are_accepted_up_to_the_first():
    log_odds, right = np.linspace(6.0, 1.0, 100), np.arange(100) < 90  # one wrong row takes 110 at 5 %, none 72
    calibration = of_titles(log_odds, right)
    assert calibration.threshold("title", 0.05) == calibration.apply("title", score(log_odds[89]))


def test_too_few_rows_prove_nothing():
    assert of_titles(np.full(50, 3.0), np.full(50, True)).threshold("title", 0.05) is None
    assert of_titles(np.full(80, 3.0), np.full(80, True)).threshold("title", 0.05) is not None  # .975 ** 80 < .05
    assert of_titles(np.full(80, 3.0), np.full(80, False)).threshold("title", 0.05) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-60, 0), st.integers(1, 9), st.booleans()), min_size=0, max_size=40),
    st.lists(st.tuples(st.floats(-60, 0.01), st.integers(1, 9)), min_size=2, max_size=8),
)
def test_a_less_likely_answer_never_gets_more(rows: list[tuple[float, int, bool]], asked: list[tuple[float, int]]):
    said = [{"title": "bag" if hit else "scarf"} for _, _, hit in rows]
    scores = [{"title": FieldScore(logarithm, tokens)} for logarithm, tokens, _ in rows]
    calibration = fit_calibration(TITLE, [{"title": "bag"}] * len(rows), said, scores)
    ordered = sorted((FieldScore(logarithm, 4) for logarithm, _ in asked), key=lambda s: s.log_probability)
    found = [calibration.apply("title", one) for one in ordered]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= 1


@pytest.mark.parametrize(
    ("right", "expected"), [([True], 2 / 3), ([False], 1 / 3), ([True] * 98, 0.99), ([False] * 98, 0.01)]
)
def test_one_sort_of_rows_gives_no_certainty(right: list[bool], expected: float):
    log_odds = np.linspace(0, 9, len(right))
    calibration = of_titles(log_odds, np.array(right))
    given = [calibration.apply("title", score(z)) for z in log_odds]
    assert np.mean(given) == pytest.approx(expected, abs=1e-4)
    assert calibration.rows == len(right)


def test_the_order_is_the_models_own_where_no_row_is_wrong():
    calibration = of_titles(np.linspace(0, 9, 98), np.full(98, True))
    assert calibration.apply("title", score(2.0)) < calibration.apply("title", score(8.0))


def test_without_rows_the_probability_is_the_models_own():
    assert of_titles(np.array([]), np.array([], dtype=bool)).apply("title", score(1.0)) == pytest.approx(expit(1.0))


def test_the_fit_is_that_of_a_logistic_regression_on_many_rows():
    """Platt's labels and the lean of the slope wash out."""
    rng = np.random.default_rng(3)
    log_odds = rng.normal(2, 2, 5000)
    right = rng.random(5000) < expit(0.6 * log_odds - 0.5)
    plain = LogisticRegression(C=np.inf).fit(log_odds[:, None], right)
    calibration = of_titles(log_odds, right)
    for z in (-2.0, 0.0, 3.0, 6.0):
        assert calibration.apply("title", score(z)) == pytest.approx(plain.predict_proba([[z]])[0, 1], abs=0.005)


def test_answers_that_did_not_parse_are_left_out():
    prices = [100.0 + n for n in range(40)]
    with_none = of_prices([*prices, 70.0, 80.0], [*prices, None, None])
    assert with_none.rows == with_none.products == 42
    counts = {"rows", "products"}
    assert with_none.model_dump(exclude=counts) == of_prices(prices, prices).model_dump(exclude=counts)
    nothing = of_prices([1.0, 2.0], [None, None])
    assert nothing.threshold("price", 0.5) is nothing.bounds("price", 3.0) is None


def test_a_bound_is_the_error_of_its_rank():
    truths = [float(n) for n in range(1, 20)]  # ratios of 1.01, 1.02, ... 1.19: rank ceil(20 * .9) is 18
    said = [truth * (1 + n / 100) if n % 2 else truth / (1 + n / 100) for n, truth in enumerate(truths, start=1)]
    assert of_prices(truths, said).bounds("price", 118.0) == pytest.approx((100.0, 118.0 * 1.18))
    with_zero = of_prices([0.0, *truths], [0.5, *truths], interval=0.95)  # distances of 0.5 and 0: rank 20
    assert with_zero.bounds("price", -2.0) == (-2.5, -1.5)


@pytest.mark.parametrize(("rows", "interval", "finite"), [(8, 0.9, False), (9, 0.9, True), (18, 0.95, False)])
def test_too_few_rows_have_no_bounds(rows: int, interval: float, finite: bool):
    prices = [10.0] * rows
    assert (of_prices(prices, prices, interval).bounds("price", 10.0) is not None) == finite


def test_a_ratio_has_no_bounds_at_zero():
    prices = [float(n) for n in range(1, 31)]
    calibration = of_prices(prices, [*prices[:-1], -3.0])
    assert calibration.bounds("price", 0.0) is None
    assert calibration.bounds("price", -1.0) is None
    assert of_prices(prices, [-1.0] * 30).bounds("price", 5.0) is None  # every error is beyond all bounds


@pytest.mark.parametrize("deviation", [0.05, 0.4])
def test_bounds_hold_the_truth_as_often_as_they_say(deviation: float):
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(200):
        truths = rng.lognormal(4, 1, 467)
        said = truths * rng.lognormal(0.05, deviation, 467)
        calibration = of_prices(truths[:167].tolist(), said[:167].tolist())
        bounds = np.array([calibration.bounds("price", value) for value in said[167:]])
        shares.append(((bounds[:, 0] <= truths[167:]) & (truths[167:] <= bounds[:, 1])).mean())
    assert 0.895 < np.mean(shares) < 0.915  # (n + 1) * .9 of n + 1, a little more by rounding up


def test_it_is_read_back_as_it_was_written(tmp_path: Path):
    rng = np.random.default_rng(5)
    log_odds, chances = draw("unsure", 1500, rng)
    calibration = of_titles(log_odds, rng.random(1500) < chances)
    calibration.save(tmp_path)
    read = load_calibration(tmp_path, TITLE)
    assert read.model_copy(update={"best": ""}) == calibration
    assert read.apply("title", score(1.5)) == calibration.apply("title", score(1.5))
    assert read.threshold("title", 0.2) == calibration.threshold("title", 0.2) is not None
    named = {"format", "rows", "products", "candidates", "interval", "number", "best", "fields"}
    assert set(json.loads((tmp_path / FILE).read_bytes())) == named


@pytest.mark.parametrize("changed", ["model.safetensors", "answers.json"])
def test_a_calibration_of_another_model_is_refused(tmp_path: Path, changed: str):
    (tmp_path / "best").mkdir()
    for name in ("model.safetensors", "answers.json", "prompt.json"):
        (tmp_path / "best" / name).write_bytes(b"12345")
    of_titles(np.array([1.0, 2.0]), np.array([True, False])).save(tmp_path)
    assert load_calibration(tmp_path, TITLE)
    (tmp_path / "best" / changed).write_bytes(b"12346")
    with pytest.raises(CheckpointError, match=r"of another model than .*best: delete it and run `catalens evaluate"):
        load_calibration(tmp_path, TITLE)


def test_a_run_without_one_is_not_calibrated(tmp_path: Path):
    assert load_calibration(tmp_path, TITLE) is None


GOOD = {"kind": "text", "slope": 1.0, "offset": 0.0, "steps": [[0.9, 3, 0], [0.5, 5, 2]], "bound": None}


@pytest.mark.parametrize(
    "field",
    [
        {"kind": "colour"},
        {"slope": -1.0},
        {"slope": 1e300},
        {"offset": None},
        {"steps": [[1.9, 3, 1]]},
        {"steps": [[0.9, 3, -1]]},
        {"steps": [[0.9, 10**400, 0]]},
        {"steps": [[0.9 - n / 9999, n, 0] for n in range(1, 1500)]},
        {"bound": {"by": "ratio", "size": -2.0}},
        {"bound": {"by": "ratio", "size": 1e301}},
        {"weights": "x"},
        {"kind": "category"},  # the prompt says text
    ],
)
def test_a_field_that_was_tampered_with_is_refused(tmp_path: Path, field: dict):
    content = {"format": 2, "rows": 5, "products": 5, "interval": 0.9, "fields": {"title": GOOD | field}}
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"calibration\.json.*: delete it and run `catalens evaluate .*`$"):
        load_calibration(tmp_path, TITLE)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"rows": 1e999}', b"NaN"]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"calibration\.json.*: delete it and run `catalens evaluate .*`$"):
        load_calibration(tmp_path, TITLE)


def test_a_folder_in_its_place_is_refused(tmp_path: Path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_calibration(tmp_path, TITLE)


@pytest.mark.parametrize("target", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("risk", [0.025, 0.025 / 3, 0.2])
def test_the_binomial_test_is_the_bound_of_clopper_and_pearson(target, risk):
    rng = np.random.default_rng(0)
    rows = rng.integers(1, 1500, 200).astype(float)
    wrong = np.floor(rows * rng.uniform(0, min(1, 3 * target), 200))
    bounds = beta.ppf(1 - risk, wrong + 1, np.maximum(rows - wrong, 1))
    assert is_below(target, wrong, rows, risk).tolist() == (np.where(wrong < rows, bounds, 1) <= target).tolist()


@pytest.mark.parametrize(("target", "holds"), [(0, False), (1, True)])
def test_no_share_is_below_none_and_every_share_is_below_all(target, holds):
    assert is_below(target, np.zeros(2), np.array([1.0, 1e5]), 0.05).tolist() == [holds] * 2


def test_confidences_are_those_of_earlier_versions_in_every_bit():
    odds = np.concatenate([np.random.default_rng(0).uniform(-700, 700, 10_000), [0.0, 36.7, -36.7]])
    assert apply_logistic(0.71, -0.84, odds).tolist() == expit(0.71 * odds - 0.84).tolist()
