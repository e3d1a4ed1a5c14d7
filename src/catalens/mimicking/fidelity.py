"""Fidelity of a drawn catalogue: its distances from the original, and that nothing of the original is in it.

    full_price: [128.0, 1290.0, ...]   title, words: [3, 4, 4, ...]   format: {"JPEG": 812, "PNG": 188}
    ->  Distance("full_price", "KS", 0.031), Distance("format", "TV", 0.012), ...

TV is the total variation distance of two counts of names (half the sum of the differences of their shares), KS the
Kolmogorov-Smirnov distance of two samples of numbers (the largest difference of their cumulative shares): 0 is the
same, 1 has nothing in common.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from catalens.errors import CatalogError
from catalens.mimicking.learning import Survey, format_of
from catalens.mimicking.profile import RARE, Histogram, Profile, quantile

CLOSE = 0.1  # share of the original within which a cost is alike
SHORT = 2  # texts of so many words may be those of the catalogue
OTHERS = "all others"  # stands for the rare categories, true or invented


class Figures(NamedTuple):
    """Figures by which catalogues are compared."""

    names: dict[str, Counter[str]]  # by category column, and `title, frequent words`, `format`
    numbers: dict[str, list[float]]  # by number column, and `title, words`, `longer side` and the like


class Distance(NamedTuple):
    """Distance of two catalogues in one respect."""

    name: str
    measure: str  # TV or KS
    value: float
    chance: float | None = None  # of KS: what two samples of one and the same source would have, on average


class Cost(NamedTuple):
    """Cost of a row, in the original and as drawn."""

    name: str
    original: float
    drawn: float

    @property
    def change(self) -> float:
        """Difference as a share of the original."""
        return self.drawn / self.original - 1 if self.original else float(self.drawn > 0)

    @property
    def close(self) -> bool:
        """True within `CLOSE`."""
        return abs(self.change) <= CLOSE


class Fidelity(NamedTuple):
    """Distances and costs of a drawn catalogue."""

    rows: int
    k: int
    checked: bool  # the original was at hand and every drawn row was looked up in it; else the profile stands for it
    distances: list[Distance]
    costs: list[Cost]


def compare(profile: Profile, original: Survey | None, drawn: Survey) -> Fidelity:
    """Compare a drawn catalogue with its original, or with the profile where that is not there."""
    before = measured(original, profile) if original else expected(profile)
    after = measured(drawn, profile)
    costs = [Cost("bytes a row", profile.bytes_a_row, float(np.mean([p.stored for p in drawn.pictures])))]
    if profile.needs and drawn.needs:
        needs = zip(profile.needs._fields, profile.needs, drawn.needs, strict=True)
        costs += [Cost(f"{name} a row", one, other) for name, one, other in needs]
    distances = [Distance(name, "TV", total_variation(one, after.names[name])) for name, one in before.names.items()]
    for name, one in before.numbers.items():
        if one and (other := after.numbers[name]):
            chance = 0.8687 * (1 / len(one) + 1 / len(other)) ** 0.5  # the mean of Kolmogorov's distribution
            distances.append(Distance(name, "KS", kolmogorov(one, other), chance))
    return Fidelity(len(drawn.ids), profile.k, original is not None, distances, costs)


def measured(survey: Survey, profile: Profile) -> Figures:
    """Measure the figures of a catalogue; words and categories are those that the profile names."""
    names: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    known = {name: [value for value in survey.products(name) if value is not None] for name in survey.values}
    for column, its in profile.categories.items():
        names[column] = Counter(name if name in its.products else OTHERS for name in known[column])
    pictures = [picture for picture in survey.pictures if picture.size]
    names["format"] = Counter(map(format_of, pictures))
    for column in profile.texts:
        frequent, texts = profile.words(column), [text.split() for text in known[column]]
        names[f"{column}, frequent words"] = Counter(w for words in texts for w in set(words) if w in frequent)
        numbers[f"{column}, words"] = [len(words) for words in texts]
        numbers[f"{column}, characters"] = [len(text) for text in known[column]]
    numbers |= {column: known[column] for column in profile.numbers}
    sizes = [picture.size or (1, 1) for picture in pictures]
    numbers["bytes a row"] = [picture.stored for picture in pictures]
    numbers["longer side"] = [max(size) for size in sizes]
    numbers["width / height"] = [round(width / height, 3) for width, height in sizes]
    numbers["border brightness"] = [p.brightness for p in pictures if p.brightness is not None]
    numbers["rows a product"] = list(Counter(survey.ids).values())
    return Figures(names, numbers)


def expected(profile: Profile) -> Figures:
    """Reckon the figures that a catalogue of this profile would have; nothing but the profile is in them."""
    names: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = defaultdict(list)
    for column, its in profile.categories.items():
        names[column] = Counter(its.products) + Counter({OTHERS: its.rare_products})
    names["format"] = Counter({format: its.products for format, its in profile.pictures.items()})
    for column in profile.texts:
        names[f"{column}, frequent words"] = profile.words(column)
        del names[f"{column}, frequent words"][RARE]
    for stratum in profile.strata:
        for column, histogram in stratum.lengths.items():
            numbers[f"{column}, words"] += map(round, _spread(histogram, stratum.products))
        for column, histogram in stratum.numbers.items():
            numbers[column] += _spread(histogram, stratum.products, profile.numbers[column].logarithmic)
    for its in profile.pictures.values():
        sizes = [(size.width, size.height) for size in its.sizes for _ in range(size.products)]
        rest = its.products - len(sizes)
        numbers["longer side"] += [*map(max, sizes), *_spread(its.longest, rest, logarithmic=True)]
        numbers["width / height"] += [round(width / height, 3) for width, height in sizes]
        numbers["width / height"] += _spread(its.ratio, rest, logarithmic=True)
        numbers["border brightness"] += _spread(its.brightness, its.products)
    numbers["rows a product"] += map(round, _spread(profile.photographs, profile.products))
    return Figures(names, numbers)


def _spread(histogram: Histogram, count: int, logarithmic: bool = False) -> list[float]:
    """`count` values that are spread as the histogram says."""
    return [quantile(histogram, (number + 0.5) / count, logarithmic) for number in range(count) if histogram]


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
    ids, pictures = set(original.ids), {seen.sha256 for _, seen in original.all_pictures}
    texts: set[str] = set()
    pairs: set[tuple[str, float]] = set()
    for row in range(len(original.ids)):
        _, own, paired = _held(original, row)
        texts |= {text for text in own if len(text.split()) > SHORT}
        pairs |= paired
    # a word in several texts of a product is used by one product
    uses = Counter(word for row in original.firsts.values() for word in _held(original, row)[0])
    for row in range(len(drawn.ids)):
        words, own, paired = _held(drawn, row)
        found = {
            "an id": bool({drawn.ids[row], *words} & ids),
            "a text": bool(own & texts),
            "a text with its number": bool(paired & pairs),
            f"a word of fewer than {k} products": any(0 < uses[word] < k for word in words),
            "a picture": drawn.pictures[row].sha256 in pictures,
        }
        if any(found.values()):
            raise CatalogError(
                f"drawn row {row + 1} holds {' and '.join(what for what, held in found.items() if held)} of the "
                "original: nothing was written; please report this, and draw with another --seed"
            )


def _held(survey: Survey, row: int) -> tuple[set[str], set[str], set[tuple[str, float]]]:
    """Words, texts and text-number pairs of a row."""
    values = {name: value for name, column in survey.values.items() if (value := column[row]) is not None}
    texts = {" ".join(values[name].split()) for name in survey.roles.columns("text") if name in values}
    names = {values[name] for name in survey.roles.columns("category") if name in values}
    numbers = [values[name] for name in survey.roles.columns("number") if name in values]
    words = {word for text in texts | names for word in text.split()}
    return words, texts, {(text, number) for text in texts for number in numbers}
