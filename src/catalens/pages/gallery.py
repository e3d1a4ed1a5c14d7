"""Rows as cards, and all of them as a gallery in which a page's script finds rows.

    Card(id="80412379", picture="data:image/webp;base64,...", right=False,
         pairs=[Pair("Red Tote Bag", [Value("Red Tote Bag", True, "", "97.1 %", "", False)]), ...],
         answers=[("Product: Red Tote Bag, ...", "")], tags="0.1 0.2 1.3", keys="[17, -0.25, null]")

A card holds text that is ready to show. `tags` are the options that it belongs to, as list of choices and option;
`keys` is its place in each order. With several runs a field has one `Value` for each.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from catalens.config import FieldSpec
from catalens.measures import relative_errors
from catalens.metrics import correctness
from catalens.pages.base import shown, thumbnail
from catalens.pages.format import exact_number, number, percent
from catalens.predictions import ScoredRow

SCRIPT = Path(__file__).with_name("gallery.js")
MOST_ROWS = 2000
PICTURE_BYTES = 3_800_000
"""Of all pictures of a gallery together, as they stand in the page."""
PIXEL_BYTES = 0.25
"""Of a photo in WebP and base64."""
SIDE, SMALLEST_SIDE = 256, 64
"""Of a picture, in pixels: where few rows are shown, and at least."""
MOST_OPTIONS = 200


class Value(NamedTuple):
    """A value as one run wrote it."""

    text: str
    """Empty where the answer did not parse."""
    right: bool | None
    """None where the row has no truth of the field."""
    off: str
    confidence: str
    interval: str
    review: bool


class Pair(NamedTuple):
    """A field of a row: the truth, and the prediction of each run."""

    truth: str
    """A dash where there is none."""
    predicted: list[Value]

    @property
    def agreed(self) -> bool:
        """True where all runs have it exactly right."""
        return all(value.right and not value.off for value in self.predicted)


class Card(NamedTuple):
    """A row as a page shows it."""

    id: str
    picture: str
    right: bool
    """Nothing that has a truth is wrong."""
    pairs: list[Pair]
    answers: list[tuple[str, str]]
    """Of each run its text, and why that did not parse."""
    tags: str = ""
    keys: str = ""
    more: Sequence[str] = ()
    """Further pictures."""


class Gallery(NamedTuple):
    """Cards, and the controls of their finder."""

    choices: list[tuple[str, list[str]]]
    """Lists to choose from: a name, and its options, the first being everything."""
    orders: list[str]
    cards: list[Card]


POSSIBLE = 0.01
"""Least probability of a second category that is told."""
Runs = Sequence[ScoredRow]
"""A row as each run scored it; identity, truth and picture are the same in all."""
Options = list[tuple[str, Callable[[Runs], bool]]]
"""Name of an option, and the test of a row that belongs to it."""


def gallery(fields: Sequence[FieldSpec], rows: Sequence[Runs], runs: Sequence[str] = ("",)) -> Gallery:
    """All rows, or a sample that is always the same where there are more than `MOST_ROWS`."""
    if len(rows) > MOST_ROWS:
        rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), MOST_ROWS))]
    orders = _orders(fields, rows)
    rows = sorted(rows, key=lambda row: -_worst_mistake(fields, row))
    side = min(SIDE, max(SMALLEST_SIDE, round((PICTURE_BYTES / PIXEL_BYTES / max(1, len(rows))) ** 0.5)))
    choices = [("Show", _comparing(fields, runs) if len(runs) > 1 else _scoring(fields))]
    choices += [(field.label, _categories(field, rows)) for field in fields if field.kind == "category"]
    cards = []
    for row in rows:
        tags = [
            f"{choice}.{n}"
            for choice, (_, options) in enumerate(choices)
            for n, (_, belongs) in enumerate(options)
            if n and belongs(row)
        ]
        keys = ", ".join("null" if (value := key(row)) is None else f"{value:.4g}" for _, key in orders)
        first = row[0]
        cards.append(
            Card(
                shown(first.id, 60),
                thumbnail(first.picture, side) or "",
                not any(is_wrong(field, run) for field in fields for run in row),
                [Pair(_text(f, first.truth[f.column]), [_value(f, run) for run in row]) for f in fields],
                [_answer(run) for run in row],
                " ".join(tags),
                f"[{keys}]",
                [thumbnail(one, side // 2) or "" for one in first.further],
            )
        )
    named = [(name, [option for option, _ in options]) for name, options in choices]
    return Gallery(named, [name for name, _ in orders], cards)


def _scoring(fields: Sequence[FieldSpec]) -> Options:
    return [
        ("all rows", lambda row: True),
        ("with a mistake", lambda row: any(is_wrong(field, row[0]) for field in fields)),
        *((f"{field.label} wrong", lambda row, field=field: is_wrong(field, row[0])) for field in fields),
        ("marked for review", lambda row: bool(row[0].needs_review)),
        ("did not parse", lambda row: _answer(row[0])[1] != ""),
    ]


def _comparing(fields: Sequence[FieldSpec], runs: Sequence[str]) -> Options:
    """Options of rows on which the first run and another part."""
    options: Options = [("all rows", lambda row: True)]
    for better, worse in [pair for other in range(1, len(runs)) for pair in ((other, 0), (0, other))]:
        for field in fields:

            def parts(row: Runs, field: FieldSpec = field, better: int = better, worse: int = worse) -> bool:
                return is_right(field, row[better]) and is_wrong(field, row[worse])

            options.append((f"{field.label}: {runs[better]} right, {runs[worse]} wrong", parts))
    return options


def _categories(field: FieldSpec, rows: Sequence[Runs]) -> Options:
    """The most frequent true values, in alphabetical order."""
    truths = Counter(str(truth) for row in rows if (truth := row[0].truth[field.column]) is not None)
    names = sorted(most_frequent(truths, MOST_OPTIONS))
    everything: Options = [("all", lambda row: True)]
    return everything + [(name, lambda row, name=name: str(row[0].truth[field.column]) == name) for name in names]


def _orders(fields: Sequence[FieldSpec], rows: Sequence[Runs]) -> list[tuple[str, Callable[[Runs], float | None]]]:
    """Name, and the key of a row, which is negative where the largest comes first; a row without one comes last."""
    position = {id(row): n for n, row in enumerate(rows)}
    found: list[Any] = [("worst first", lambda row: -_worst_mistake(fields, row))]
    found.append(("order of the split", lambda row: position[id(row)]))
    for field in fields:
        if field.kind == "number":
            found.append((f"{field.label}: largest error", lambda row, f=field: _largest_error(f, row)))
    if any(run.confidence for row in rows for run in row):
        found.append(("least confident", lambda row: _least_confidence(fields, row)))
        found.append(("most to review", lambda row: -max(len(run.needs_review) for run in row)))
    return found


def _largest_error(field: FieldSpec, row: Runs) -> float | None:
    """The largest of the runs', as a negative number; None where none parsed or there is no truth."""
    name = field.column
    known = [(run.truth[name], run.values[name]) for run in row if run.values is not None]
    errors = [distance(field, truth, value) for truth, value in known if truth is not None]
    return -max(errors) if errors else None


