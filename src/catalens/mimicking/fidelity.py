"""How like a drawn catalogue is to its original, and that nothing of the original is in it.

    full_price: [128.0, 1290.0, ...]   title, words: [3, 4, 4, ...]   format: {"JPEG": 812, "PNG": 188}
    ->  Distance("full_price", "KS", 0.031), Distance("format", "TV", 0.012), ...

TV is the total variation distance of two sets of names (half the sum of the differences of their shares), KS the
Kolmogorov-Smirnov distance of two sets of numbers (the largest difference of their cumulative shares): 0 is the same,
1 has nothing in common. Drawn texts and pictures are also put beside their nearest in the catalogue.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from scipy.stats import ks_2samp

from catalens.catalog.appearance import NO_FINGERPRINT
from catalens.catalog.duplicates import BITS
from catalens.config import Kind
from catalens.errors import CatalogError
from catalens.mimicking.learning import Survey, format_of
from catalens.mimicking.profile import OTHER, RARE, Histogram, Profile, quantile

FEWEST_IN_CATEGORY = 30
"""Products of a category from which its numbers are compared by themselves."""
CLOSE = 0.1
"""What tuning needs is alike within this share."""
SHORT = 2
"""Texts of so many words may be those of the catalogue."""
QUOTED, COMPARED = 1000, 400
"""Texts and pictures of the catalogue, and drawn ones that are put beside those, at most."""

Shares = NDArray[np.floating[Any]]


class Distance(NamedTuple):
    """How far apart two catalogues are in one respect."""

    name: str
    measure: str  # TV or KS
    value: float
    chance: float | None = None  # of KS: what two samples of one and the same source would have, on average


class Nearness(NamedTuple):
    """How alike things are to their nearest in the catalogue: 0 to 1."""

    what: str
    median: float
    nearest: float
    among: float  # median among the catalogue's own things


class Cost(NamedTuple):
    """What a row costs, in the original and as drawn."""

    name: str
    original: float
    drawn: float

    @property
    def change(self) -> float:
        """Difference as a share of the original."""
        return self.drawn / self.original - 1 if self.original else float(self.drawn > 0)

    @property
    def close(self) -> bool:
        """Whether it is within `CLOSE`."""
        return abs(self.change) <= CLOSE


class Fidelity(NamedTuple):
    """Distances, costs and nearness of a drawn catalogue."""

    rows: int
    k: int
    checked: bool  # the original was at hand and every drawn row was looked up in it; else the profile stands for it
    distances: list[Distance]
    costs: list[Cost]
    nearness: list[Nearness]


@dataclass
class Figures:
    """What catalogues are compared by."""

    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By category column, and `words of title`, `format`."""
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By number column, and `title, words`, `longer side`, `border brightness` and the like."""
    by_category: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))


def compare(profile: Profile, original: Survey | None, drawn: Survey) -> Fidelity:
    """Compare a drawn catalogue with its original, or with the profile where that is not there."""
    before, after = measured(original) if original else expected(profile), measured(drawn)
    costs = [Cost("bytes a row", profile.bytes_a_row, float(np.mean(after.numbers["bytes a row"] or [0.0])))]
    if profile.needs and drawn.needs:
        pairs = zip(profile.needs._fields, profile.needs, drawn.needs, strict=True)
        costs += [Cost(f"{name} a row", one, other) for name, one, other in pairs]
    near = nearness(original, drawn) if original else []
    return Fidelity(len(drawn.ids), profile.k, original is not None, distances(before, after, profile), costs, near)


def measured(survey: Survey) -> Figures:
    """Measure the figures of a catalogue."""
    found = Figures()
    for column, kind in survey.roles.fields.items():
        values = survey.products(column)
        known = [value for value in values if value is not None]
        if kind == "category":
            found.names[column].update(known)
        elif kind == "number":
            found.numbers[column] += known
            for value, category in zip(values, survey.products(survey.roles.leading), strict=True):
                found.by_category[column, category or ""] += [] if value is None else [value]
        else:
            found.names[f"words of {column}"].update(word for text in known for word in set(text.split()))
            found.numbers[f"{column}, words"] += [len(text.split()) for text in known]
            found.numbers[f"{column}, characters"] += map(len, known)
    for seen in survey.pictures:
        if seen.size:
            found.names["format"][format_of(seen)] += 1
            found.numbers["bytes a row"].append(seen.stored)
            found.numbers["longer side"].append(max(seen.size))
            found.numbers["width / height"].append(round(seen.size[0] / seen.size[1], 3))
            found.numbers["border brightness"] += [] if seen.brightness is None else [seen.brightness]
    found.numbers["rows a product"] += Counter(survey.ids).values()
    return found


def expected(profile: Profile) -> Figures:
    """Reckon the figures that a catalogue of this profile would have; nothing but the profile is in them."""
    found = Figures()
    for column, its in profile.categories.items():
        found.names[column].update(its.products)
        each = max(1, its.rare_products // max(1, len(its.rare_names)))
        found.names[column].update(dict.fromkeys(its.rare_names, each))
    for column in profile.texts:
        found.names[f"words of {column}"].update(profile.words(column))
    for stratum in profile.strata:
        for column, histogram in stratum.lengths.items():
            found.numbers[f"{column}, words"] += map(round, _spread(histogram, stratum.products))
        for column, histogram in stratum.numbers.items():
            values = _spread(histogram, stratum.products, profile.numbers[column].logarithmic)
            found.numbers[column] += values
            found.by_category[column, stratum.category or ""] += values
    for format, its in profile.pictures.items():
        found.names["format"][format] = its.products
        sizes = [(size.width, size.height) for size in its.sizes for _ in range(size.products)]
        rest = its.products - len(sizes)
        found.numbers["longer side"] += [*map(max, sizes), *_spread(its.longest, rest, logarithmic=True)]
        found.numbers["width / height"] += [round(width / height, 3) for width, height in sizes]
        found.numbers["width / height"] += _spread(its.ratio, rest, logarithmic=True)
        found.numbers["border brightness"] += _spread(its.brightness, its.products)
    found.numbers["rows a product"] += map(round, _spread(profile.photographs, profile.products))
    return found


def _spread(histogram: Histogram, count: int, logarithmic: bool = False) -> list[float]:
    """`count` values that are spread as the histogram says."""
    return [quantile(histogram, (number + 0.5) / count, logarithmic) for number in range(count) if histogram]


def distances(original: Figures, drawn: Figures, profile: Profile) -> list[Distance]:
    """Compare the figures of a catalogue (or its profile) with those of one drawn like it, the columns first."""
    found: list[Distance] = []
    for column in [*profile.categories, "format"]:
        kept = profile.categories[column].products if column in profile.categories else original.names[column]
        both: tuple[Counter[str], Counter[str]] = Counter(), Counter()
        for names, figures in zip(both, (original, drawn), strict=True):
            for name, n in figures.names[column].items():
                names[name if name in kept else OTHER] += n  # all rare names, true or invented, are one
        found.append(Distance(column, "TV", total_variation(*both)))
    for column in profile.texts:
        known = set(profile.words(column)) - {RARE}
        words = [figures.names[f"words of {column}"] for figures in (original, drawn)]
        words = [{word: n for word, n in names.items() if word in known} for names in words]
        if all(words):
            found.append(Distance(f"{column}, frequent words", "TV", total_variation(*words)))
    for name, values in original.numbers.items():
        if values and drawn.numbers.get(name):
            found.append(_numbers_apart(name, [(values, drawn.numbers[name])]))
    for column in profile.numbers:
        pairs = [
            (values, drawn.by_category[key])
            for key, values in original.by_category.items()
            if key[0] == column and key[1] and min(len(values), len(drawn.by_category[key])) >= FEWEST_IN_CATEGORY
        ]
        if pairs:
            found.append(_numbers_apart(f"{column} by {profile.roles.leading}, mean", pairs))
    return found


def _numbers_apart(name: str, pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Distance:
    """KS of pairs of samples, averaged by the size of the first."""
    weights = [len(one) for one, _ in pairs]
    apart = np.average([kolmogorov(*pair) for pair in pairs], weights=weights)
    # the mean of Kolmogorov's distribution
    chance = np.average([0.8687 * (1 / len(one) + 1 / len(other)) ** 0.5 for one, other in pairs], weights=weights)
    return Distance(name, "KS", float(apart), float(chance))


def total_variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation distance of two counts of names; 1 where one of them is empty and the other is not."""
    totals = sum(one.values()), sum(other.values())
    if not all(totals):
        return float(any(totals))
    return sum(abs(one.get(name, 0) / totals[0] - other.get(name, 0) / totals[1]) for name in {*one, *other}) / 2


