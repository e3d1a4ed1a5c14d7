"""Numbers as tables write them: a column's signs and currency, told from all of its cells.

    "1,299.00", "89.50"            ->  English, 1299.0 and 89.5
    "1.299,00 €", "89,50 €"        ->  continental, in EUR
    "₹1,29,999", "₹899"            ->  groups, since a price has no three digits after the point
    "1.299", "2.499", "89"         ->  an error that asks: 1299 or 1.299?

There are two ways: the point divides off the fraction and commas group, or the other way round. Spaces and
apostrophes group in both. A cell that only one of them can read is evidence for it. Beside the digits may stand one
currency, as a sign, an ISO 4217 code or a word.
"""

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import Literal

from catalens.config import Frozen
from catalens.errors import RecipeError

Sign = Literal[".", ","]
SPACES = " \u00a0\u2007\u2009\u202f\u2002\u2003\u2005\u2008\u200a"
APOSTROPHES = "'\u2019\u02bc\u00b4"
MINUS = "\u2212\u2013"
MAX_WHOLE = 2**53
"""Up to here every whole number is a double, too, which is what columns with fractions are stored as."""
MAX_DIGITS = 100
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
BESIDE = re.compile(
    rf"(?P<sign>[-+{MINUS}]?)(?P<before>[^\d+{MINUS}-]*?)(?P<digits>[-+{MINUS}]?\s*[.,]?\d(?:.*\d)?[.,]?)"
    rf"(?P<dash>(?:[/:]?[-{MINUS}\u2014]+)?)(?P<after>\D*)",
    re.DOTALL,
)
"""A number, what stands on its two sides, and the dash of `129,-`, `129:-` and `129/-`."""
USUAL = ("USD", "EUR", "GBP", "JPY", "SEK", "INR")
"""Taken first for a sign that several currencies share."""
SHOWN = 40
"""Characters of a cell that a reason shows."""


class Numbers(Frozen):
    """Signs and currency by which a column writes its numbers."""

    decimal: Sign = "."
    """Sign before the fraction; the other one may group digits."""
    currency: str = ""
    """ISO 4217 code that may stand beside a number; empty: any."""
    mixed: bool = False
    """Some cells are written the other way, so that one that both ways read, to two numbers, is none."""

    def read(self, value: object) -> float | int | None:
        """A number, whole where it is written whole (so that its text has no point), or None where it is none."""
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, int):
            return value if not isinstance(value, bool) and abs(value) <= MAX_WHOLE else None
        if isinstance(value, Decimal):
            return self.read(int(value) if value.is_finite() and value.as_tuple().exponent == 0 else float(value))
        if not isinstance(value, str) or (parts := _parts(value)) is None:
            return None
        digits, currencies = parts
        if currencies and self.currency and self.currency not in currencies:
            return None
        if self.mixed and _kind(value)[0] == "either":
            return None
        text = plain(digits, self.decimal)
        if text is None or len(text) > MAX_DIGITS:
            return None
        return self.read(float(text) if re.search(r"[.eE]", text) else int(text))

    def refusal(self, value: object, column: str) -> str:
        """Say why a value is no number, and by which flag it would be."""
        if isinstance(value, int) and not isinstance(value, bool):
            return f"not a number in {column!r}: larger than {MAX_WHOLE:,}, beyond which digits are lost"
        reason = f"not a number in {column!r}: {str(value)[:SHOWN]!r}"
        parts = _parts(value) if isinstance(value, str) else None
        if parts and parts[1] and self.currency and self.currency not in parts[1]:
            return f"{reason}: another currency than {self.currency}, that of the other rows"
        if self.mixed and isinstance(value, str) and _kind(value)[0] == "either":
            return f"{reason}: it could be two, and the column is written both ways"
        other: Sign = "," if self.decimal == "." else "."
        return reason + (
            f"; try --decimal {other}" if self.model_copy(update={"decimal": other}).read(value) is not None else ""
        )


def plain(text: str, decimal: Sign) -> str | None:
    """Digits without groups and with a point, as Python reads them; None where they are not of this way.

    Groups are of three digits, the first one of up to three that does not begin with 0, or as in India of two before
    the last three: 1,29,999.
    """
    if decimal == "." and NUMBER.fullmatch(text):
        return text
    comma = "," if decimal == "." else "."
    whole, point, fraction = text.partition(decimal)
    used = {sign for sign in whole if not sign.isdigit() and sign not in "+-"}
    if used:
        if not (used == {comma} or used <= set(SPACES) or used <= set(APOSTROPHES)):
            return None
        sign = "[" + re.escape("".join(used)) + "]"
        groups = rf"[-+]?[1-9](?:\d{{0,2}}(?:{sign}\d{{3}})+|\d?(?:{sign}\d\d)+{sign}\d{{3}})"
        if not re.fullmatch(groups, whole, flags=re.ASCII):
            return None
        whole = re.sub(sign, "", whole)
    text = whole + ("." if point else "") + fraction
    return text if NUMBER.fullmatch(text) else None


