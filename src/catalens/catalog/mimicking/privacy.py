"""What of a catalogue came through into one drawn like it: nothing may, and it is looked for.

    Findings(exact=0, texts=Nearness(median=.58, nearest=.83, among=.91), ...)

The drawn texts and pictures are also put beside their nearest in the catalogue, and that nearness beside the one that
the catalogue's own products have among each other.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

from catalens.catalog.duplicates import BITS
from catalens.catalog.mimicking.surveys import Survey
from catalens.catalog.storage import Roles
from catalens.catalog.values import is_missing
from catalens.errors import CatalogError

SHORT = 2
"""Texts of so many words may be those of the catalogue."""
COMPARED = 400
"""Drawn texts and pictures that are put beside those of the catalogue."""


Shares = NDArray[np.floating[Any]]


class Nearness(NamedTuple):
    """How alike things are to their nearest in the catalogue: 0 to 1."""

    what: str
    median: float
    nearest: float
    among: float
    """Median among the catalogue's own things."""


class Original:
    """What may not come through: `add` all rows of the catalogue, then `refuse` drawn ones that hold any of it."""

    def __init__(self, roles: Roles, k: int) -> None:
        self.roles, self.k = roles, k
        self.texts_columns = [name for name, kind in roles.fields.items() if kind == "text"]
        self.number_columns = [name for name, kind in roles.fields.items() if kind == "number"]
        self._ids: set[str] = set()
        self._texts: set[str] = set()
        self._pairs: set[tuple[str, float]] = set()
        self._pictures: set[bytes] = set()
        self._words: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Remember a row."""
        id = str(row[self.roles.id])
        texts = self._texts_of(row)
        if id not in self._ids:  # a word in several texts of a product is used by one product
            named = [
                str(row[name])
                for name, kind in self.roles.fields.items()
                if kind == "category" and not is_missing(row[name])
            ]
            self._words.update({word for text in [*texts, *named] for word in text.split()})
        self._ids.add(id)
        self._texts.update(text for text in texts if len(text.split()) > SHORT)
        self._pairs.update(self._pairs_of(row, texts))
        self._pictures.add(_hash(row[self.roles.image]))

    def refuse(self, row: Mapping[str, Any], number: int) -> None:
        """Raise CatalogError where a drawn row holds an id, text, text-number pair, rare word or picture of it."""
        texts = self._texts_of(row)
        ids = {str(row[self.roles.id]), *(word for text in texts for word in text.split())} & self._ids
        names = [
            str(row[name])
            for name, kind in self.roles.fields.items()
            if kind == "category" and not is_missing(row[name])
        ]
        words = {word for text in [*texts, *names] for word in text.split()}
        held = [
            ("an id", bool(ids)),
            ("a text", any(text in self._texts for text in texts)),
            ("a text with its number", any(pair in self._pairs for pair in self._pairs_of(row, texts))),
            (f"a word of fewer than {self.k} products", any(0 < self._words[word] < self.k for word in words)),
            ("a picture", _hash(row[self.roles.image]) in self._pictures),
        ]
        if found := [what for what, is_held in held if is_held]:
            raise CatalogError(
                f"drawn row {number} holds {' and '.join(found)} of the original: nothing was written; "
                "please report this, and draw with another --seed"
            )

    def _texts_of(self, row: Mapping[str, Any]) -> list[str]:
        return [" ".join(str(row[name]).split()) for name in self.texts_columns if not is_missing(row[name])]

    def _pairs_of(self, row: Mapping[str, Any], texts: list[str]) -> list[tuple[str, float]]:
        numbers = [float(row[name]) for name in self.number_columns if not is_missing(row[name])]
        return [(text, number) for text in texts for number in numbers]


def nearness(original: Survey, drawn: Survey) -> list[Nearness]:
    """How near drawn texts and pictures come to those of the catalogue, over samples of both."""
    found: list[Nearness] = []
    for column, texts in drawn.texts.items():
        if len(source := original.texts[column]) > 1:
            alike = process.cdist(texts[:COMPARED], source, scorer=fuzz.ratio, dtype=np.float32) / 100
            among = process.cdist(source[:COMPARED], source, scorer=fuzz.ratio, dtype=np.float32) / 100
            found.append(_nearness(f"{column}: share of characters in common", alike, among))
    if len(original.fingerprints) > 1 and drawn.fingerprints:
        pictures, source = (
            np.array([np.frombuffer(f, np.uint64) for f in s.fingerprints]) for s in (drawn, original)
        )
        alike, among = (_bits_alike(some[:COMPARED], source) for some in (pictures, source))
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


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
