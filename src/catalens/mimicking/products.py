"""Products like those of a profile: texts, categories, numbers and looks, each from the seed and its place.

    MimickedProduct(id="like-00000017", values={"title": "Morvel Red Tote Bag", "category3_code": "BAGS",
                    "full_price": 1290.0}, look=Look("Tote Bag", "Red", "Striped", ""), photographs=2)

A number is what can be seen of the product, times noise, put in the place that this has among the numbers of its
category: so pictures tell about numbers, and the numbers are spread as they are in the catalogue.
"""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr

from catalens.mimicking.looks import Look, Looks, effect
from catalens.mimicking.profile import RARE, Profile
from catalens.mimicking.summaries import pick, place_of, quantile, round_by
from catalens.mimicking.texts import Chain

GOLDEN, PLASTIC = (math.sqrt(5) - 1) / 2, 1 / 1.324717957244746
"""Steps that spread numbers evenly over 0 to 1: so that a small catalogue has its share of every category, too."""
REHEARSAL = 400
"""Products of a stratum that are drawn first, to know what effects to expect."""
LARGEST = 2**53
"""Whole numbers are at most this, as far as a float tells them apart."""
NOISE = 0.35
"""Standard deviation of the noise on numbers, in those of what can be seen."""

Value = str | float | int | None


@dataclass(frozen=True)
class MimickedProduct:
    """A product before it is photographed."""

    id: str
    values: Mapping[str, Value]
    """By column; None where it is missing."""
    expected: Mapping[str, float]
    """By number column: what the picture tells, before the noise."""
    look: Look
    photographs: int


class Planner:
    """Plans the products of a seed, each by its number alone."""

    def __init__(self, profile: Profile, seed: int) -> None:
        self.profile, self.seed = profile, seed
        self._stratum = lru_cache(maxsize=None)(lambda place: _Stratum(profile, place))
        self._offset = random.Random(f"catalens/like/{seed}").random()

    def product(self, number: int) -> MimickedProduct:
        """Product `number` of the catalogue."""
        dice = random.Random(f"catalens/like/{self.seed}/product/{number}")
        at = (self._offset + number * GOLDEN) % 1
        stratum = self._stratum(place_of(at, [stratum.products for stratum in self.profile.strata]))
        look, values = stratum.draw(dice)
        numbers, expected = stratum.numbers(look, dice)
        values |= numbers
        return MimickedProduct(
            id=f"{self.profile.id_prefix}{number:08d}",
            values={name: values[name] for name in self.profile.roles.fields},
            expected=expected,
            look=look,
            photographs=self.photographs(number),
        )

    def evenly(self, number: int, shot: int) -> float:
        """A share of 1 for a photograph, spread evenly over all of them and independent of the product's."""
        return (self._offset + number * PLASTIC + shot * PLASTIC**2) % 1

    def photographs(self, number: int) -> int:
        """Rows of product `number`."""
        at = random.Random(f"catalens/like/{self.seed}/photographs/{number}").random()
        return max(1, round(pick(self.profile.photographs, at).value))

    def rows(self, rows: int) -> Iterator[tuple[int, int]]:
        """(product number, photograph number) of each row; the last product may have fewer than it planned."""
        number = planned = 0
        while planned < rows:
            photographs = min(self.photographs(number), rows - planned)
            yield from ((number, photograph) for photograph in range(photographs))
            planned += photographs
            number += 1


class _Stratum:
    """Draws products of one stratum."""

    def __init__(self, profile: Profile, place: int) -> None:
        self.profile, self.its = profile, profile.strata[place]
        self._looks = Looks(profile, place)
        self._chains = {column: Chain(profile, column, place) for column in self.its.lengths}
        dice = random.Random("catalens/like/rehearsal")
        effects = np.array([effect(self.draw(dice)[0]) for _ in range(REHEARSAL)])
        self._effects, self._noise = effects, NOISE * float(effects.std()) or 1.0

    def draw(self, dice: random.Random) -> tuple[Look, dict[str, Value]]:
        """The look of a product, its texts and categories."""
        texts = {column: self._text(column, dice) for column in self.profile.roles.columns("text")}
        look = self._looks.look([word for words in texts.values() for word in words])
        values: dict[str, Value] = {column: " ".join(words) or None for column, words in texts.items()}
        return look, values | {column: self._category(column, dice) for column in self.profile.categories}

    def numbers(self, look: Look, dice: random.Random) -> tuple[dict[str, Value], dict[str, float]]:
        """The numbers of a product with this look, and what they would be without noise."""
        values: dict[str, Value] = {}
        expected: dict[str, float] = {}
        for column, rounding in self.profile.numbers.items():
            missing, noise, habit = dice.random(), dice.gauss(0, self._noise), dice.random()
            histogram = self.its.numbers.get(column)
            values[column] = None
            if histogram is None or missing < rounding.missing:
                continue
            at = self._place(effect(look) + noise)
            value = quantile(histogram, at, rounding.logarithmic)
            if not pick(histogram, at).shared:
                value = round_by(rounding.habits, value, habit)
            whole = column in self.profile.integer_fields
            values[column] = min(max(round(value), -LARGEST), LARGEST) if whole else float(value)
            expected[column] = quantile(histogram, self._place(effect(look)), rounding.logarithmic)
        return values, expected

    def _place(self, score: float) -> float:
        """Share of the stratum's products below a score: 0 to 1, evenly spread over all that are drawn."""
        return min(float(ndtr((score - self._effects) / self._noise).mean()), 1 - 1e-9)

    def _text(self, column: str, dice: random.Random) -> list[str]:
        if column not in self._chains or dice.random() < self.profile.texts[column].missing:
            return []
        words = self._chains[column].draw(dice)
        taken = self._looks.taken([word for word in words if word != RARE])
        for place, word in enumerate(words):
            if word == RARE:
                invented = self.its.invented[column]
                open_ones = [each for each in invented if self._looks.traits[each][0] not in taken] or invented
                words[place] = open_ones[place_of(dice.random(), [1 / (n + 1) for n in range(len(open_ones))])]
                taken.add(self._looks.traits[words[place]][0])
        return words

    def _category(self, column: str, dice: random.Random) -> str | None:
        kinds, leads = self.profile.categories[column], column == self.profile.roles.leading
        if leads and self.its.category is not None:
            return self.its.category
        own = self.its.categories.get(column, {})
        if not leads and dice.random() * self.its.products < sum(own.values()):
            return list(own)[place_of(dice.random(), list(own.values()))]
        named = {} if leads else kinds.products  # else from the whole column; a rare name stands for any rare one
        names = [*named, *kinds.rare_names]
        if dice.random() < kinds.missing or not names:
            return None
        rare = [kinds.rare_products / len(kinds.rare_names)] * len(kinds.rare_names)
        return names[place_of(dice.random(), [*named.values(), *rare])]
