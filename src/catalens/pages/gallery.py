"""Rows as cards, and all of them as a gallery that a page's script sorts, filters and searches.

    Card(id="80412379", picture="data:image/webp;base64,...", right=False,
         pairs=[Pair("Red Tote Bag", [Value("Red Tote Bag", True, "", "97.1 %", "", False)]), ...],
         answers=[Answer("", "")], note="")

A card holds text that is ready to show, so that templates and the script (`gallery.js`) only put it in its place.
In the page a row is this tuple as JSON, with what it is found by: `tags`, the options it belongs to in each list of
choices, and `keys`, a number for each order. With several runs a field has one `Value` for each.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsBytes

from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from catalens.config import FieldSpec
from catalens.metrics import correctness, relative_errors
from catalens.pages.base import embedded, shown, thumbnail
from catalens.pages.format import exact_number, number, percent
from catalens.predictions import ScoredRow

SCRIPT = Path(__file__).with_name("gallery.js")
MOST_ROWS = 5000
PICTURE_BYTES = 3_800_000
"""Of all pictures of a gallery together, as they stand in the page."""
SIDES = (256, 192, 160, 128, 112, 96, 80, 64, 48, 40)
SAMPLED = 32
"""Pictures by which their size is chosen."""
MOST_OPTIONS = 200


class Value(NamedTuple):
    """A value as one run wrote it."""

    text: str
    """Empty where the answer did not parse."""
    right: bool
    off: str
    confidence: str
    interval: str
    review: bool


class Pair(NamedTuple):
    """A field of a row: the truth, and the prediction of each run."""

    truth: str
    predicted: list[Value]


class Answer(NamedTuple):
    """The text that a run wrote, where it says more than the values do."""

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
    """Cards for the script, and the controls for the template."""

    blank: Card
    choices: list[tuple[str, list[str]]]
    """Lists to choose from: a name, and its options, the first being everything."""
    orders: list[tuple[str, bool]]
    """Names of the orders, and whether the largest key comes first."""
    rows: Markup
    shown: int
    total: int


Runs = Sequence[ScoredRow]
"""A row as each run scored it; identity, truth and picture are the same in all."""
Options = list[tuple[str, Callable[[Runs], bool]]]
"""Name of an option, and the test of a row that belongs to it."""


def card(fields: Sequence[FieldSpec], row: Runs, side: int = SIDES[0], note: str = "") -> Card:
    """A row as a page shows it, its picture at most `side` pixels."""
    first = row[0]
    return Card(
        shown(first.id, 60),
        thumbnail(first.picture, side) or "",
        all(is_right(field, run) for field in fields for run in row),
        [Pair(_text(field, first.truth[field.column]), [_value(field, run) for run in row]) for field in fields],
        [_answer(run) for run in row],
        note,
    )


def gallery(fields: Sequence[FieldSpec], rows: Sequence[Runs], runs: Sequence[str] = ("",)) -> Gallery:
    """All rows, or a sample that is always the same where there are more than `MOST_ROWS`."""
    total = len(rows)
    if total > MOST_ROWS:
        rows = [rows[i] for i in sorted(random.Random(0).sample(range(total), MOST_ROWS))]
    side = _side([row[0].picture for row in rows])
    choices = [("Show", _comparing(fields, runs) if len(runs) > 1 else _scoring(fields))]
    choices += [(field.label, _categories(field, rows)) for field in fields if field.kind == "category"]
    orders = _orders(fields, rows)
    entries = []
    for row in rows:
        tags = [[n for n, (_, belongs) in enumerate(options) if n and belongs(row)] for _, options in choices]
        entries.append([*card(fields, row, side), tags, [key(row) for _, _, key in orders]])
    empty = Pair("", [Value("", False, "", "", "", False)] * len(runs))
    return Gallery(
        Card("", "", False, [empty] * len(fields), [Answer("", "")] * len(runs), ""),
        [(name, [option for option, _ in options]) for name, options in choices],
        [(name, down) for name, down, _ in orders],
        embedded(entries),
        len(rows),
        total,
    )


def _scoring(fields: Sequence[FieldSpec]) -> Options:
    return [
        ("all rows", lambda row: True),
        ("with a mistake", lambda row: not all(is_right(field, row[0]) for field in fields)),
        *((f"{field.label} wrong", lambda row, field=field: not is_right(field, row[0])) for field in fields),
        ("marked for review", lambda row: bool(row[0].needs_review)),
        ("did not parse", lambda row: _answer(row[0]).reason != ""),
    ]


def _comparing(fields: Sequence[FieldSpec], runs: Sequence[str]) -> Options:
    """Where the first run and another part."""
    options: Options = [("all rows", lambda row: True)]
    for other in range(1, len(runs)):
        for better, worse in ((other, 0), (0, other)):
            for field in fields:
                options.append(
                    (
                        f"{field.label}: {runs[better]} right, {runs[worse]} wrong",
                        lambda row, f=field, a=better, b=worse: is_right(f, row[a]) and not is_right(f, row[b]),
                    )
                )
    return options


def _categories(field: FieldSpec, rows: Sequence[Runs]) -> Options:
    """The most frequent true values, in alphabetical order."""
    names = sorted(most_frequent(Counter(str(row[0].truth[field.column]) for row in rows), MOST_OPTIONS))
    everything: Options = [("all", lambda row: True)]
    return everything + [(name, lambda row, name=name: str(row[0].truth[field.column]) == name) for name in names]


def _orders(
    fields: Sequence[FieldSpec], rows: Sequence[Runs]
) -> list[tuple[str, bool, Callable[[Runs], float | None]]]:
    """Name, largest first, and the key of a row; a row without a key comes last."""
    position = {id(row): n for n, row in enumerate(rows)}
    by_id = {id(row): n for n, row in enumerate(sorted(rows, key=lambda row: row[0].id))}
    found: list[Any] = [("order of the split", False, lambda row: position[id(row)])]
    for field in fields:
        if field.kind == "number":
            found.append((f"{field.label}: largest error", True, lambda row, f=field: _largest_error(f, row)))
    if any(run.confidence for row in rows for run in row):
        found.append(("least confident", False, lambda row: _least_confidence(fields, row)))
        for field in fields:
            found.append((f"{field.label}: least confident", False, lambda row, f=field: _least_confidence([f], row)))
        found.append(("most to review", True, lambda row: max(len(run.needs_review) for run in row)))
    return [*found, ("id", False, lambda row: by_id[id(row)])]


def _largest_error(field: FieldSpec, row: Runs) -> float | None:
    """The largest of the runs', None where none parsed."""
    name = field.column
    errors = [distance(field, run.truth[name], run.values[name]) for run in row if run.values is not None]
    return _round(max(errors)) if errors else None