def kolmogorov(one: Sequence[float], other: Sequence[float]) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    return float(ks_2samp(one, other, method="asymp")[0])  # pyright: ignore[reportArgumentType]


def refuse_leaks(original: Survey, drawn: Survey, k: int) -> None:
    """Raise CatalogError where a drawn row holds an id, text, text-number pair, rare word or picture of the other."""
    ids, pictures = set(original.ids), {seen.digest for seen in original.pictures}
    # a word in several texts of a product is used by one product
    uses = Counter(word for row in original.firsts.values() for word in _words(original, row))
    rows = range(len(original.ids))
    texts = {text for row in rows for text in _texts(original, row) if len(text.split()) > SHORT}
    pairs = {pair for row in rows for pair in _pairs(original, row)}
    for row in range(len(drawn.ids)):
        words = _words(drawn, row)
        held = {
            "an id": bool({drawn.ids[row], *words} & ids),
            "a text": not texts.isdisjoint(_texts(drawn, row)),
            "a text with its number": not pairs.isdisjoint(_pairs(drawn, row)),
            f"a word of fewer than {k} products": any(0 < uses[word] < k for word in words),
            "a picture": drawn.pictures[row].digest in pictures,
        }
        if any(held.values()):
            raise CatalogError(
                f"drawn row {row + 1} holds {' and '.join(what for what, is_held in held.items() if is_held)} of the "
                "original: nothing was written; please report this, and draw with another --seed"
            )


