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
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.stats import ks_2samp

from catalens.catalog.duplicates import fingerprint
from catalens.catalog.mimicking.appearance import look_at
from catalens.catalog.mimicking.profile import OTHER, RARE, Histogram, Needs, Profile
from catalens.catalog.mimicking.summaries import quantile
from catalens.catalog.pictures import open_picture
from catalens.catalog.storage import Roles
from catalens.catalog.values import is_missing
from catalens.errors import CatalensError, PictureError

DECODED, MEASURED, QUOTED = 1000, 100, 1000
"""Pictures that are decoded, rows whose tokens are counted, texts that are kept: of a catalogue, at most."""
BATCH = 16
FEWEST_IN_CATEGORY = 30
"""Products of a category from which its numbers are compared by themselves."""


class Meter(Protocol):
    """What rows cost a model; it lives above the catalogue, so it is handed in."""

    def needs(self, row: Mapping[str, Any]) -> Needs:
        """Tokens and crops of a row; raises CatalensError where it is of no use to a model."""
        ...

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take a training step on rows of which `needs` was told; its time is what counts."""
        ...


class Distance(NamedTuple):
    """How far apart two catalogues are in one respect."""

    name: str
    measure: str
    """`TV` or `KS`."""
    value: float
    chance: float | None = None
    """Of KS: what two samples of one and the same source would have, on average."""


@dataclass
class Survey:
    """Figures of one catalogue; `add` its rows, `total` of them in all."""

    roles: Roles
    total: int
    meter: Meter | None = None
    rows: int = 0
    products: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    names: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By category column, and `words in title`, `format`."""
    numbers: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By number column, and `title, words`, `width`, `brightness` and the like."""
    by_category: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    fingerprints: list[bytes] = field(default_factory=list)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    """Rows for a training step."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row in."""
        self.rows += 1
        id = str(row[self.roles.id])
        self.products[id] += 1
        if self.products[id] == 1:
            self._fields(row)
        self._picture(row[self.roles.image])
        if self.meter and self.rows % max(1, self.total // MEASURED) == 0:
            self._cost(row)

    @property
    def needs(self) -> Needs | None:
        """Mean tokens and crops, where they were measured."""
        if not self.numbers["tokens a row"]:
            return None
        return Needs(*(round(float(np.mean(self.numbers[name])), 2) for name in ("tokens a row", "crops a row")))

    def _fields(self, row: Mapping[str, Any]) -> None:
        leading = next((str(row[name]) for name, kind in self.roles.fields.items() if kind == "category"), "")
        for column, kind in self.roles.fields.items():
            if is_missing(row[column]):
                self.missing[column] += 1
            elif kind == "category":
                self.names[column][str(row[column])] += 1
            elif kind == "number":
                self.numbers[column].append(float(row[column]))
                self.by_category[column, leading].append(float(row[column]))
            else:
                self._text(column, str(row[column]))

    def _text(self, column: str, text: str) -> None:
        self.names[f"words of {column}"].update(set(text.split()))
        self.numbers[f"{column}, words"].append(len(text.split()))
        self.numbers[f"{column}, characters"].append(len(text))
        if len(self.texts[column]) < QUOTED:
            self.texts[column].append(text)

    def _picture(self, data: bytes) -> None:
        decode = self.rows % max(1, self.total // DECODED) == 0
        try:
            seen = look_at(data, decode)
            if decode:
                self.fingerprints.append(fingerprint(open_picture(data)))
        except PictureError:
            self.missing[self.roles.image] += 1
            return
        self.names["format"][seen.format] += 1
        self.numbers["bytes a row"].append(seen.size)
        self.numbers["longer side"].append(max(seen.width, seen.height))
        self.numbers["width / height"].append(round(seen.width / seen.height, 3))
        if seen.brightness is not None:
            self.numbers["border brightness"].append(seen.brightness)

    def _cost(self, row: Mapping[str, Any]) -> None:
        assert self.meter
        try:
            needs = self.meter.needs(row)
        except CatalensError:
            return  # as in training, which names it
        self.numbers["tokens a row"].append(needs.tokens)
        self.numbers["crops a row"].append(needs.crops)
        self.samples += [row] if len(self.samples) < BATCH else []


def survey_profile(profile: Profile) -> Survey:
    """The survey that a catalogue of this profile would have; nothing but the profile is in it."""
    survey = Survey(profile.roles, profile.rows, rows=profile.rows)
    survey.products.update(
        {str(n): round(count) for n, count in enumerate(_spread(profile.photographs, profile.products))}
    )
    for column, its in profile.categories.items():
        survey.names[column].update(its.products)
        if its.rare_names:
            survey.names[column].update(
                dict.fromkeys(its.rare_names, max(1, its.rare_products // len(its.rare_names)))
            )
        survey.missing[column] = round(its.missing * profile.products)
    for column, wording in profile.texts.items():
        survey.names[f"words of {column}"].update(profile.words(column))
        survey.missing[column] = round(wording.missing * profile.products)
    for stratum in profile.strata:
        for column, histogram in stratum.lengths.items():
            survey.numbers[f"{column}, words"] += map(round, _spread(histogram, stratum.products))
        for column, histogram in stratum.numbers.items():
            values = _spread(histogram, stratum.products, profile.numbers[column].logarithmic)
            survey.numbers[column] += values
            survey.by_category[column, stratum.category or ""] += values
    for format, its in profile.pictures.items():
        survey.names["format"][format] = its.products
        sides = [max(s.width, s.height) for s in its.sizes for _ in range(s.products)]
        ratios = [round(s.width / s.height, 3) for s in its.sizes for _ in range(s.products)]
        rest = its.products - len(sides)
        survey.numbers["longer side"] += sides + _spread(its.longest, rest, logarithmic=True)
        survey.numbers["width / height"] += ratios + _spread(its.ratio, rest, logarithmic=True)
        survey.numbers["border brightness"] += _spread(its.brightness, its.products)
    return survey


def distances(original: Survey, drawn: Survey, profile: Profile) -> list[Distance]:
    """All distances between a catalogue (or its profile) and the one that was drawn like it, the columns first."""
    found: list[Distance] = []
    fields = original.roles.fields
    for column in [*(c for c, kind in fields.items() if kind == "category"), "format"]:
        rare = _renamed(original.names[column], profile, column), _renamed(drawn.names[column], profile, column)
        found.append(Distance(column, "TV", total_variation(*rare)))
    for column in profile.texts:
        known = profile.words(column)
        del known[RARE]
        sides = [
            Counter({word: n for word, n in survey.names[f"words of {column}"].items() if word in known})
            for survey in (original, drawn)
        ]
        if all(sides):
            found.append(Distance(f"{column}, frequent words", "TV", total_variation(*sides)))
    costs = [f"{name} a row" for name in Needs._fields]  # of few rows, and compared by their means
    named = [n for n in original.numbers if n not in costs and drawn.numbers.get(n) and original.numbers[n]]
    found += [_numbers_apart(name, [(original.numbers[name], drawn.numbers[name])]) for name in named]
    for column in profile.numbers:
        pairs = [
            (original.by_category[column, stratum.category or ""], drawn.by_category[column, stratum.category or ""])
            for stratum in profile.strata
            if stratum.category is not None
        ]
        if pairs := [pair for pair in pairs if min(map(len, pair)) >= FEWEST_IN_CATEGORY]:
            found.append(_numbers_apart(f"{column} by {profile.leading}, mean", pairs))
    return [*found, _numbers_apart("rows a product", [[list(s.products.values()) for s in (original, drawn)]])]


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
    if not histogram:
        return []
    if all(group.shared for group in histogram):
        total = sum(group.products for group in histogram)
        ends = np.cumsum([group.products for group in histogram]) * count / total
        return [
            g.value for g, n in zip(histogram, np.diff(ends.round(), prepend=0), strict=True) for _ in range(int(n))
        ]
    return [quantile(histogram, (place + 0.5) / count, logarithmic) for place in range(count)]
