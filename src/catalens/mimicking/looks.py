"""What a product looks like, by its words, so that a picture can be read.

    "Morvel Red Tote Bag", BAGS  ->  Look(kind="Tote Bag", colour="Red", pattern="Striped", trim="")

A word with a known meaning shows as what it means. Each invented word of a category has a trait of its own (above,
Morvel is striped), and a frequent word without a meaning has one by its hash, where none of the others speaks. What
no word says is plain, without trim and in the category's own colour.
"""

import hashlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from catalens.mimicking.profile import Profile
from catalens.mimicking.vocabulary import kind_in, sees
from catalens.sampling.assortment import PALETTE, PATTERNS, PLAIN_ONLY, TRIMS
from catalens.sampling.shapes import ALL_SHAPES

QUIET = ("White", "Grey", "Beige", "Brown", "Black", "Navy")
"""Colours of things whose colour nobody names."""
TRAITS = [
    trait
    for turn in zip_longest(
        [("colour", colour) for colour in PALETTE],
        [("pattern", pattern) for pattern in PATTERNS if pattern != "Plain"],
        [("trim", trim) for trim in TRIMS if trim],
    )
    for trait in turn
    if trait
]
"""(axis, value) of all that can be seen of a thing beside its kind, the axes by turns."""


class Look(NamedTuple):
    """What is seen of a product; the words of `drawing.assortment`."""

    kind: str
    colour: str
    pattern: str
    trim: str


class Looks:
    """Looks of the products of one stratum."""

    def __init__(self, profile: Profile, stratum: int) -> None:
        self.name = profile.strata[stratum].category or ""
        self.kind, self.colour = _kinds(profile)[stratum], QUIET[_stable(self.name) % len(QUIET)]
        self.traits: dict[str, tuple[str, str]] = {}
        """(axis, value) of each invented word."""
        for words in profile.strata[stratum].invented.values():
            start = _stable(self.name) % len(TRAITS)
            self.traits |= {word: TRAITS[(start + place) % len(TRAITS)] for place, word in enumerate(words)}

    def taken(self, words: Sequence[str]) -> set[str]:
        """Axes that words with a meaning settle, or that do not show on the thing that they name."""
        meanings = [meaning for word in words if (meaning := sees(word))]
        narrow = {"pattern"} if (kind_in(" ".join(words)) or self.kind) in PLAIN_ONLY else set()
        return {"colour" if axis == "material" else axis for axis, _ in meanings} | narrow

    def look(self, words: Sequence[str]) -> Look:
        """What a product with these words, of all its texts, looks like."""
        spoken = [meaning for word in words if (meaning := sees(word))]
        materials = [("colour", value) for axis, value in spoken if axis == "material"]
        own = [self.traits[word] for word in words if word in self.traits]
        others = [TRAITS[_stable(word) % len(TRAITS)] for word in words if word not in self.traits and not sees(word)]
        seen = dict(reversed([*spoken, *materials, *own, *others]))  # the first of an axis stays
        kind = kind_in(" ".join(words)) or self.kind
        pattern = "Plain" if kind in PLAIN_ONLY else seen.get("pattern", "Plain")
        return Look(kind, seen.get("colour", self.colour), pattern, seen.get("trim", ""))


def effect(look: Look) -> float:
    """What can be seen adds this to the logarithm of a price, or pushes any other number up by it."""
    colour, kind = (list(PALETTE).index(look.colour), list(ALL_SHAPES).index(look.kind))
    by_kind, by_colour = kind * 7 % len(ALL_SHAPES) / len(ALL_SHAPES), colour * 5 % len(PALETTE) / len(PALETTE)
    factor = PATTERNS[look.pattern][0] * TRIMS[look.trim][0]
    return 1.6 * by_kind + 0.8 * by_colour + 1.5 * (factor - 1)


def _kinds(profile: Profile) -> list[str]:
    """The kind of each stratum's things: what its name says, else by its hash one that no other stratum has."""
    named = [kind_in(stratum.category or "") for stratum in profile.strata]
    free = [kind for kind in ALL_SHAPES if kind not in named]
    kinds: list[str] = []
    for stratum, kind in zip(profile.strata, named, strict=True):
        if kind is None:
            choice: Sequence[str] = free or list(ALL_SHAPES)
            kind = choice[_stable(stratum.category or "") % len(choice)]
            free = [other for other in free if other != kind]
        kinds.append(kind)
    return kinds


def _stable(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