def _least_confidence(fields: Sequence[FieldSpec], row: Runs) -> float | None:
    known = [run.confidence[field.column] for run in row for field in fields if field.column in run.confidence]
    return _round(min(known)) if known else None


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def most_frequent(counts: Counter[str], most: int) -> list[str]:
    """The most frequent keys, ties in alphabetical order."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


# A row


def is_right(field: FieldSpec, row: ScoredRow) -> bool:
    """Text and category exactly, a number within 10 %."""
    return bool(correctness(field.column, field.kind, [row.truth], [row.values])[0])


def distance(field: FieldSpec, truth: Any, value: Any) -> float:
    """0 where both agree; a number's error as a share of the truth, a text's normalised edit distance."""
    if field.kind == "number":
        return float(relative_errors([truth], [value])[0])
    return Levenshtein.normalized_distance(str(truth), str(value))


def _value(field: FieldSpec, row: ScoredRow) -> Value:
    name = field.column
    marked = name in row.needs_review
    if row.values is None:
        return Value("", False, "", "", "", marked)
    truth, value, off = row.truth[name], row.values[name], ""
    if field.kind == "number" and (share := distance(field, truth, value)):
        sign = "" if share > 100 else "+" if float(value) > float(truth) else "\u2212"
        off = f"{sign}{percent(share)}"
    sure = percent(row.confidence[name]) if name in row.confidence else ""
    bounds = " and ".join(map(number, row.intervals.get(name, ())))
    return Value(_text(field, value), is_right(field, row), off, sure, bounds, marked)


def _answer(row: ScoredRow) -> Answer:
    """The answer that did not parse; else the free one, where that did not; else the answer."""
    if row.error is None and row.free_error is not None:
        return Answer(shown(row.free_answer, 600, lines=True), f"{shown(row.free_error, 240)} (written freely)")
    return Answer(shown(row.answer, 600, lines=True), shown(row.error or "", 240))


def _text(field: FieldSpec, value: Any) -> str:
    return exact_number(float(value)) if field.kind == "number" else shown(value)


def _side(pictures: Sequence[SupportsBytes]) -> int:
    """The largest side at which all pictures together fit into `PICTURE_BYTES`, as some of them say."""
    some = pictures[:: max(1, len(pictures) // SAMPLED)]
    for side in SIDES[:-1]:
        size = sum(len(thumbnail(picture, side) or "") for picture in some)
        if size / max(1, len(some)) * len(pictures) <= PICTURE_BYTES:
            return side
    return SIDES[-1]
