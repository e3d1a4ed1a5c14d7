"""A catalogue -> its profile.

    1,981 products, 41 of their words used by 10 or more; TRAVEL has 38 products, SADDLERY 3: one of them is named

Two readings: the first counts products, categories and words, so that the second knows what at least k products
share and keeps nothing of the rest but counts and lengths. Of a product only its first row speaks; what is held in
memory is ids, word counts, numbers and picture sizes.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from catalens.catalog.mimicking.appearance import Seen, describe, look_at
from catalens.catalog.mimicking.profile import (
    EDGE,
    OTHER,
    RARE,
    Category,
    K,
    Needs,
    Profile,
    Rounding,
    Stratum,
    Wording,
)
from catalens.catalog.mimicking.summaries import learn_habits, quantile, summarise
from catalens.catalog.mimicking.texts import balanced, case_of, invent_words, shareable, sort_of
from catalens.catalog.storage import SPLITS, Catalog
from catalens.catalog.values import is_missing
from catalens.errors import CatalogError, PictureError

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, rows done and rows in all."""

MOST_WORDS = 1000
"""Words of a column that a profile keeps, the most frequent ones."""
FEWEST_INVENTED, MOST_INVENTED = 4, 60
"""Invented words of a stratum; between them, as many as would each be used by k products."""
DECODED = 2000
"""Pictures whose brightness is measured."""
LETTERS = (4.0, 9.0)
"""Of an invented word, where the catalogue has no rare words to go by."""


def learn_profile(
    catalog: Catalog, k: int = K, needs: Needs | None = None, progress: Progress = lambda stage, done, total: None
) -> Profile:
    """Learn the profile of a catalogue; `needs` is taken over as it is.

    Raises CatalogError where it has fewer than `k` + 2 products or pictures, too few to hide one among them, or
    cannot be read.
    """
    census = _Census(catalog, k, progress)
    if len(census.rows) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(census.rows)} products: a profile that gives none away needs {k + 2} or more"
        )
    notes = _Notes(catalog, census, progress)
    if len(notes.pictures) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(notes.pictures)} products with a picture that can be read, and {k + 2} are "
            "needed: see what `catalens check` says of the others"
        )
    inventor = _Inventor(census, notes)
    categories = {column: _category(census, column, inventor) for column in census.categories}
    profile = Profile(
        k=k,
        roles=catalog.card.roles,
        integer_fields=catalog.card.integer_fields,
        rows=census.rows.total(),
        products=len(census.rows),
        fractions={split: round(census.splits[split] / len(census.rows), 4) for split in SPLITS},
        photographs=summarise(list(census.rows.values()), k),
        id_prefix=_free_prefix(census.rows),
        categories=categories,
        texts={column: _wording(census, notes, column) for column in census.known},
        numbers={column: _rounding(census, notes, column) for column in census.numbers},
        pictures=describe(notes.pictures, k),
        bytes_a_row=round(sum(picture.size for picture in notes.pictures) / max(len(notes.pictures), 1)),
        strata=tuple(_strata(census, notes, inventor)),
        needs=needs,
    )
    return balanced(profile)


class _Census:
    """The first reading: how many products have what."""

    def __init__(self, catalog: Catalog, k: int, progress: Progress) -> None:
        self.k = k
        kinds = catalog.card.roles.fields
        self.rows: Counter[str] = Counter()  # by product id
        self.spelt: set[str] = set()  # every word of every row, casefolded
        self.splits: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.categories = {name: Counter[str]() for name, kind in kinds.items() if kind == "category"}
        self.words = {name: Counter[str]() for name, kind in kinds.items() if kind == "text"}
        self.numbers = [name for name, kind in kinds.items() if kind == "number"]
        self.leading = next(iter(self.categories), None)
        for split, row in read_rows(catalog, [catalog.card.roles.id, *kinds], partial(progress, "counting")):
            id = str(row[catalog.card.roles.id])
            self.rows[id] += 1
            named = [*self.words, *self.categories]
            self.spelt.update(
                word for name in named if not is_missing(row[name]) for word in str(row[name]).casefold().split()
            )
            if self.rows[id] == 1:
                self._count(split, row)
        self.known = {column: self._known(column) for column in self.words}

    def _count(self, split: str, row: Mapping[str, Any]) -> None:
        self.splits[split] += 1
        self.missing.update(name for name in (*self.categories, *self.words, *self.numbers) if is_missing(row[name]))
        for name, counts in self.categories.items():
            if not is_missing(row[name]):
                counts[str(row[name])] += 1
        for name, counts in self.words.items():
            if not is_missing(row[name]):
                counts.update(set(str(row[name]).split()))

    def _known(self, column: str) -> dict[str, int]:
        """Words that may stay, with their products."""
        frequent = self.words[column].most_common(MOST_WORDS)
        return {word: n for word, n in frequent if n >= self.k and shareable(word) and word not in self.rows}

    def stratum(self, row: Mapping[str, Any]) -> str | None:
        """The row's leading category, None for rare ones."""
        if self.leading is None or is_missing(row[self.leading]):
            return None
        name = str(row[self.leading])
        return name if self.keeps(self.leading, name) else None

    def keeps(self, column: str, name: str) -> bool:
        """Whether a category may be named: k products have it, and it is no id or address."""
        return self.categories[column][name] >= self.k and all(map(shareable, name.split())) and name not in self.rows

    def share_missing(self, column: str) -> float:
        return round(self.missing[column] / len(self.rows), 4) if self.missing[column] >= self.k else 0.0


