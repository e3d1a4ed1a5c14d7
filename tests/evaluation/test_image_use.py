"""The check of the pictures finds who uses them, is seldom wrong, and says where it cannot tell."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from catalens.evaluation import partners
from catalens.evaluation.image_use import MARGIN
from catalens.evaluation.image_use import image_use as image_use_of
from catalens.metrics import score

Rows = list[dict[str, Any]]
KINDS: Any = {"category": "category"}
CHANCES = (0.6, 0.1, 0.1, 0.1, 0.1)
DRAWS = 100


def image_use(kinds: Any, truths: Rows, said: Rows, ids: list[str], resamples: int = 10_000) -> dict[str, Any]:
    """The test of a model that reads from a picture the same in any row."""
    return image_use_of(kinds, truths, said, [said[i] for i in partners(ids)], ids, resamples)


def drawn(rng: np.random.Generator, rows: int, sees: float, each: int = 1) -> tuple[Rows, Rows, list[str]]:
    """Truths, answers, ids: a model that sees the category on a share of the rows, else says a frequent one."""
    product = np.arange(rows) // each
    truths = rng.choice(5, rows, p=CHANCES)[product]
    said = np.where(rng.random(rows) < sees, truths, 0)
    ids = [f"P{n:04}" for n in rng.permutation(rows)[product]]
    return [{"category": f"K{n}"} for n in truths], [{"category": f"K{n}"} for n in said], ids


def verdicts(rows: int, sees: float, each: int = 1) -> Counter[str]:
    rng = np.random.default_rng(rows + each)
    return Counter(image_use(KINDS, *drawn(rng, rows, sees, each), resamples=300)["verdict"] for _ in range(DRAWS))


def test_rows_without_a_truth_are_left_out_of_the_test_of_a_field():
    truths, said, ids = drawn(np.random.default_rng(1), 200, 0.9)
    gaps = [{"category": None if n % 4 == 1 else row["category"]} for n, row in enumerate(truths)]
    found = image_use(KINDS, gaps, said, ids, resamples=300)
    assert found["verdict"] == "uses_image"
    own, other = (
        score(KINDS, gaps, given, resamples=50)["fields"]["category"]["accuracy"]["value"]
        for given in (said, [said[i] for i in partners(ids)])
    )
    assert found["fields"]["category"]["loss"]["value"] == pytest.approx(own - other)


def test_a_field_without_truths_is_not_asked_about():
    truths, said, ids = drawn(np.random.default_rng(1), 60, 0.9)
    both = {"category": "category", "kind": "category"}
    rows = [row | {"kind": None} for row in truths]
    found = image_use(both, rows, [row | {"kind": "A"} for row in said], ids, resamples=300)
    alone = image_use(KINDS, truths, said, ids, resamples=300)
    assert found == alone
    none = image_use({"kind": "category"}, rows, said, ids, resamples=300)
    assert (none["verdict"], none["fields"]) == ("undecided", {})


def test_where_no_partner_has_a_truth_nothing_is_telling():
    truths, said, ids = drawn(np.random.default_rng(1), 40, 0.9)
    given = partners(ids)
    gaps: Rows = [{"category": None} for _ in truths]
    gaps[0] = truths[0]
    assert gaps[given[0]]["category"] is None
    assert not image_use(KINDS, gaps, said, ids, resamples=300)["fields"]["category"]["telling"]


def apart(truths: Rows, said: Rows, ids: list[str]) -> bool:
    """The unpaired rule: both 95 % intervals part."""
    own, other = (
        score(KINDS, truths, given, resamples=100)["fields"]["category"]["accuracy"]
        for given in (said, [said[i] for i in partners(ids)])
    )
    return own["low"] > other["high"]


@pytest.mark.parametrize(("rows", "sees", "least"), [(64, 0.4, 0.8), (160, 0.25, 0.9)])
def test_who_uses_the_pictures_is_found_far_more_often_than_by_two_intervals(rows: int, sees: float, least: float):
    rng = np.random.default_rng(0)
    found = verdicts(rows, sees)["uses_image"] / DRAWS
    assert found >= least
    assert found > np.mean([apart(*drawn(rng, rows, sees)) for _ in range(DRAWS)]) + 0.4


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("rows", [64, 160])
def test_who_uses_the_pictures_is_seldom_said_to_ignore_them(rows: int, each: int):
    for sees in (0.15, 0.3, 0.5):
        assert verdicts(rows, sees, each)["ignores_image"] < 0.05 * DRAWS


@pytest.mark.parametrize("each", [1, 4])
def test_who_answers_at_random_is_seldom_said_to_use_them(each: int):
    rng, used = np.random.default_rng(0), 0
    for _ in range(2 * DRAWS):
        truths, _, ids = drawn(rng, 160, 0.0, each)
        said = [{"category": f"K{n}"} for n in rng.choice(5, 160, p=CHANCES)]
        used += image_use(KINDS, truths, said, ids, resamples=300)["verdict"] == "uses_image"
    assert used < 0.05 * 2 * DRAWS


def test_one_answer_to_everything_ignores_the_pictures():
    assert verdicts(64, 0.0) == {"ignores_image": DRAWS}
    assert verdicts(4, 0.0) == {"undecided": DRAWS}
    assert verdicts(64, 0.0, each=4) == {"undecided": DRAWS}  # 16 products


def answers(count: int, right: bool) -> tuple[Rows, Rows, list[str]]:
    truths = [{"title": f"Bag {n}", "category": "BAGS", "price": 100.0 + n} for n in range(count)]
    said = truths if right else [{"title": "?", "category": "?", "price": 1.0}] * count
    return truths, said, [f"P{n}" for n in range(count)]


ALL_KINDS: Any = {"title": "text", "category": "category", "price": "number"}


def test_the_figures_behind_the_verdict_are_those_of_the_first_figure_of_each_field():
    found = image_use(ALL_KINDS, *answers(80, True))
    assert found["verdict"] == "uses_image"
    assert found["margin"] == MARGIN
    fields = found["fields"]
    assert [field["metric"] for field in fields.values()] == ["exact", "accuracy", "mdape"]
    assert fields["title"]["loss"]["value"] == 1
    assert fields["title"]["loss"]["low"] > 0.8
    assert fields["price"]["loss"]["value"] > 0.2  # an error that grows is a loss
    assert [field["shown"] for field in fields.values()] == [True, False, True]
    assert fields["category"]["loss"]["value"] == 0


def test_who_is_right_about_nothing_is_not_said_to_ignore_the_pictures():
    truths, said, ids = answers(200, False)
    kinds = {name: ALL_KINDS[name] for name in ("title", "category")}
    found = image_use(kinds, truths, said, ids)
    assert found["verdict"] == "undecided"
    assert not any(field["telling"] for field in found["fields"].values())


@pytest.mark.parametrize("ids", [["A"], ["A"] * 80])
def test_one_product_has_nobody_elses_picture(ids: list[str]):
    truths, said, _ = answers(len(ids), True)
    assert image_use(ALL_KINDS, truths, said, ids) == {"verdict": "undecided", "margin": MARGIN, "fields": {}}


@pytest.mark.parametrize("rows", [2, 3, 10, 11])
def test_every_row_gets_the_picture_of_another_product(rows: int):
    ids = [f"product {n // 2}" if rows > 4 else f"product {n}" for n in range(rows)]
    given = partners(ids)
    assert sorted(given) == list(range(rows))
    assert all(ids[mine] != ids[other] for mine, other in enumerate(given))


def test_what_is_alike_in_all_pictures_is_no_sign_that_they_are_ignored():
    truths = [{"title": f"Bag {n}", "category": "BAGS", "price": 100.0} for n in range(200)]
    said = [{"title": "?", "category": "BAGS", "price": 100.0}] * 200
    found = image_use(ALL_KINDS, truths, said, [f"P{n}" for n in range(200)])
    assert found["verdict"] == "undecided"
    assert not any(field["telling"] for field in found["fields"].values())
