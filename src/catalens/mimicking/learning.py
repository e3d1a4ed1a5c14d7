"""A catalogue -> its profile.

    1,981 products, 41 of their words used by 10 or more; TRAVEL has 38 products, SADDLERY 3: one of them is named

Of a product only its first row speaks. What fewer than k products share is counted at most, and never named.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from catalens.catalog.scan import ImageStats
from catalens.catalog.storage import SPLITS, Catalog
from catalens.errors import CatalogError
from catalens.mimicking.profile import (
    EDGE,
    OTHER,
    RARE,
    Category,
    Histogram,
    K,
    PictureFormat,
    PictureSize,
    Profile,
    Rounding,
    Stratum,
    Wording,
    format_of,
)
from catalens.mimicking.summaries import learn_habits, quantile, summarise
from catalens.mimicking.surveys import Survey, survey_catalog
from catalens.mimicking.texts import balanced, case_of, invent_words, shareable

MOST_WORDS = 1000
"""Words of a column that a profile keeps, the most frequent ones."""
FEWEST_INVENTED, MOST_INVENTED = 4, 60
"""Invented words of a stratum; between them, as many as would each be used by k products."""
LONGEST_INVENTED = 18
LETTERS = (4.0, 9.0)
"""Of an invented word, where the catalogue has no rare words to go by."""


def learn_profile(catalog: Catalog, k: int = K, survey: Survey | None = None) -> Profile:
    """Learn the profile of a catalogue, of which there may be a survey.

    Raises CatalogError where it has fewer than `k` + 2 products or pictures, too few to hide one among them, or
    cannot be read.
    """
    survey = survey or survey_catalog(catalog)
    rows = Counter(survey.ids)
    if len(rows) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(rows)} products: a profile that gives none away needs {k + 2} or more"
        )
    pictures = [seen for row in survey.firsts.values() if (seen := survey.pictures[row]).size]
    if len(pictures) < k + 2:
        raise CatalogError(
            f"{catalog.folder} has {len(pictures)} products with a picture that can be read, and {k + 2} are "
            "needed: see what `catalens check` says of the others"
        )
    learner = _Learner(survey, k)
    splits = Counter(survey.splits[row] for row in survey.firsts.values())
    profile = Profile(
        k=k,
        roles=survey.roles,
        integer_fields=catalog.card.integer_fields,
        rows=len(survey),
        products=len(rows),
        fractions={split: round(splits[split] / len(rows), 4) for split in SPLITS},
        photographs=summarise(list(rows.values()), k),
        id_prefix=_free_prefix(rows),
        categories={column: learner.category(column) for column in survey.roles.columns("category")},
        texts={column: learner.wording(column) for column in survey.roles.columns("text")},
        numbers={column: learner.rounding(column) for column in survey.roles.columns("number")},
        pictures=describe(pictures, k),
        bytes_a_row=round(sum(picture.stored for picture in pictures) / len(pictures)),
        strata=tuple(learner.stratum(name) for name in learner.strata if len(learner.strata[name]) >= k),
        needs=survey.needs,
    )
    return balanced(profile)


class _Learner:
    """What products have in common."""

    def __init__(self, survey: Survey, k: int) -> None:
        self.survey, self.k = survey, k
        self.secret = _fingerprint(survey)
        self.columns = {name: survey.products(name) for name in survey.roles.fields}
        self.known = {name: [value for value in values if value is not None] for name, values in self.columns.items()}
        self.logarithmic = {
            column: min(self.known[column], default=0) > 0 for column in survey.roles.columns("number")
        }
        self.names = {column: self._kept(column) for column in survey.roles.columns("category")}
        self.words = {column: self._shared_words(column) for column in survey.roles.columns("text")}
        self.rare = {
            column: [word for text in self.known[column] for word in text.split() if word not in words]
            for column, words in self.words.items()
        }
        self.taken = {id.casefold() for id in survey.firsts}
        for column in (*self.names, *self.words):
            self.taken.update(word for text in survey.values[column] if text for word in text.casefold().split())
        kept = self.names.get(survey.roles.leading or "", {})
        strata: dict[str | None, list[int]] = defaultdict(list)
        for place, name in enumerate(survey.strata()):
            strata[name if name in kept else None].append(place)
        self.strata = dict(sorted(strata.items(), key=lambda item: (-len(item[1]), str(item[0]))))
        """Places of the products by stratum, the largest first."""

    def category(self, column: str) -> Category:
        """The names of a column."""
        counts, kept = Counter(self.known[column]), self.names[column]
        rare = counts.total() - sum(kept.values())
        rare = rare if rare >= self.k or not kept else 0
        others = min(len(counts) - len(kept), MOST_INVENTED) if rare else 0
        invented = invent_words(others, partial(_letters, ()), case_of(counts), self.taken, f"{self.secret}/{column}")
        return Category(products=kept, rare_products=rare, rare_names=invented, missing=self._missing(column))

    def wording(self, column: str) -> Wording:
        """How the words of a column follow each other, and which are too rare in some strata to be named there."""
        followers: dict[str, dict[str, int]] = defaultdict(dict)
        texts = [[EDGE, *self._written(column, text), EDGE] for text in self.known[column]]
        for (first, second), n in sorted(_uses(pairwise(words) for words in texts).items()):
            if n >= self.k:
                followers[first][second] = n
        unnamed: Counter[str] = Counter()  # not the difference to a total: that might be one product
        for places in self.strata.values():
            unnamed.update({word: n for word, n in self._used(column, places).items() if n < self.k})
        elsewhere = {word: n for word, n in unnamed.most_common() if n >= self.k}
        return Wording(elsewhere=elsewhere, pairs=followers, missing=self._missing(column))

    def rounding(self, column: str) -> Rounding:
        """How numbers are rounded that are not those of many products of a stratum."""
        free: list[float] = []
        for places in self.strata.values():
            values = self._of(column, places)
            histogram = summarise(values, self.k, self.logarithmic[column])
            shared = {group.value for group in histogram if group.shared}
            free += [value for value in values if value not in shared]
        return Rounding(
            habits=learn_habits(free or self.known[column], self.k),
            logarithmic=self.logarithmic[column],
            missing=self._missing(column),
        )

    def stratum(self, name: str | None) -> Stratum:
        """The products of a category; what they are too few to tell is told of all products together."""
        places, words, invented, lengths, numbers = self.strata[name], {}, {}, {}, {}
        for column in self.words:
            used = self._used(column, places)
            words[column] = {word: n for word, n in used.most_common() if n >= self.k}
            others = sum(n for word, n in used.items() if n < self.k and word != RARE)
            words[column] |= {OTHER: others} if others >= self.k else {}
            invented[column] = self._invented(column, name)
            for some in (self._of(column, places), self.known[column]):
                if column not in lengths and (told := summarise([len(text.split()) for text in some], self.k)):
                    lengths[column] = told
        for column in self.survey.roles.columns("number"):
            for values in (self._of(column, places), self.known[column]):
                if column not in numbers and (told := summarise(values, self.k, self.logarithmic[column])):
                    numbers[column] = told
        categories = {
            column: {
                value: n
                for value, n in Counter(self._of(column, places)).most_common()
                if n >= self.k and value in kept
            }
            for column, kept in self.names.items()
            if column != self.survey.roles.leading
        }
        return Stratum(
            category=name,
            products=len(places),
            lengths=lengths,
            words=words,
            invented=invented,
            numbers=numbers,
            categories=categories,
        )

    def _of(self, column: str, places: Iterable[int]) -> list[Any]:
        """The known values of the products at some places."""
        return [value for place in places if (value := self.columns[column][place]) is not None]

    def _kept(self, column: str) -> dict[str, int]:
        """Categories that may be named, with their products: k have it, and it is no id or address."""
        counts = sorted(Counter(self.known[column]).items(), key=lambda item: (-item[1], item[0]))
        return {name: n for name, n in counts if n >= self.k and self._may_stay(name)}

    def _shared_words(self, column: str) -> dict[str, int]:
        """Words that may stay, with their products."""
        frequent = _uses(text.split() for text in self.known[column]).most_common(MOST_WORDS)
        return {word: n for word, n in frequent if n >= self.k and self._may_stay(word)}

    def _may_stay(self, name: str) -> bool:
        return all(map(shareable, name.split())) and name not in self.survey.firsts

    def _written(self, column: str, text: str) -> list[str]:
        return [word if word in self.words[column] else RARE for word in text.split()]

    def _used(self, column: str, places: Iterable[int]) -> Counter[str]:
        """Products of a stratum that use a word."""
        return _uses(self._written(column, text) for text in self._of(column, places))

    def _missing(self, column: str) -> float:
        missing = self.columns[column].count(None)
        return round(missing / len(self.survey.firsts), 4) if missing >= self.k else 0.0

    def _invented(self, column: str, stratum: str | None) -> tuple[str, ...]:
        """Words of the length and case of the column's rare words, fewer than these, so that each can be learnt."""
        here = self._of(column, self.strata[stratum])
        uses = sum(self._written(column, text).count(RARE) for text in here)
        count = min(max(uses // self.k, FEWEST_INVENTED), MOST_INVENTED)
        letters = summarise([len(word) for word in self.rare[column]], self.k)
        case = case_of(self.rare[column] if letters else self.words[column] or ["Title"])
        return invent_words(count, partial(_letters, letters), case, self.taken, f"{self.secret}/{column}/{stratum}")


def _uses(of_products: Iterable[Iterable[Any]]) -> Counter[Any]:
    """How many products have a thing."""
    return Counter(thing for things in of_products for thing in dict.fromkeys(things))  # a set's order changes


def _fingerprint(survey: Survey) -> str:
    """A hash over everything in the rows, whatever their order, that nobody can reckon who has not all of them."""
    rows = zip(survey.ids, survey.pictures, *survey.values.values(), strict=True)
    whole = sorted(json.dumps([id, seen.digest.hex(), *values]) for id, seen, *values in rows)
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()


def _letters(histogram: Histogram, at: float) -> float:
    """Length of an invented word for a share of 1."""
    return min(quantile(histogram, at), LONGEST_INVENTED) if histogram else float(np.interp(at, (0, 1), LETTERS))


def _free_prefix(ids: Iterable[str]) -> str:
    """How no id of the catalogue begins."""
    prefix, number = "like-", 1
    while any(id.startswith(prefix) for id in ids):
        number += 1
        prefix = f"like{number}-"
    return prefix


def describe(seen: Sequence[ImageStats], k: int) -> dict[str, PictureFormat]:
    """The pictures of a catalogue by format; formats of too few pictures count as the most frequent one."""
    counts = Counter(map(format_of, seen))
    main = min(counts, key=lambda format: (-counts[format], format))
    by_format: dict[str, list[ImageStats]] = defaultdict(list)
    for picture in seen:
        by_format[format_of(picture) if counts[format_of(picture)] >= k + 2 else main].append(picture)
    return {format: _describe(pictures, k) for format, pictures in sorted(by_format.items())}


def _describe(seen: Sequence[ImageStats], k: int) -> PictureFormat:
    sizes = [picture.size or (0, 0) for picture in seen]
    counts = Counter(sizes)
    frequent = {size: n for size, n in sorted(counts.items()) if n >= k}
    rest = [size for size in sizes if size not in frequent]
    if len(rest) < k + 2:
        rest = sizes
    density = [picture.stored / (width * height) for picture, (width, height) in zip(seen, sizes, strict=True)]
    return PictureFormat(
        products=len(seen),
        sizes=tuple(PictureSize(*size, n) for size, n in frequent.items()),
        longest=summarise([max(size) for size in rest], k, logarithmic=True),
        ratio=summarise([width / height for width, height in rest], k, logarithmic=True),
        bytes_a_pixel=summarise(density, k, logarithmic=True),
        brightness=summarise([p.brightness for p in seen if p.brightness is not None], k),
    )
