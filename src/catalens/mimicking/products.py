"""Products like those of a profile: texts, categories, numbers and looks, each from the seed and its number.

    MimickedProduct(id="like-00000017", values={"title": "Morvel Red Tote Bag", "category3_code": "BAGS",
                    "full_price": 1290.0}, look=Look("Tote Bag", "Red", "Striped", ""))

A word with a known meaning shows in the look as what it means. Each invented word of a category has a trait of its
own (above, Morvel is striped), and a frequent word without a meaning has one by its hash, where none of the others
speaks. What no word says is plain, without trim and in the category's own colour.

A number is what can be seen of the product, times noise, put in the place that this has among the numbers of its
category: so pictures tell about numbers, and the numbers are spread as they are in the catalogue.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from catalens.mimicking.profile import RARE, Profile, index_of, pick, quantile, round_by
from catalens.mimicking.text import Writer, kind_in, meaning_of
from catalens.sampling.assortment import PALETTE, PATTERNS, PLAIN_ONLY, TRIMS, Look
from catalens.sampling.picture import SHAPES

GOLDEN = (math.sqrt(5) - 1) / 2  # a step that spreads numbers evenly: so that few products are of every category, too
REHEARSAL = 400  # products of a stratum that are drawn first, to know what effects to expect
LARGEST = 2**53  # whole numbers are at most this, as far as a float tells them apart
NOISE = 0.35  # standard deviation of the noise on numbers, in those of what can be seen
QUIET = ("White", "Grey", "Beige", "Brown", "Black", "Navy")  # of things whose colour nobody names
_AXES = {"colour": list(PALETTE), "pattern": [p for p in PATTERNS if p != "Plain"], "trim": [t for t in TRIMS if t]}
TRAITS = [
    trait
    for turn in zip_longest(*([(axis, value) for value in values] for axis, values in _AXES.items()))
    for trait in turn
    if trait
]
"""(axis, value) of all that can be seen of a thing beside its kind, the axes by turns."""

Value = str | float | int | None


class MimickedProduct(NamedTuple):
    """A product before it is photographed."""

    id: str
    values: Mapping[str, Value]  # by column; None where it is missing
    expected: Mapping[str, float]  # by number column: what the picture tells, before the noise
    look: Look


class Planner:
    """Plans the products of a seed, each by its number alone."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.profile, self.seed = profile, seed
        self._stratum = lru_cache(maxsize=None)(lambda index: StratumPlanner(profile, index))
        self._offset = random.Random(f"catalens/like/{seed}").random()

    def product(self, number: int) -> MimickedProduct:
        """Plan product `number` of the catalogue."""
        rng = random.Random(f"catalens/like/{self.seed}/product/{number}")
        at = (self._offset + number * GOLDEN) % 1
        stratum = self._stratum(index_of(at, [stratum.products for stratum in self.profile.strata]))
        look, values = stratum.draw(rng)
        numbers, expected = stratum.numbers(look, rng)
        values = {name: (values | numbers)[name] for name in self.profile.roles.fields}
        return MimickedProduct(f"{self.profile.id_prefix}{number:08d}", values, expected, look)

    def photographs(self, number: int) -> int:
        """Plan the rows of product `number`."""
        at = random.Random(f"catalens/like/{self.seed}/photographs/{number}").random()
        return max(1, round(pick(self.profile.photographs, at).value))


