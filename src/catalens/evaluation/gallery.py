"""Rows as cards, and all of them as a gallery that a page's script sorts, filters and searches.

    Card(id="80412379", picture="data:image/webp;base64,...", right=False,
         pairs=[Pair("Red Tote Bag", [Said("Red Tote Bag", True, "", "97.1 %", "", False)]), ...],
         answers=[Answer("", "")], note="")

A card holds text that is ready to show, so that templates and the script (`gallery.js`) only put it in its place.
In the page a row is this tuple as JSON, with what it is found by: `tags`, the options it belongs to in each list of
choices, and `keys`, a number for each order. With several runs a value has one `Said` for each.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from catalens.config import FieldSpec
from catalens.evaluation.judged import Judged, as_float, distance, is_right
from catalens.evaluation.wording import percent
from catalens.pages.base import embedded, shown, thumbnail

MOST_ROWS = 5000
PICTURE_BYTES = 3_800_000
"""Of all pictures of a gallery together, as they stand in the page."""
SIDES = (256, 192, 160, 128, 112, 96, 80, 64, 48, 40)
SAMPLED = 32
"""Pictures by which their size is chosen."""
MOST_OPTIONS = 200


class Said(NamedTuple):
    """A value as one run wrote it."""

    text: str
    """Empty where the answer did not parse."""
    right: bool
    off: str
    confidence: str
    interval: str
    review: bool


class Pair(NamedTuple):
    """A field of a row: the truth, and what each run wrote."""

    truth: str
    said: list[Said]


class Answer(NamedTuple):
    """What a run wrote, where it says more than the values do."""

    text: str
    reason: str
    """Why it did not parse."""


class Card(NamedTuple):
    """A row as a page shows it."""

    id: str
    picture: str
    right: bool
    pairs: list[Pair]
    answers: list[Answer]
    note: str


@dataclass(frozen=True)
class Gallery:
    """What the template needs beside the rows, which are JSON for the script."""

    blank: Card
    choices: list[tuple[str, list[str]]]
    """Lists to choose from: a name, and its options, the first being everything."""
    orders: list[tuple[str, bool]]
    """Names of the orders, and whether the largest key comes first."""
    rows: Markup
    shown: int
    total: int


Rows = Sequence[Sequence[Judged]]
"""For each row one `Judged` of each run; identity, truth and picture are the same in all."""


def card(fields: Sequence[FieldSpec], row: Sequence[Judged], side: int = SIDES[0], note: str = "") -> Card:
    """A row as a page shows it, its picture at most `side` pixels."""
    first = row[0]
    return Card(
        shown(first.id, 60),
        thumbnail(first.picture, side) or "",
        all(is_right(field, run) for field in fields for run in row),
        [Pair(_value(field, first.truth[field.column]), [_said(field, run) for run in row]) for field in fields],
        [_answer(run) for run in row],
        note,
    )


def gallery(fields: Sequence[FieldSpec], rows: Rows, runs: Sequence[str] = ("",)) -> Gallery:
    """All rows, or a sample that is always the same where there are more than `MOST_ROWS`."""
    total = len(rows)
    if total > MOST_ROWS:
        rows = [rows[i] for i in sorted(random.Random(0).sample(range(total), MOST_ROWS))]
    side = _side([row[0].picture for row in rows])
    choices = [_show(fields, runs), *(_categories(field, rows) for field in fields if field.kind == "category")]
    orders = _orders(fields, rows)
    entries = []
    for row in rows:
        tags = [[n for n, (_, belongs) in enumerate(options) if n and belongs(row)] for _, options in choices]
        entries.append([*card(fields, row, side), tags, [key(row) for _, _, key in orders]])
    blank = Card("", "", False, [Pair("", [Said("", False, "", "", "", False)] * len(runs))] * len(fields), [], "")
    return Gallery(
        blank._replace(answers=[Answer("", "")] * len(runs)),
        [(name, [option for option, _ in options]) for name, options in choices],
        [(name, down) for name, down, _ in orders],
        embedded(entries),
        len(rows),
        total,
    )


# What a row is found by

Test = Callable[[Sequence[Judged]], bool]
Options = list[tuple[str, Test]]


def _show(fields: Sequence[FieldSpec], runs: Sequence[str]) -> tuple[str, Options]:
    """What can be asked of rows; of several runs, where the first and another part."""
    options: Options = [("all rows", lambda row: True)]
    if len(runs) > 1:
        for other in range(1, len(runs)):
            for better, worse in ((other, 0), (0, other)):
                for field in fields:
                    name = f"{field.label}: {runs[better]} right, {runs[worse]} wrong"
                    options.append((name, _only_right(field, better, worse)))
        return "Show", options
    options += [
        ("with a mistake", lambda row: not all(is_right(field, row[0]) for field in fields)),
        *((f"{field.label} wrong", lambda row, field=field: not is_right(field, row[0])) for field in fields),
        ("marked for review", lambda row: bool(row[0].review)),
        ("did not parse", lambda row: _answer(row[0]).reason != ""),
    ]
    return "Show", options


def _only_right(field: FieldSpec, better: int, worse: int) -> Test:
    return lambda row: is_right(field, row[better]) and not is_right(field, row[worse])


def _categories(field: FieldSpec, rows: Rows) -> tuple[str, Options]:
    """The most frequent true values, in alphabetical order."""
    counts = Counter(str(row[0].truth[field.column]) for row in rows)
    names = sorted(most_frequent(counts, MOST_OPTIONS))
    tests: Options = [(name, lambda row, name=name: str(row[0].truth[field.column]) == name) for name in names]
    return field.label, [("all", lambda row: True), *tests]


def _orders(
    fields: Sequence[FieldSpec], rows: Rows
) -> list[tuple[str, bool, Callable[[Sequence[Judged]], float | None]]]:
    """Name, largest first, and the key of a row; a row without a key comes last."""
    place = {id(row): n for n, row in enumerate(rows)}
    by_id = {id(row): n for n, row in enumerate(sorted(rows, key=lambda row: row[0].id))}
    found: list[Any] = [("order of the split", False, lambda row: place[id(row)])]
    for field in fields:
        if field.kind == "number":
            found.append((f"{field.label}: largest error", True, lambda row, f=field: _error(f, row)))
    if any(run.confidence for row in rows for run in row):
        found.append(("least confident", False, lambda row: _confidence([f.column for f in fields], row)))
        for field in fields:
            found.append(
                (f"{field.label}: least confident", False, lambda row, f=field: _confidence([f.column], row))
            )
        found.append(("most to review", True, lambda row: max(len(run.review) for run in row)))
    return [*found, ("id", False, lambda row: by_id[id(row)])]


def _error(field: FieldSpec, row: Sequence[Judged]) -> float | None:
    """The largest of the runs', None where none parsed."""
    name = field.column
    shares = [distance(field, run.truth[name], run.prediction[name]) for run in row if run.prediction is not None]
    return min(_round(max(shares)), 1e300) if shares else None


