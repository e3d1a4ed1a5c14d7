"""Texts like those of a catalogue, word by word, with no text of the catalogue among them, and what words mean.

    lengths 3 (240 products), 4 (90 products); pairs Red -> Tote, Tote -> Bag, ...   ->   "Morvel Red Tote Bag"
    meaning_of("Borsa")  ->  ("kind", "Tote Bag")        meaning_of("Oslo")  ->  None

Words follow each other as they do in the catalogue (a Markov chain of pairs that at least k products use, tilted to
the words of the category) until a text is as long as was drawn for it. Every text holds at least one invented word,
which is no word of the catalogue: so it is none of the catalogue's texts, whatever the chain does.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from catalens.config import SPECIAL
from catalens.mimicking.profile import EDGE, OTHER, RARE, Profile, index_of, pick
from catalens.sampling.assortment import read_asset

LONGEST_WORD = 40
OTHER_WORDS = 200  # of the whole catalogue, beside its own frequent ones, that a category's chain knows
REHEARSAL, ROUNDS, DAMPING, MOST_TILT = 2000, 4, 0.7, 8.0  # texts, rounds, power and largest factor of the fitting
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


class Chain:
    """Markov chain of the texts of one column in one stratum, of V words."""

    def __init__(self, profile: Profile, column: str, stratum: int) -> None:
        frequency = _frequencies(profile, column, stratum)
        self.lengths = profile.strata[stratum].lengths[column]
        self.words = list(frequency)
        self._next = _transitions(profile, column, frequency)
        self._backward = lru_cache(maxsize=16)(self._messages)

    def draw(self, rng: random.Random) -> list[str]:
        """Draw the words of a text, `RARE` where an invented one has to stand: at least once."""
        length = max(1, round(pick(self.lengths, rng.random()).value))
        backward = self._backward(length)
        words: list[str] = []
        at = -1  # the last row is the beginning
        for step in range(length):
            at = index_of(rng.random(), (self._next[at, :-1] * backward[step]).tolist())
            words.append(self.words[at])
        if RARE not in words:
            # what names the thing stays, if it can: a text is to say what is drawn
            plain = [index for index, word in enumerate(words) if (meaning_of(word) or ("",))[0] != "kind"]
            words[rng.choice(plain or range(length))] = RARE
        return words

    def _messages(self, length: int) -> NDArray[np.float64]:
        """[length, V]: how likely a text goes on and ends in time, from each word at each step."""
        messages = np.empty((length, len(self.words)))
        messages[-1] = self._next[:-1, -1]
        for step in range(length - 2, -1, -1):
            messages[step] = self._next[:-1, :-1] @ messages[step + 1]
            messages[step] /= messages[step].max()
        return messages


def _frequencies(profile: Profile, column: str, stratum: int) -> dict[str, float]:
    """Share of a stratum's products that use a word: its own words, and of the others what they are elsewhere."""
    products, own = profile.strata[stratum].products, dict(profile.strata[stratum].words[column])
    left = own.pop(OTHER, 0)
    elsewhere = [(word, n) for word, n in profile.texts[column].elsewhere.items() if word not in own][:OTHER_WORDS]
    everything = sum(n for _, n in elsewhere)
    shares = {word: n / products for word, n in own.items()}
    shares |= {word: left / products * n / everything for word, n in elsewhere if left}
    return shares or {RARE: 1.0}


def _transitions(profile: Profile, column: str, frequency: dict[str, float]) -> NDArray[np.float64]:
    """[V + 1, V + 1]: how likely each word, or the end, follows each word, or the beginning."""
    index = {word: number for number, word in enumerate([*frequency, EDGE])}
    totals, wording = profile.words(column) | {EDGE: profile.products}, profile.texts[column]
    lift = np.array([n * profile.products / max(totals[word], 1) for word, n in frequency.items()] + [1.0])
    anywhere = np.array([*frequency.values(), 1.0]) / (1 + sum(frequency.values()))
    table = np.zeros((len(index), len(index)))
    for word, row in index.items():
        followers = wording.pairs.get(word, {})
        for after, n in followers.items():
            if after in index:
                table[row, index[after]] = n
        # products whose next word is not told: it is any at all
        table[row] = table[row] * lift + (max(totals[word] - sum(followers.values()), 0) + 0.01) * anywhere
    table *= [wording.tilt.get(word, 1.0) for word in index]
    return table / table.sum(axis=1, keepdims=True)


def balanced(profile: Profile) -> Profile:
    """Add `tilt`s to a profile: iterative proportional fitting of the words' frequencies on rehearsed texts."""
    for column, wording in profile.texts.items():
        wanted = profile.words(column)
        tilt = dict.fromkeys(wanted, 1.0)
        for _ in range(ROUNDS):
            found = _rehearse(profile, column)
            for word, n in wanted.items():
                ratio = (n / wanted.total()) / ((found[word] + 0.5) / found.total())
                tilt[word] = round(min(max(tilt[word] * ratio**DAMPING, 1 / MOST_TILT), MOST_TILT), 3)
            texts = profile.texts | {column: wording.model_copy(update={"tilt": tilt})}
            profile = profile.model_copy(update={"texts": texts})
    return profile


def _rehearse(profile: Profile, column: str) -> Counter[str]:
    """Words of some texts of every stratum, each stratum in its share."""
    rng = random.Random(f"catalens/rehearsal/{column}")
    found: Counter[str] = Counter()
    for index, stratum in enumerate(profile.strata):
        if column in stratum.lengths:
            chain = Chain(profile, column, index)
            for _ in range(round(REHEARSAL * stratum.products / profile.products)):
                found.update(set(chain.draw(rng)))
    return found