def _values(survey: Survey, kind: Kind, row: int) -> list[Any]:
    return [value for name in survey.roles.columns(kind) if (value := survey.values[name][row]) is not None]


def _texts(survey: Survey, row: int) -> list[str]:
    return [" ".join(value.split()) for value in _values(survey, "text", row)]


def _words(survey: Survey, row: int) -> set[str]:
    return {word for text in [*_texts(survey, row), *_values(survey, "category", row)] for word in text.split()}


def _pairs(survey: Survey, row: int) -> list[tuple[str, float]]:
    return [(text, number) for text in _texts(survey, row) for number in _values(survey, "number", row)]


def nearness(original: Survey, drawn: Survey) -> list[Nearness]:
    """Compare drawn texts and pictures with the nearest of the catalogue, over samples of both."""
    found: list[Nearness] = []
    for column in drawn.roles.columns("text"):
        texts, source = ([text for text in some.products(column) if text][:QUOTED] for some in (drawn, original))
        if texts and len(source) > 1:
            alike, among = (
                process.cdist(some[:COMPARED], source, scorer=fuzz.ratio, dtype=np.float32) / 100
                for some in (texts, source)
            )
            found.append(_nearness(f"{column}: share of characters in common", alike, among))
    prints, source = (
        np.array([np.frombuffer(p.fingerprint, np.uint64) for p in some.pictures if p.fingerprint != NO_FINGERPRINT])
        for some in (drawn, original)
    )
    if len(source) > 1 and len(prints):
        alike, among = (_bits_alike(some[:COMPARED], source[:QUOTED]) for some in (prints, source))
        found.append(_nearness("pictures: share of fingerprint bits in common", alike, among))
    return found


def _nearness(what: str, alike: Shares, among: Shares) -> Nearness:
    np.fill_diagonal(among, 0)  # each is itself
    nearest = alike.max(axis=1)
    return Nearness(what, float(np.median(nearest)), float(nearest.max()), float(np.median(among.max(axis=1))))


def _bits_alike(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> Shares:
    """[one, other]: share of equal bits, of fingerprints [n, 4]."""
    unlike = [np.bitwise_count(row ^ other).sum(axis=1) for row in one]
    return (1 - np.array(unlike) / BITS).astype(np.float32)