@dataclass(frozen=True)
class Told:
    """Signs and currency of a column, and the evidence for them in words."""

    numbers: Numbers
    evidence: str = ""


def tell_numbers(column: str, cells: Iterable[object], decimal: Sign | None = None) -> Told:
    """Tell the signs and the currency of a column from all of its cells; `decimal` is what the user says.

    Raises RecipeError where cells could be one number or another.
    """
    kinds: Counter[tuple[str, frozenset[str]]] = Counter()
    example = ""
    for cell in cells:
        if isinstance(cell, str) and cell.strip():
            kind, marks = _kind(cell)
            kinds[kind, marks] += 1
            example = example or (cell.strip() if kind == "either" else "")
    counts = Counter[str]()
    for (kind, _), count in kinds.items():
        counts[kind] += count
    currency = _main(kinds)
    if decimal is None:
        decimal = "," if counts[","] > counts["."] else "."
        if counts["either"] and not counts["."] and not counts[","]:
            if any(kind == "either" and (not marks or marks & THREE_DIGITS) for kind, marks in kinds):
                english, continental = (Numbers(decimal=sign).read(example) for sign in (".", ","))
                raise RecipeError(
                    f"column {column!r}: {example[:SHOWN]!r} could be {english} or {continental}: say which with "
                    "--decimal . or --decimal ,"
                )
            # no price of these currencies has three digits after the point: they are a group
            decimal = "," if "." in (_parts(example) or ("",))[0] else "."
        mixed = bool(counts["."] and counts[","])
    else:
        mixed = False
    numbers = Numbers(decimal=decimal, currency=currency, mixed=mixed)
    if not (counts["."] or counts[","] or counts["either"] or currency):
        return Told(numbers)
    fits = {decimal, "both"} | (set() if mixed else {"either"})
    read = sum(n for (kind, marks), n in kinds.items() if kind in fits and (not marks or currency in marks))
    evidence = f"{column}: {read} of {counts.total()} read with --decimal {decimal}"
    return Told(numbers, evidence + (f", in {currency}" if currency else ""))


def _kind(cell: str) -> tuple[str, frozenset[str]]:
    """The ways that read a cell: `.` or `,` alone, `both` to one number, `either` to two; and its currencies."""
    if (parts := _parts(cell)) is None:
        return "none", frozenset()
    english, continental = plain(parts[0], "."), plain(parts[0], ",")
    if english is None or continental is None:
        return ("," if continental else "." if english else "none"), parts[1]
    return ("both" if float(english) == float(continental) else "either"), parts[1]


def _main(counts: Mapping[tuple[str, frozenset[str]], int]) -> str:
    """The currency that most marks may stand for; of those that share a sign, the usual one."""
    votes: Counter[str] = Counter()
    for (_, marks), count in counts.items():
        votes.update(dict.fromkeys(marks, count))
    return max(votes, key=lambda code: (votes[code], code in USUAL, code), default="")


def _parts(text: str) -> tuple[str, frozenset[str]] | None:
    """Digits with their signs, and the currencies that the mark beside them may stand for; None of anything else."""
    text = (html.unescape(text) if "&" in text else text).strip(SPACES + "\t\r\n")
    if NUMBER.fullmatch(text):
        return text, frozenset()
    found = BESIDE.fullmatch(text)
    if found is None:
        return None
    digits, before = found["digits"], found["before"]
    if before.strip()[-1:].isalpha() and digits[0] in ".,":  # Rs.500
        digits, before = digits[1:], before + digits[0]
    before, after = _mark(before), _mark(found["after"])
    marks = [mark for mark in (before, after) if mark]
    known = [codes for mark in marks if (codes := _marks().get(mark))]
    if len(known) < len(marks):
        return None
    codes = known[0].intersection(*known[1:]) if known else frozenset[str]()
    if len(known) == 2 and not codes:
        return None
    digits = re.sub(r"^([-+]?)\s+", r"\1", (found["sign"] + digits).translate(_MINUS))
    if found["dash"] and found["dash"][0] not in "/:":
        if digits[-1] not in ".,":
            return None
        digits = digits[:-1]
    return (digits, codes) if digits[-1].isdigit() or digits[-1] in ".," else None


_MINUS = str.maketrans(dict.fromkeys(MINUS, "-"))


def _mark(text: str) -> str:
    return re.sub(rf"[\s.*{SPACES}]", "", text).casefold()


@cache
def _marks() -> dict[str, frozenset[str]]:
    """Currencies by their codes, signs and words; a sign may stand for several."""
    found: dict[str, set[str]] = {}
    for line in (files("catalens") / "assets" / "currencies.txt").read_text(encoding="utf-8").splitlines():
        code, *marks = line.split()
        for mark in (code, *marks):
            found.setdefault(_mark(mark), set()).add(code)
    return {mark: frozenset(codes) for mark, codes in found.items()}


THREE_DIGITS = frozenset({"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"})
"""Currencies of a thousand parts, whose prices do have three digits after the point (ISO 4217)."""
