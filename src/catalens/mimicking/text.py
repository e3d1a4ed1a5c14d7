"""Texts like those of a catalogue, with no text of the catalogue among them, and what words mean.

    length 4; Red 0.1, Blue 0.1, Tote 0.7, Bag 0.7, ...   ->   "Red Morvel Tote Bag"
    meaning_of("Borsa")  ->  ("kind", "Tote Bag")              meaning_of("Oslo")  ->  None

Texts have the words of a category as often as those of the catalogue, each where it usually stands, and are as long.
Every text holds an invented word, which is no word of the catalogue: so it is none of the catalogue's texts.
"""

import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache

from catalens.config import SPECIAL
from catalens.mimicking.profile import OTHER, RARE, Profile, pick
from catalens.sampling.assortment import read_asset

LONGEST_WORD = 40
CONSONANTS, VOWELS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr"), "aeiou"
_MEANINGS = {
    word: (axis, value)
    for axis, table in reversed(read_asset("vocabulary.yaml").items())  # a word of two keeps the first of them
    for value, words in table.items()
    for word in words.split()
}


@lru_cache(maxsize=65536)
def meaning_of(word: str) -> tuple[str, str] | None:
    """Look up the axis (`kind`, `colour`, `pattern`, `trim` or `material`) and value that a word names, if any."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    bare = re.sub(r"^\W+|\W+$", "", bare)
    for end in ("", "s", "es", "e", "n"):
        if bare.endswith(end) and (meaning := _MEANINGS.get(bare.removesuffix(end))):
            return meaning
    return None


def kind_in(words: str) -> str | None:
    """Return the kind of thing that the last telling word names; joined words are tried one by one as well."""
    for word in reversed(words.split()):
        for part in (word, *reversed(re.split(r"[^\w]+", word))):
            if (meaning := meaning_of(part)) and meaning[0] == "kind":
                return meaning[1]
    return None


def shareable(word: str) -> bool:
    """Tell whether a frequent word may stay: no address, no number of four digits or more, nothing that hides."""
    return (
        len(word) <= LONGEST_WORD
        and word.isprintable()
        and "@" not in word
        and not re.search(r"://|www\.|\.\w+/|\d{4}", word.casefold())
        and not SPECIAL.search(word)
    )


def case_of(words: Iterable[str]) -> str:
    """Return `upper`, `title` or `lower`: how most of the words are written."""
    cases = ["upper" if w.isupper() and len(w) > 1 else "title" if w[:1].isupper() else "lower" for w in words]
    return max(("title", "lower", "upper"), key=cases.count)


def invent_words(
    count: int, length: Callable[[float], float], case: str, taken: set[str], secret: str
) -> tuple[str, ...]:
    """Make up `count` pronounceable words, the same ones for the same `secret`.

    Who knew that could make them up again, and see by what was passed over which words are `taken`.
    `length` gives the letters of a word for a share of 1, `case` is `upper`, `lower` or `title`; none is in `taken`,
    which holds casefolded words and is added to, and none has a meaning.
    """
    rng = random.Random(secret)
    made: list[str] = []
    tries = 0
    while len(made) < count:
        letters = max(3, round(length(rng.random()))) + tries // 50  # short words run out
        tries += 1
        word = ""
        while len(word) < letters:
            word += rng.choice(CONSONANTS) + rng.choice(VOWELS)
        word = word[:letters]
        if word not in taken and not meaning_of(word):
            taken.add(word)
            made.append({"upper": word.upper(), "title": word.title()}.get(case, word))
    return tuple(made)


class Writer:
    """Writes texts of one column in one stratum."""

    def __init__(self, profile: Profile, column: str, stratum: int) -> None:
        its, wording = profile.strata[stratum], profile.texts[column]
        own = dict(its.words[column])
        others, _ = own.pop(OTHER, 0), own.pop(RARE, 0)
        elsewhere = {word: n for word, n in wording.elsewhere.items() if word not in (RARE, *own)}
        shares = {word: n / its.products for word, n in own.items()}
        shares |= {w: min(1, n * others / sum(elsewhere.values()) / its.products) for w, n in elsewhere.items()}
        self._lengths, self._order = its.lengths[column], wording.order
        # words by axis and value: as a rule a text has one colour, and one kind in several words
        self._shares: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for word, share in shares.items():
            axis, value = meaning_of(word) or (f" {word}", word)
            self._shares[axis][value][word] = share

    def draw(self, rng: random.Random) -> list[str]:
        """Draw the words of a text, `RARE` where an invented one has to stand: at least once."""
        length = max(1, round(pick(self._lengths, rng.random()).value))
        words: list[str] = []
        for values in self._shares.values():
            at = rng.random()  # systematic sampling: each word is drawn with the probability that is its share
            for same in values.values():
                most = max(same.values())
                at -= most
                if at < 0:
                    at += 1
                    words += [word for word, share in same.items() if rng.random() * most < share]
        rng.shuffle(words)
        # what names the thing stays, if it can: a text is to say what is drawn
        words.sort(key=lambda word: (meaning_of(word) or ("",))[0] != "kind")
        words = words[: length - 1]
        words += [RARE] * (length - len(words))
        return sorted(words, key=lambda word: self._order.get(word, 0.5))