class _Notes:
    """The second reading: what products of a stratum look like, rare words as `RARE`. Keys are (stratum, column)."""

    def __init__(self, catalog: Catalog, census: _Census, progress: Progress) -> None:
        self.census = census
        self.products: Counter[str | None] = Counter()
        self.lengths: dict[Any, list[float]] = defaultdict(list)
        self.numbers: dict[Any, list[float]] = defaultdict(list)
        self.words: dict[Any, Counter[str]] = defaultdict(Counter)
        self.categories: dict[Any, Counter[str]] = defaultdict(Counter)
        self.pairs: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.rare_uses: Counter[Any] = Counter()
        self.rare_shapes: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)  # letters, case
        self.pictures: list[Seen] = []
        roles = catalog.card.roles
        seen: set[str] = set()
        every = max(1, len(census.rows) // DECODED)
        columns = [roles.image, roles.id, *roles.fields]
        for _, row in read_rows(catalog, columns, partial(progress, "learning")):
            if (id := str(row[roles.id])) in seen:
                continue
            seen.add(id)
            self._note(row)
            try:
                self.pictures.append(look_at(row[roles.image], decode=len(seen) % every == 0))
            except PictureError:
                continue  # `catalens check` names it; a profile holds nothing of one picture

    def _note(self, row: Mapping[str, Any]) -> None:
        stratum = self.census.stratum(row)
        self.products[stratum] += 1
        for column in self.census.numbers:
            if not is_missing(row[column]) and math.isfinite(row[column]):
                self.numbers[stratum, column].append(float(row[column]))
        for column in self.census.categories:
            if column != self.census.leading and not is_missing(row[column]):
                self.categories[stratum, column][str(row[column])] += 1
        for column, known in self.census.known.items():
            if not is_missing(row[column]):
                self._note_text(stratum, column, str(row[column]).split(), known)

    def _note_text(self, stratum: str | None, column: str, words: list[str], known: Mapping[str, int]) -> None:
        written = [word if word in known else RARE for word in words]
        rare = [word for word in words if word not in known]
        self.lengths[stratum, column].append(len(words))
        self.words[stratum, column].update(set(written))
        pairs = set(pairwise([EDGE, *written, EDGE]))
        self.pairs[column].update(pairs | {(sort_of(first), second) for first, second in pairs})
        self.rare_uses[stratum, column] += len(rare)
        self.rare_shapes[column].update((len(word), case_of([word])) for word in rare)

    def everywhere(self, notes: Mapping[Any, list[float]], column: str) -> list[float]:
        """Values of a column over all strata."""
        return [value for (_, name), values in notes.items() if name == column for value in values]


class _Inventor:
    """Makes words up that are in no text, category or id of the catalogue, each of them once."""

    def __init__(self, census: _Census, notes: _Notes) -> None:
        self.census, self.shapes = census, notes.rare_shapes
        self.taken = census.spelt | {id.casefold() for id in census.rows}

    def for_text(self, column: str, stratum: str | None, uses: int) -> tuple[str, ...]:
        """Words of the length and case of the column's rare words, fewer than these, so that each can be learnt."""
        count = min(max(uses // self.census.k, FEWEST_INVENTED), MOST_INVENTED)
        shapes = self.shapes[column]
        letters = summarise([length for (length, _), n in shapes.items() for _ in range(n)], self.census.k)
        cases = Counter[str]()
        for (_, case), n in shapes.items():
            cases[case] += n
        case = (
            max(cases, key=lambda name: cases[name]) if letters else case_of(self.census.known[column] or ["Title"])
        )
        return invent_words(count, _letters(letters), case, self.taken, f"{column}/{stratum}")

    def for_category(self, column: str, count: int) -> tuple[str, ...]:
        """Names for rare categories, written as the others are."""
        case = case_of(self.census.categories[column])
        return invent_words(count, _letters(()), case, self.taken, column)


def _letters(histogram: Any) -> Callable[[float], float]:
    """Length of an invented word for a share of 1."""
    if histogram:
        return lambda at: min(quantile(histogram, at), 2 * LETTERS[1])
    return lambda at: LETTERS[0] + at * (LETTERS[1] - LETTERS[0])


def _category(census: _Census, column: str, inventor: _Inventor) -> Category:
    counts = census.categories[column]
    kept = {
        name: n
        for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if census.keeps(column, name)
    }
    rare = counts.total() - sum(kept.values())
    rare = rare if rare >= census.k or not kept else 0
    return Category(
        products=kept,
        rare_products=rare,
        rare_names=inventor.for_category(column, min(len(counts) - len(kept), MOST_INVENTED)) if rare else (),
        missing=census.share_missing(column),
    )


def _wording(census: _Census, notes: _Notes, column: str) -> Wording:
    pairs: dict[str, dict[str, int]] = {}
    for (first, second), n in sorted(notes.pairs[column].items()):
        if n >= census.k:
            pairs.setdefault(first, {})[second] = n
    unnamed = Counter[str]()  # not the difference to a total: that might be one product
    for (_, name), words in notes.words.items():
        if name == column:
            unnamed.update({word: n for word, n in words.items() if n < census.k})
    return Wording(
        elsewhere={word: n for word, n in unnamed.most_common() if n >= census.k},
        pairs=pairs,
        missing=census.share_missing(column),
    )


def _rounding(census: _Census, notes: _Notes, column: str) -> Rounding:
    values = notes.everywhere(notes.numbers, column)
    logarithmic = bool(values) and min(values) > 0
    shared: set[tuple[Any, float]] = set()
    for (stratum, name), its in notes.numbers.items():
        if name == column:
            shared |= {(stratum, group.value) for group in summarise(its, census.k, logarithmic) if group.shared}
    free = [
        value
        for (stratum, name), its in notes.numbers.items()
        if name == column
        for value in its
        if (stratum, value) not in shared
    ]
    return Rounding(
        habits=learn_habits(free or values, census.k),
        logarithmic=logarithmic,
        missing=census.share_missing(column),
    )


def _strata(census: _Census, notes: _Notes, inventor: _Inventor) -> Iterator[Stratum]:
    """The strata by falling size; what a stratum is too small to tell is told of all products together."""
    k = census.k
    every = {column: notes.everywhere(notes.lengths, column) for column in census.known}
    every |= {column: notes.everywhere(notes.numbers, column) for column in census.numbers}
    for name, products in sorted(notes.products.items(), key=lambda item: (-item[1], str(item[0]))):
        if products < k:
            continue
        lengths, numbers = {}, {}
        for column in census.known:
            if histogram := summarise(notes.lengths[name, column], k) or summarise(every[column], k):
                lengths[column] = histogram
        for column in census.numbers:
            above = bool(every[column]) and min(every[column]) > 0
            if histogram := summarise(notes.numbers[name, column], k, above) or summarise(every[column], k, above):
                numbers[column] = histogram
        yield Stratum(
            category=name,
            products=products,
            lengths=lengths,
            words={column: _words(notes.words[name, column], k) for column in census.known},
            invented={c: inventor.for_text(c, name, notes.rare_uses[name, c]) for c in census.known},
            numbers=numbers,
            categories={
                c: {
                    value: n
                    for value, n in notes.categories[name, c].most_common()
                    if n >= k and census.keeps(c, value)
                }
                for c in census.categories
                if c != census.leading
            },
        )


def _words(counts: Counter[str], k: int) -> dict[str, int]:
    kept = {word: n for word, n in counts.most_common() if n >= k}
    others = sum(n for word, n in counts.items() if n < k and word != RARE)
    return kept | ({OTHER: others} if others >= k else {})


def _free_prefix(ids: Mapping[str, int]) -> str:
    """How no id of the catalogue begins."""
    prefix, number = "like-", 1
    while any(id.startswith(prefix) for id in ids):
        number += 1
        prefix = f"like{number}-"
    return prefix


def read_rows(
    catalog: Catalog, columns: list[str], progress: Callable[[int, int], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of every row, a batch in memory at a time."""
    total = sum(catalog.card.rows.values())
    done = 0
    for split in SPLITS:
        if catalog.card.rows.get(split):
            for batch in catalog.batches(split, columns):
                for row in batch:
                    yield split, row
                done += len(batch)
                progress(done, total)