def _confidence(columns: Sequence[str], row: Sequence[Judged]) -> float | None:
    known = [run.confidence[column] for run in row for column in columns if column in run.confidence]
    return _round(min(known)) if known else None


def _round(value: float) -> float:
    return float(f"{value:.4g}")


# Values as text


def _said(field: FieldSpec, row: Judged) -> Said:
    if row.prediction is None:
        return Said("", False, "", "", "", field.column in row.review)
    truth, value = row.truth[field.column], row.prediction[field.column]
    off = ""
    if field.kind == "number" and (share := distance(field, truth, value)):
        sign = "" if share > 100 else "+" if as_float(value) > as_float(truth) else "\u2212"
        off = f"{sign}{percent(share)}"
    return Said(
        _value(field, value),
        is_right(field, row),
        off,
        percent(row.confidence[field.column]) if field.column in row.confidence else "",
        _interval(row.interval, field.column),
        field.column in row.review,
    )


def _interval(intervals: Mapping[str, tuple[float, float]], column: str) -> str:
    return " and ".join(_rounded(bound) for bound in intervals[column]) if column in intervals else ""


def _answer(row: Judged) -> Answer:
    """The answer that did not parse; else the free one, where that did not; else the answer."""
    if row.error is None and row.free_error is not None:
        return Answer(shown(row.free_answer, 600, lines=True), f"{shown(row.free_error, 240)} (written freely)")
    return Answer(shown(row.answer, 600, lines=True), shown(row.error or "", 240))


def _value(field: FieldSpec, value: object) -> str:
    return _exact(as_float(value)) if field.kind == "number" else shown(value)


def _exact(value: float) -> str:
    """With the digits that the number has."""
    return f"{value:,.12g}" if abs(value) < 1e12 else f"{value:.6g}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if 100 <= abs(value) < 1e12 else f"{value:.3g}"


def most_frequent(counts: Counter[str], most: int) -> list[str]:
    """The most frequent keys, ties in alphabetical order."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


def _side(pictures: Sequence[bytes]) -> int:
    """The largest side at which all pictures together fit into `PICTURE_BYTES`, as some of them say."""
    some = pictures[:: max(1, len(pictures) // SAMPLED)]
    for side in SIDES[:-1]:
        size = sum(len(thumbnail(picture, side) or "") for picture in some)
        if size / max(1, len(some)) * len(pictures) <= PICTURE_BYTES:
            return side
    return SIDES[-1]
