"""The profile of a catalogue: all that is needed to draw one like it, and nothing of any single product.

    {"format": 2, "k": 10, "products": 1981, "categories": {...}, "pictures": {...}, "strata": [
      {"category": "BAGS", "products": 297,
       "words": {"title": {"Tote": 214, "Bag": 214, "Red": 31, "rare word": 12, ...}},
       "numbers": {"full_price": [[88.4, 14, false], [129.0, 21, true], ...]}, ...}]}

It is meant to be read, and to be shared instead of the data: every figure in it speaks of at least `k` products,
`docs/mimic.md` says how. A stratum is a category with at least `k` products; the products of all rarer categories are
one stratum together.

A value that many products share is kept. All others are grouped with their neighbours, and of a group only a mean is
kept that leaves out its smallest and its largest value: so not even the dearest product of a shop moves a figure.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError
from scipy.interpolate import BSpline, make_interp_spline

from catalens.catalog.storage import Roles
from catalens.config import Frozen
from catalens.errors import CatalogError

K = 10  # fewest products that a word, a category or a figure of a profile may stand for
RARE = "rare word"  # stands for those that fewer than `k` products use; a space is in no word, so none is spelt so
OTHER = "other word"  # stands for those that fewer than `k` products of a stratum use, and others elsewhere
ALPHA = "+alpha"  # after the format of a picture with transparent parts
GROUPS = 40  # most groups of a histogram, those of shared values not counted
PLACES = 6  # digits before and after the point, at most, by which numbers are rounded


class Group(NamedTuple):
    """At least `k` products with neighbouring values."""

    value: float  # what all have, or their mean without the smallest and the largest, in three digits
    products: int
    shared: bool  # whether all of them have exactly this value


Histogram = tuple[Group, ...]  # in rising order


class PictureSize(NamedTuple):
    """A size in pixels that at least `k` products share."""

    width: int
    height: int
    products: int


class Needs(NamedTuple):
    """Costs of a row for the tiny model: means over a sample of rows."""

    tokens: float
    crops: float


class Category(Frozen):
    """A category column."""

    products: dict[str, int]  # by name, for names of at least `k` products
    rare_products: int  # of all other names together; 0 where they are fewer than `k`
    rare_names: tuple[str, ...]  # invented names that stand for the others, as many as there are
    missing: float  # share of products without a value


class Wording(Frozen):
    """Words of a text column, whatever the stratum."""

    elsewhere: dict[str, int]  # products that use a word in strata that do not name it
    order: dict[str, float]  # mean place of a word in a text, from 0 to 1
    missing: float  # share of products without a text


class Rounding(Frozen):
    """A number column, beside its histograms."""

    places: dict[int, int]  # products by the power of ten of the last digit: -2 of 19.99, 1 of 1290
    logarithmic: bool  # all are above zero, and their ratios count rather than their differences
    missing: float  # share of products without a number


class PictureFormat(Frozen):
    """The pictures of one file format, `PNG+alpha` being another than `PNG`."""

    products: int
    sizes: tuple[PictureSize, ...]  # frequent ones; the rest follows `longest` and `ratio`
    longest: Histogram  # pixels of the longer side
    ratio: Histogram  # width over height
    bytes_a_pixel: Histogram  # file size over width x height
    brightness: Histogram  # of the border, as seen on white, 0 to 255


class Stratum(Frozen):
    """The products of one category, or of all rare categories together."""

    category: str | None  # None for the rare ones, and where the catalogue has no category column
    products: int
    lengths: dict[str, Histogram] = {}  # words in a text, by column
    words: dict[str, dict[str, int]] = {}  # products that use a word, by column; `other word` adds up all such
    invented: dict[str, tuple[str, ...]] = {}  # by column, in place of the rare words; none is a word of the source
    numbers: dict[str, Histogram] = {}  # by column


class Profile(Frozen):
    """`profile.json`."""

    format: Literal[2] = 2
    k: int = Field(ge=2)
    roles: Roles
    integer_fields: tuple[str, ...]
    rows: int
    products: int
    fractions: dict[str, float]  # shares of the products by split
    photographs: Histogram  # rows of a product
    id_prefix: str  # how drawn ids begin, and no id of the source does
    categories: dict[str, Category]
    texts: dict[str, Wording]
    numbers: dict[str, Rounding]
    pictures: dict[str, PictureFormat]
    bytes_a_row: float  # mean size of a picture file
    strata: tuple[Stratum, ...] = Field(min_length=1)
    needs: Needs | None = None  # None where no row could be measured

    def words(self, column: str) -> Counter[str]:
        """Count the products that use each word of a text column, `rare word` too, as far as the profile tells."""
        named = [Counter(stratum.words.get(column, {})) for stratum in self.strata]
        total = sum(named, Counter(self.texts[column].elsewhere))
        del total[OTHER]
        return total


def load_profile(path: Path | str) -> Profile:
    """Read a `profile.json`; CatalogError where it is none."""
    try:
        return Profile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        problem = f"cannot be read ({error.strerror}): give a catalogue or a profile.json"
        raise CatalogError(f"{path}: {problem}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"not a profile of format 2 ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise CatalogError(f"{path}: {problem}: give a catalogue, or its profile.json") from error


def save_profile(profile: Profile, path: Path) -> None:
    """Write `profile.json`."""
    path.write_text(_layout(profile.model_dump(mode="json")) + "\n", encoding="utf-8")


def _layout(value: Any, indent: str = "\n") -> str:
    """JSON with a line for every member, but for lists of plain values, which take one line."""
    if isinstance(value, dict) and value:
        members = [
            f"{json.dumps(name, ensure_ascii=False)}: {_layout(of, indent + ' ')}" for name, of in value.items()
        ]
        return "{" + indent + " " + f",{indent} ".join(members) + indent + "}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[" + indent + " " + f",{indent} ".join(_layout(item, indent + " ") for item in value) + indent + "]"
    return json.dumps(value, ensure_ascii=False)


def summarise(values: Sequence[float], k: int, logarithmic: bool = False) -> Histogram:
    """Group values [products]; empty where they are fewer than `k` + 2.

    `logarithmic` takes geometric means, of values above 0.
    """
    unique, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    least = k + 2  # so that a mean that leaves out two is one of k
    full = max(least, math.ceil(counts.sum() / GROUPS))
    groups: list[list[int]] = []
    room = 0  # products that the last group still takes
    for index, count in enumerate(counts.tolist()):
        if room <= 0 or (count >= full and counts[groups[-1]].sum() >= least):
            groups.append([])
            room = full
        groups[-1].append(index)
        room -= count
    if len(groups) > 1 and counts[groups[-1]].sum() < least:
        last = groups.pop()
        groups[-1] += last
    if not groups or counts[groups[0]].sum() < least:
        return ()
    told: list[Group] = []
    for group in groups:
        products, value = int(counts[group].sum()), float(unique[group[0]])
        if len(group) > 1:
            every = np.repeat(np.log(unique[group]) if logarithmic else unique[group], counts[group])
            inner = every[1:-1].mean()
            value = float(f"{math.exp(inner) if logarithmic else inner:.3g}")
        told.append(Group(value, products, len(group) == 1))
    return tuple(told)


def quantile(histogram: Histogram, at: float, logarithmic: bool = False) -> float:
    """Return the value below which the share `at` of the products lies."""
    if (group := pick(histogram, at)).shared or len(histogram) == 1:
        return group.value
    value = float(_curve(histogram, logarithmic)(at))
    return math.exp(value) if logarithmic else value


@lru_cache(maxsize=4096)
def _curve(histogram: Histogram, logarithmic: bool) -> BSpline:
    """Quantile function of two or more groups, straight from mean to mean and on beyond the first and last."""
    shares: list[float] = []
    values: list[float] = []
    below, total = 0, sum(group.products for group in histogram)
    for group in histogram:
        for end in (0.001, 0.999) if group.shared else (0.5,):
            shares.append((below + end * group.products) / total)
            values.append(math.log(group.value) if logarithmic else group.value)
        below += group.products
    return make_interp_spline(shares, values, k=1)


def pick(histogram: Histogram, at: float) -> Group:
    """Return the group in which the share `at` of the products, below 1, falls."""
    return histogram[index_of(at, [group.products for group in histogram])]


def index_of(at: float, weights: Sequence[float]) -> int:
    """Return which of the weights, laid end to end, the share `at` of their sum falls on; `at` is below 1."""
    bounds = np.cumsum(weights)
    return min(int(np.searchsorted(bounds, at * bounds[-1], side="right")), len(bounds) - 1)


def last_place(value: float) -> int:
    """Power of ten of a number's last digit that is not 0: -2 of 19.99, 1 of 1290."""
    return max(-PLACES, min(PLACES, int(Decimal(repr(float(value))).normalize().as_tuple().exponent)))


def round_by(places: dict[int, int], value: float, at: float) -> float:
    """Round a drawn number as numbers of the catalogue are; the share `at` chooses the place."""
    if not places or not value:
        return float(f"{value:.6g}")
    place = [*places][index_of(at, [*places.values()])]
    return round(value, -min(place, math.floor(math.log10(abs(value))))) + 0.0
