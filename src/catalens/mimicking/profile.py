"""The profile of a catalogue: all that is needed to draw one like it, and nothing of any single product.

    {"format": 1, "k": 10, "products": 1981, "categories": {...}, "pictures": {...}, "strata": [
      {"category": "BAGS", "products": 297,
       "words": {"title": {"Tote": 214, "Bag": 214, "Red": 31, "rare word": 12, ...}},
       "numbers": {"full_price": [[88.4, 14, false], [129.0, 21, true], ...]}, ...}]}

It is meant to be read, and to be shared instead of the data: every figure in it speaks of at least `k` products,
`docs/mimic.md` says how. A stratum is a category with at least `k` products; the products of all rarer categories are
one stratum together.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from catalens.catalog.scan import ImageStats
from catalens.catalog.storage import Roles
from catalens.config import Frozen
from catalens.errors import CatalogError

K = 10
"""Fewest products that a word, a category or a figure of a profile may stand for."""
RARE = "rare word"
"""Stands for every word that fewer than `k` products use; a space is in no word, so no word is spelt so."""
OTHER = "other word"
"""Stands for every word that fewer than `k` products of a stratum use, and others elsewhere."""
EDGE = ""
"""Before the first word of a text and after the last."""
ALPHA = "+alpha"
"""After the format of a picture with transparent parts."""


class Group(NamedTuple):
    """At least `k` products with neighbouring values."""

    value: float
    """What they have in common, or their mean without the smallest and the largest, in three digits."""
    products: int
    shared: bool
    """Whether all of them have exactly this value."""


Histogram = tuple[Group, ...]
"""Groups in rising order."""


class Habit(NamedTuple):
    """A way to round: multiples of `step` plus `offset`; 19.99 is (10, -0.01), and (0, 0) is no rounding."""

    step: float
    offset: float
    products: int


class PictureSize(NamedTuple):
    """A size in pixels that at least `k` products share."""

    width: int
    height: int
    products: int


def format_of(seen: ImageStats) -> str:
    """The format of a picture, `PNG+alpha` being another than `PNG`."""
    return (seen.format or "PNG") + (ALPHA if seen.transparent else "")


class Category(Frozen):
    """A category column."""

    products: dict[str, int]
    """Products by name, for names of at least `k` products."""
    rare_products: int
    """Products of all other names together; 0 where they are fewer than `k`."""
    rare_names: tuple[str, ...]
    """Invented names that stand for the others, as many as there are."""
    missing: float
    """Share of products without a value."""


class Wording(Frozen):
    """How a text column puts its words together."""

    elsewhere: dict[str, int]
    """Products that use a word in strata that do not name it."""
    pairs: dict[str, dict[str, int]]
    """Products in whose text the second word follows the first."""
    missing: float
    """Share of products without a text."""
    tilt: dict[str, float] = {}
    """Factors on the words' chances, so that they come as often as they do although each text has an invented one."""


class Rounding(Frozen):
    """A number column, beside its histograms."""

    habits: dict[str, tuple[Habit, ...]]
    """How numbers are rounded, by power of ten; `any` where too few products have that power."""
    logarithmic: bool
    """All numbers are above zero, and their ratios count rather than their differences."""
    missing: float
    """Share of products without a number."""


class PictureFormat(Frozen):
    """The pictures of one file format, `PNG+alpha` being another than `PNG`."""

    products: int
    sizes: tuple[PictureSize, ...]
    """Frequent sizes; the rest follows `longest` and `ratio`."""
    longest: Histogram
    """Pixels of the longer side."""
    ratio: Histogram
    """Width over height."""
    bytes_a_pixel: Histogram
    """File size over width x height."""
    brightness: Histogram
    """Of the border, as seen on white, 0 to 255."""


class Stratum(Frozen):
    """The products of one category, or of all rare categories together."""

    category: str | None
    """Name of the category; None for the rare ones, and where the catalogue has no category column."""
    products: int
    lengths: dict[str, Histogram] = {}
    """Words in a text, by column."""
    words: dict[str, dict[str, int]] = {}
    """Products that use a word, by text column; `other word` adds up those of all such words."""
    invented: dict[str, tuple[str, ...]] = {}
    """Made-up words in place of the rare ones, by text column; none of them is a word of the source."""
    numbers: dict[str, Histogram] = {}
    """By number column."""
    categories: dict[str, dict[str, int]] = {}
    """Products by name in the other category columns."""


class Needs(NamedTuple):
    """What a row costs a model: means over a sample of rows."""

    tokens: float
    crops: float


class Profile(Frozen):
    """`profile.json`."""

    format: Literal[1] = 1
    k: int = Field(ge=2)
    roles: Roles
    integer_fields: tuple[str, ...]
    rows: int
    products: int
    fractions: dict[str, float]
    """Shares of the products by split."""
    photographs: Histogram
    """Rows of a product."""
    id_prefix: str
    """How drawn ids begin, and no id of the source does."""
    categories: dict[str, Category]
    texts: dict[str, Wording]
    numbers: dict[str, Rounding]
    pictures: dict[str, PictureFormat]
    bytes_a_row: float
    """Mean size of a picture file."""
    strata: tuple[Stratum, ...] = Field(min_length=1)
    needs: Needs | None = None
    """Tokens and crops of a row under the model that was asked, if any."""

    def words(self, column: str) -> Counter[str]:
        """Products that use a word of a text column, `rare word` among them, as far as the profile tells."""
        named = [Counter(stratum.words.get(column, {})) for stratum in self.strata]
        total = sum(named, Counter(self.texts[column].elsewhere))
        del total[OTHER]
        return total


def load_profile(path: Path | str) -> Profile:
    """Read a `profile.json`; CatalogError where it is none."""
    try:
        return Profile.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise CatalogError(
            f"{path}: cannot be read ({error.strerror}): give a catalogue or a profile.json"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CatalogError(
            f"{path}: not a profile of format 1 ({place}: {first['msg']}): give a catalogue, or its profile.json"
        ) from error


def save_profile(profile: Profile, path: Path) -> None:
    """Write `profile.json`."""
    path.write_text(_laid_out(profile.model_dump(mode="json")) + "\n", encoding="utf-8")


def _laid_out(value: Any, indent: str = "\n") -> str:
    """JSON with a line for every member, but for lists of plain values, which take one line."""
    if isinstance(value, dict) and value:
        members = [
            f"{json.dumps(name, ensure_ascii=False)}: {_laid_out(of, indent + ' ')}" for name, of in value.items()
        ]
        return "{" + indent + " " + f",{indent} ".join(members) + indent + "}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[" + indent + " " + f",{indent} ".join(_laid_out(item, indent + " ") for item in value) + indent + "]"
    return json.dumps(value, ensure_ascii=False)