class StratumPlanner:
    """Plans products of one stratum."""

    def __init__(self, profile: Profile, index: int) -> None:
        self.profile, self.its = profile, profile.strata[index]
        start = _stable(self.its.category or "")
        self.kind, self.colour = _kinds(profile)[index], QUIET[start % len(QUIET)]
        self.traits: dict[str, tuple[str, str]] = {}  # (axis, value) of each invented word
        for words in self.its.invented.values():
            self.traits |= {word: TRAITS[(start + turn) % len(TRAITS)] for turn, word in enumerate(words)}
        self._writers = {column: Writer(profile, column, index) for column in self.its.lengths}
        rng = random.Random("catalens/like/rehearsal")
        self._effects = np.array([effect(self.draw(rng)[0]) for _ in range(REHEARSAL)])
        self._noise = NOISE * float(self._effects.std()) or 1.0

    def draw(self, rng: random.Random) -> tuple[Look, dict[str, Value]]:
        """Draw the look of a product, its texts and categories."""
        texts = {column: self._text(column, rng) for column in self.profile.roles.columns("text")}
        look = self.look([word for words in texts.values() for word in words])
        values: dict[str, Value] = {column: " ".join(words) or None for column, words in texts.items()}
        return look, values | {column: self._category(column, rng) for column in self.profile.categories}

    def numbers(self, look: Look, rng: random.Random) -> tuple[dict[str, Value], dict[str, float]]:
        """Draw the numbers of a product with this look, and what they would be without noise."""
        values: dict[str, Value] = {}
        expected: dict[str, float] = {}
        for column, rounding in self.profile.numbers.items():
            missing, noise, place = rng.random(), rng.gauss(0, self._noise), rng.random()
            histogram = self.its.numbers.get(column)
            values[column] = None
            if histogram is None or missing < rounding.missing:
                continue
            at = self._rank(effect(look) + noise)
            value = quantile(histogram, at, rounding.logarithmic)
            if not pick(histogram, at).shared:
                value = round_by(rounding.places, value, place)
            whole = column in self.profile.integer_fields
            values[column] = min(max(round(value), -LARGEST), LARGEST) if whole else float(value)
            expected[column] = quantile(histogram, self._rank(effect(look)), rounding.logarithmic)
        return values, expected

    def look(self, words: Sequence[str]) -> Look:
        """Return the look of a product with these words, of all its texts."""
        spoken = [meaning for word in words if (meaning := meaning_of(word))]
        materials = [("colour", value) for axis, value in spoken if axis == "material"]
        own = [self.traits[word] for word in words if word in self.traits]
        mute = [word for word in words if word not in self.traits and not meaning_of(word)]
        others = [TRAITS[_stable(word) % len(TRAITS)] for word in mute]
        seen = dict(reversed([*spoken, *materials, *own, *others]))  # the first of an axis stays
        kind = kind_in(" ".join(words)) or self.kind
        pattern = "Plain" if kind in PLAIN_ONLY else seen.get("pattern", "Plain")
        return Look(kind, seen.get("colour", self.colour), pattern, seen.get("trim", ""))

    def _rank(self, score: float) -> float:
        """Share of the stratum's products below a score: 0 to 1, evenly spread over all that are drawn."""
        return min(float(ndtr((score - self._effects) / self._noise).mean()), 1 - 1e-9)

    def _text(self, column: str, rng: random.Random) -> list[str]:
        if column not in self._writers or rng.random() < self.profile.texts[column].missing:
            return []
        words = self._writers[column].draw(rng)
        # axes that words with a meaning settle, or that do not show on the thing that they name
        named = [word for word in words if word != RARE]
        taken = {meaning[0].replace("material", "colour") for word in named if (meaning := meaning_of(word))}
        taken |= {"pattern"} if (kind_in(" ".join(named)) or self.kind) in PLAIN_ONLY else set()
        for index, word in enumerate(words):
            if word == RARE:
                invented = self.its.invented[column]
                free = [each for each in invented if self.traits[each][0] not in taken] or invented
                words[index] = free[index_of(rng.random(), [1 / (n + 1) for n in range(len(free))])]
                taken.add(self.traits[words[index]][0])
        return words

    def _category(self, column: str, rng: random.Random) -> str | None:
        kinds, leads = self.profile.categories[column], column == self.profile.roles.leading
        if leads and self.its.category is not None:
            return self.its.category
        named = {} if leads else kinds.products  # a rare name stands for any rare one
        names = [*named, *kinds.rare_names]
        missing = kinds.missing * self.profile.products / self.its.products if leads else kinds.missing
        if rng.random() < missing or not names:
            return None
        rare = [kinds.rare_products / len(kinds.rare_names)] * len(kinds.rare_names)
        return names[index_of(rng.random(), [*named.values(), *rare])]


def effect(look: Look) -> float:
    """Return what a look adds to the logarithm of a price, or pushes any other number up by."""
    colour, kind = list(PALETTE).index(look.colour), list(SHAPES).index(look.kind)
    by_kind, by_colour = kind * 7 % len(SHAPES) / len(SHAPES), colour * 5 % len(PALETTE) / len(PALETTE)
    return 1.6 * by_kind + 0.8 * by_colour + 1.5 * (PATTERNS[look.pattern][0] * TRIMS[look.trim][0] - 1)


def _kinds(profile: Profile) -> list[str]:
    """The kind of each stratum's things: what its name says, else by its hash one that no other stratum has."""
    kinds = [kind_in(stratum.category or "") for stratum in profile.strata]
    free = [kind for kind in SHAPES if kind not in kinds]
    for index, stratum in enumerate(profile.strata):
        if kinds[index] is None:
            choice = free or list(SHAPES)
            kinds[index] = choice[_stable(stratum.category or "") % len(choice)]
            free = [kind for kind in free if kind != kinds[index]]
    return [kind or "" for kind in kinds]


def _stable(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
