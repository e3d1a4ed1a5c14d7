"""What of a catalogue came through into one drawn like it: nothing may, and it is looked for.

    Nearness("title: share of characters in common", median=.58, nearest=.83, among=.91)

The drawn texts and pictures are also put beside their nearest in the catalogue, and that nearness beside the one that
the catalogue's own products have among each other.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

from catalens.catalog.duplicates import BITS
from catalens.catalog.scan import NO_FINGERPRINT
from catalens.errors import CatalogError
from catalens.mimicking.surveys import Survey

SHORT = 2
"""Texts of so many words may be those of the catalogue."""
QUOTED, COMPARED = 1000, 400
"""Texts and pictures of the catalogue, and drawn ones that are put beside those, at most."""

Shares = NDArray[np.floating[Any]]


class Nearness(NamedTuple):
    """How alike things are to their nearest in the catalogue: 0 to 1."""

    what: str
    median: float
    nearest: float
    among: float
    """Median among the catalogue's own things."""


def refuse_leaks(original: Survey, drawn: Survey, k: int) -> None:
    """Raise CatalogError where a drawn row holds an id, text, text-number pair, rare word or picture of the other."""
    ids, pictures = set(original.ids), {seen.digest for seen in original.pictures}
    uses: Counter[str] = Counter()  # a word in several texts of a product is used by one product
    for row in original.firsts.values():
        uses.update(_words(original, row))
    rows = range(len(original))
    texts = {text for row in rows for text in _texts(original, row) if len(text.split()) > SHORT}
    pairs = {pair for row in rows for pair in _pairs(original, row)}
    for row in range(len(drawn)):
        words = _words(drawn, row)
        held = {
            "an id": bool({drawn.ids[row], *words} & ids),
            "a text": any(text in texts for text in _texts(drawn, row)),
            "a text with its number": any(pair in pairs for pair in _pairs(drawn, row)),
            f"a word of fewer than {k} products": any(0 < uses[word] < k for word in words),
            "a picture": drawn.pictures[row].digest in pictures,
        }
        if any(held.values()):
            raise CatalogError(
                f"drawn row {row + 1} holds {' and '.join(what for what, is_held in held.items() if is_held)} of the "
                "original: nothing was written; please report this, and draw with another --seed"
            )


def _texts(survey: Survey, row: int) -> list[str]:
    values = [survey.values[name][row] for name in survey.roles.columns("text")]
    return [" ".join(value.split()) for value in values if value is not None]


def _words(survey: Survey, row: int) -> set[str]:
    names = [survey.values[name][row] for name in survey.roles.columns("category")]
    return {word for text in [*_texts(survey, row), *filter(None, names)] for word in text.split()}


def _pairs(survey: Survey, row: int) -> list[tuple[str, float]]:
    numbers = [survey.values[name][row] for name in survey.roles.columns("number")]
    return [(text, number) for text in _texts(survey, row) for number in numbers if number is not None]


def nearness(original: Survey, drawn: Survey) -> list[Nearness]:
    """How near drawn texts and pictures come to those of the catalogue, over samples of both."""
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
        np.array(
            [
                np.frombuffer(seen.fingerprint, np.uint64)
                for seen in some.pictures
                if seen.fingerprint != NO_FINGERPRINT
            ]
        )
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