def _worst_mistake(fields: Sequence[FieldSpec], row: Runs) -> float:
    """Largest of the runs' mistakes: the sum of the fields' distances, each at most 1, all 1 without an answer."""
    known = [f for f in fields if row[0].truth[f.column] is not None]
    return max(
        sum(min(1.0, distance(f, run.truth[f.column], run.values[f.column])) if run.values else 1.0 for f in known)
        for run in row
    )


def _least_confidence(fields: Sequence[FieldSpec], row: Runs) -> float | None:
    return min((run.confidence[f.column] for run in row for f in fields if f.column in run.confidence), default=None)


def most_frequent(counts: Counter[str], most: int) -> list[str]:
    """The most frequent keys, ties in alphabetical order."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


def is_right(field: FieldSpec, row: ScoredRow) -> bool:
    """Text and category exactly, a number within its tolerance; not where the row has no truth."""
    return row.truth[field.column] is not None and bool(
        correctness(field.column, field.kind, [row.truth], [row.values], row.within)[0]
    )


def is_wrong(field: FieldSpec, row: ScoredRow) -> bool:
    """Not right, where the row has a truth."""
    return row.truth[field.column] is not None and not is_right(field, row)


def distance(field: FieldSpec, truth: Any, value: Any) -> float:
    """0 where both agree; a number's error as a share of the truth, a text's normalised edit distance, else 1."""
    if field.kind == "number":
        return float(relative_errors([truth], [value])[0])
    if field.kind == "category":
        return float(truth != value)
    return Levenshtein.normalized_distance(str(truth), str(value))


def _value(field: FieldSpec, row: ScoredRow) -> Value:
    name = field.column
    marked = name in row.needs_review
    if row.values is None:
        return Value("", None if row.truth[name] is None else False, "", "", "", marked)
    truth, value, off = row.truth[name], row.values[name], ""
    if field.kind == "number" and truth is not None and (share := distance(field, truth, value)):
        sign = "" if share > 100 else "+" if float(value) > float(truth) else "\u2212"
        off = f"{sign}{percent(share)}"
    sure = percent(row.confidence[name]) if name in row.confidence else ""
    beside = " and ".join(map(number, row.intervals.get(name, ())))
    beside = f"between {beside}" if beside else _others(row, name)
    right = None if truth is None else is_right(field, row)
    return Value(_text(field, value), right, off, sure, beside, marked)


def _others(row: ScoredRow, name: str) -> str:
    """Next likeliest categories, with their probabilities, where they are not out of the question."""
    known = row.distributions[name].top()[1:] if name in row.distributions else ()
    others = [f"{shown(value, 40)} {percent(share)}" for value, share in known if share >= POSSIBLE]
    return f"else {', '.join(others)}" if others else ""


def _answer(row: ScoredRow) -> tuple[str, str]:
    """The answer that did not parse; else the free one, where that did not; else the answer."""
    if row.error is None and row.free_error is not None:
        return shown(row.free_answer, 600, lines=True), f"{shown(row.free_error, 240)} (written freely)"
    return shown(row.answer, 600, lines=True), shown(row.error or "", 240)


def _text(field: FieldSpec, value: Any) -> str:
    if value is None:
        return "\u2013"
    return exact_number(float(value)) if field.kind == "number" else shown(value)
