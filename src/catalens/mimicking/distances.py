"""What a catalogue is like in figures, so that two can be compared: measured from rows, or taken from a profile.

    full_price: [128.0, 1290.0, ...]   title, words: [3, 4, 4, ...]   formats: {"JPEG": 812, "PNG": 188}
    ->  Distance("full_price", "KS", 0.031), Distance("formats", "TV", 0.012), ...

TV is the total variation distance of two sets of names (half the sum of the differences of their shares), KS the
Kolmogorov-Smirnov distance of two sets of numbers (the largest difference of their cumulative shares): 0 is the same,
1 has nothing in common.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from catalens.mimicking.profile import OTHER, RARE, Histogram, Profile, format_of
from catalens.mimicking.summaries import quantile
from catalens.mimicking.surveys import Survey

FEWEST_IN_CATEGORY = 30
"""Products of a category from which its numbers are compared by themselves."""


class Distance(NamedTuple):
    """How far apart two catalogues are in one respect."""

    name: str
    measure: str
    """`TV` or `KS`."""
    value: float
    chance: float | None = None
    """Of KS: what two samples of one and the same source would have, on average."""


@dataclass
class Figures:
    """What catalogues are compared by."""

    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By category column, and `words of title`, `format`."""
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By number column, and `title, words`, `longer side`, `border brightness` and the like."""
    by_category: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))


def measured(survey: Survey) -> Figures:
    """The figures of a catalogue."""
    found = Figures()
    for column, kind in survey.roles.fields.items():
        values = survey.products(column)
        known = [value for value in values if value is not None]
        if kind == "category":
            found.names[column].update(known)
        elif kind == "number":
            found.numbers[column] += known
            for value, category in zip(values, survey.strata(), strict=True):
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
    """The figures that a catalogue of this profile would have; nothing but the profile is in them."""
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
        sides = [max(s.width, s.height) for s in its.sizes for _ in range(s.products)]
        ratios = [round(s.width / s.height, 3) for s in its.sizes for _ in range(s.products)]
        rest = its.products - len(sides)
        found.numbers["longer side"] += sides + _spread(its.longest, rest, logarithmic=True)
        found.numbers["width / height"] += ratios + _spread(its.ratio, rest, logarithmic=True)
        found.numbers["border brightness"] += _spread(its.brightness, its.products)
    found.numbers["rows a product"] += map(round, _spread(profile.photographs, profile.products))
    return found


def distances(original: Figures, drawn: Figures, profile: Profile) -> list[Distance]:
    """All distances between a catalogue (or its profile) and the one that was drawn like it, the columns first."""
    found: list[Distance] = []
    for column in [*profile.categories, "format"]:
        rare = _renamed(original.names[column], profile, column), _renamed(drawn.names[column], profile, column)
        found.append(Distance(column, "TV", total_variation(*rare)))
    for column in profile.texts:
        known = profile.words(column)
        del known[RARE]
        sides = [
            Counter({word: n for word, n in figures.names[f"words of {column}"].items() if word in known})
            for figures in (original, drawn)
        ]
        if all(sides):
            found.append(Distance(f"{column}, frequent words", "TV", total_variation(*sides)))
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


def _numbers_apart(name: str, pairs: Sequence[Sequence[Sequence[float]]]) -> Distance:
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


def _renamed(names: Counter[str], profile: Profile, column: str) -> Counter[str]:
    """Counts with all rare names, true or invented, as one."""
    if column not in profile.categories:
        return names
    kept = profile.categories[column].products
    renamed: Counter[str] = Counter()
    for name, n in names.items():
        renamed[name if name in kept else OTHER] += n
    return renamed


def _spread(histogram: Histogram, count: int, logarithmic: bool = False) -> list[float]:
    """`count` values that are spread as the histogram says."""
    return [quantile(histogram, (place + 0.5) / count, logarithmic) for place in range(count) if histogram]
