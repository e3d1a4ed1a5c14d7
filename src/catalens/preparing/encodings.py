"""The encoding of a text table, told from its bytes, or asked for.

    "sku;título\\n1;Niño azul"   in UTF-8, in UTF-16 with or without a mark   ->  told from the bytes alone
    the same in Windows-1252    ->  "cp1252": read as cp1250 it would be "Nińo", which no language writes
    one word, "Niño"            ->  an error that shows both readings and asks for --encoding

A code page has no mark: the languages that could have written the bytes are compared by `chardet`, among the pages
that spreadsheets write. A reading is taken only where it stands out from every other that gives other text.
"""

import codecs
import itertools
import re
import unicodedata
from dataclasses import dataclass

import chardet

from catalens.errors import CatalogError

PAGES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
    *("cp932", "gb18030", "big5hkscs", "cp949", "mac-roman"),
)
"""Encodings without a mark that Excel and its like write."""
WEIGHTS = {"cp1252": 1.15, "cp1257": 0.85, "cp874": 0.85, "mac-roman": 0.85}
"""How much more or less likely a page is before anything is read."""
LEAST = 0.01
"""Confidence below which no language of a page is recognised."""
MARGIN = 0.15
"""Share of its confidence by which a reading stands out; more for a page other than cp1252 where few words differ."""
ODD_WORDS = 0.1
"""Share of words no language writes from which a reading is not believed."""
DAMAGED_SHARE = 0.1
"""Damaged characters for each sound one up to which a table is UTF-8 with damage, and not in a code page."""
SYMBOLS = frozenset("€£¥©®™°•·–—‘’“”„«»‹›…½¼¾²³×±µ¿¡ªº§№´\u00a0\u202f\u2009")  # noqa: RUF001
INSIDE_WORDS = frozenset("’·®™")  # noqa: RUF001
DAMAGED = "\udcff"
"""What stands for bytes that are not of the encoding: half a character, so that no text that holds it is accepted."""

codecs.register_error("catalens.damaged", lambda error: (DAMAGED, getattr(error, "end", 0)))


@dataclass(frozen=True)
class _Reading:
    encoding: str
    text: str
    confidence: float

    def words(self) -> list[str]:
        """Words beyond ASCII."""
        return [word for word in re.findall(r'[^\s;,|"]+', self.text) if not word.isascii()]


def detect_encoding(where: str, sample: bytes) -> str:
    """Detect the encoding, by Python's name; CatalogError that shows the readings where it cannot be told.

    `sample` is the beginning of the table, up to a whole line.
    """
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if sample.startswith(mark):
            return encoding
    if wide := _wide(sample):
        return wide
    decoded = sample.decode("utf-8", errors="catalens.damaged")
    damaged = decoded.count(DAMAGED)
    if damaged <= DAMAGED_SHARE * sum(not char.isascii() for char in decoded if char != DAMAGED):
        return "utf-8"
    return _page(where, sample)


def _wide(sample: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of signs, digits and line ends is zero."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) < len(sample) / 50 or min(even, odd) * 10 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _page(where: str, sample: bytes) -> str:
    readings = _readings(sample)
    if not readings or readings[0].confidence < LEAST:
        raise CatalogError(f"{where}: its encoding cannot be told: say which with --encoding")
    best, *others = readings
    if not others:
        return best.encoding
    words, other = best.words(), others[0].words()
    differing = [(one, two) for one, two in zip(words, other, strict=False) if one != two]
    needed = MARGIN if best.encoding == "cp1252" else max(MARGIN, 1 / max(1, len(set(differing))))
    if best.confidence - others[0].confidence >= needed * best.confidence:
        return best.encoding
    shown = [", ".join(dict.fromkeys(pair[side] for pair in differing[:5])) for side in (0, 1)]
    raise CatalogError(
        f"{where}: its encoding cannot be told: read as {best.encoding} it says {shown[0]!r}, "
        f"as {others[0].encoding} {shown[1]!r}: say which with --encoding"
    )


def _readings(sample: bytes) -> list[_Reading]:
    """Readings of `sample` that a language could have written, each text once, the likeliest first."""
    found: dict[str, _Reading] = {}
    guesses = chardet.detect_all(sample, ignore_threshold=True, include_encodings=PAGES, compat_names=False)
    western = sample.decode("cp1252", errors="replace")
    for guess in guesses:
        encoding = str(guess["encoding"])
        try:
            text = sample.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        encoding = "cp1252" if text == western else encoding  # the usual one of pages that agree
        reading = _Reading(encoding, text, float(guess["confidence"]) * WEIGHTS.get(encoding, 1.0))
        words = set(reading.words())
        if sum(map(_is_odd, words)) <= ODD_WORDS * len(words) and (
            text not in found or found[text].confidence < reading.confidence
        ):
            found[text] = reading
    return sorted(found.values(), key=lambda reading: -reading.confidence)


def _is_odd(word: str) -> bool:
    """Tell a word that no language writes: two scripts, a capital after a small letter, a sign between letters."""
    for one, two in itertools.pairwise(word):
        if one.isascii() and two.isascii():
            continue
        if one.isalpha() and two.isalpha() and (_script(one) != _script(two) or (one.islower() and two.isupper())):
            return True
    for place, char in enumerate(word):
        if char.isascii() or unicodedata.category(char)[0] in "LM" or _script(char) == "wide":
            continue
        between = 0 < place < len(word) - 1 and word[place - 1].isalpha() and word[place + 1].isalpha()
        if char not in SYMBOLS or (between and char not in INSIDE_WORDS):
            return True
    return False


def _script(char: str) -> str:
    """`LATIN`, `CYRILLIC` and so on; the scripts of East Asia, which mix, are one."""
    return "wide" if ord(char) >= 0x2E80 else unicodedata.name(char, "?").partition(" ")[0]
