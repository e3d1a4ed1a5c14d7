"""Rules of a check: the rows that each finds; `assets/findings.yaml` has its severity, words and fix.

    error    4 products in more than one split         train row 7 (10432877), test row 2 (10432877), ...
    warning  price stands far from its category in ... train row 31 (10577): 11,990 in BAGS, median 1,250
    note     38 values of title stand for more than one product

An error makes a run's scores false or stops it; a warning makes the model worse; a note is good to know.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import yaml
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.sparse.csgraph import connected_components

from catalens.catalog.storage import SPLITS
from catalens.checking.facts import NAMED_ROWS, PLACEHOLDER_PRODUCTS, Facts, group_rows

Add = Callable[..., None]
"""`Findings.add`."""
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

MAX_BAD = 0.05  # share of a split's rows that training may leave out before it refuses
RARE = 5  # training rows of a category below which it is rare
SMALL_SIDE = 112  # pixels of the shorter side below which a picture shows little: a third of a crop of 336
LONG_RATIO = 4.0  # longer side over shorter from which most of the crops are padding
GROUP, MIN_GROUPED = 3, 5  # digits between group signs; so many numbers with so many decimals are a reason to ask
MAX_DECIMALS = 4  # decimals of a price or a size; more are noise
LONG_TEXT = 300  # characters from which a text is no title that a picture could tell
MAX_COMPARED = 3000  # most words that are searched for near spellings: the work grows with the square
MARKUP = re.compile(r"<\s*/?\s*[a-zA-Z!][^>]*>|&(?:[a-zA-Z]{2,8}|#\d{1,7}|#x[0-9a-fA-F]{1,6});")
FORMULA = re.compile(r"\s*[=@][\w(]|\s*[+-][A-Za-z(]")


class NamedRow(NamedTuple):
    """Row that a finding names: `train row 7 (10432877)`."""

    row: str
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One problem."""

    severity: Severity
    title: str
    why: str
    """Its effect on a run."""
    fix: str
    count: int
    """Rows concerned."""
    rows: tuple[NamedRow, ...] = ()
    """The first `NAMED_ROWS` of them."""


class Count(int):
    """Number of things: `f"{Count(2):picture}"` is `2 pictures`."""

    def __format__(self, noun: str) -> str:
        one, _, many = noun.partition("|")
        return f"{int(self):,} {one if self == 1 else many or one + 's'}"


class Findings:
    """Findings of a catalogue, in the words of `assets/findings.yaml`."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.found = facts, list[Finding]()
        self._words = yaml.safe_load((files("catalens") / "assets/findings.yaml").read_text(encoding="utf-8"))

    def add(
        self,
        key: str,
        rows: Sequence[tuple[int | str, str]],
        things: int | None = None,
        total: int | None = None,
        **values: Any,
    ) -> None:
        """Add what is found of rows, each with a detail; nothing without rows, but where the `total` is given.

        `things` is what the title counts, where it is not rows.
        """
        if not rows and total is None:
            return
        total = len(rows) if total is None else total
        values |= {"count": Count(total if things is None else things), "max_bad": MAX_BAD, "rare": RARE}
        values |= {"small": SMALL_SIDE, "ratio": LONG_RATIO, "decimals": MAX_DECIMALS, "long": LONG_TEXT}
        words = {
            name: text.format(**values, placeholder=PLACEHOLDER_PRODUCTS) for name, text in self._words[key].items()
        }
        if words["severity"] == "by_share":
            bad = Counter(self.facts.splits[row] for row, _ in rows if isinstance(row, int))
            refused = any(count > MAX_BAD * self.facts.card.rows[split] for split, count in bad.items())
            words["severity"] = "error" if refused else "warning"
        named = [(self.facts.name(row) if isinstance(row, int) else row, more) for row, more in rows[:NAMED_ROWS]]
        self.found.append(Finding(**words, count=total, rows=tuple(NamedRow(*one) for one in named)))


def find(facts: Facts) -> list[Finding]:
    """Apply all rules: errors first, then what concerns most rows."""
    findings = Findings(facts)
    for rule in (_splits, _rows, _leaks, _pictures, _numbers, _categories, _texts):
        rule(facts, findings.add)
    return sorted(findings.found, key=lambda finding: (SEVERITIES.index(finding.severity), -finding.count))


def _splits(facts: Facts, add: Add) -> None:
    for split in SPLITS:
        if not facts.card.rows.get(split):
            add("no_test_rows" if split == "test" else "no_rows", [], total=0, name=split)
    if count := sum(rejected.count for rejected in facts.rejected):
        share = count / (count + len(facts))
        rows = [row for rejected in facts.rejected for row in rejected.rows]
        add("many_rejected" if share > MAX_BAD else "rejected", rows, total=count, share=share)


def _rows(facts: Facts, add: Add) -> None:
    add("no_id", [(row, "") for row, id in enumerate(facts.ids) if not id.strip()])
    add("undecodable", [(row, look.reason) for row, look in facts.all_pictures if look.size is None])
    add("unreadable", sorted(facts.problems.items()))
    for name, values in facts.values.items():
        missing = [(row, "") for row, value in enumerate(values) if value is None]
        word = facts.learnt.get(name)
        add("absent" if word else "missing", missing, name=name, share=len(missing) / max(1, len(values)), word=word)
        trained = any(values[row] is not None for row, split in enumerate(facts.splits) if split == "train")
        if name in facts.learnt and "train" in facts.splits and not trained:
            add("no_values", [], total=facts.card.rows["train"], name=name)
    add("rounded", sorted(facts.rounded.items()))


def _leaks(facts: Facts, add: Add) -> None:
    for key, groups in (("product_leak", group_rows(facts.ids).values()), ("picture_leak", facts.copies)):
        torn = [rows for rows in groups if len({facts.splits[row] for row in rows}) > 1]
        firsts = [sorted({facts.splits[row]: row for row in reversed(rows)}.values()) for rows in torn]
        named = [(row, "" if row == rows[0] else f"as {facts.name(rows[0])}") for rows in firsts for row in rows]
        add(key, named, things=len(torn))
    add("alike_across_splits", [(a, f"like {facts.name(b)}") for a, b in facts.across])


def _pictures(facts: Facts, add: Add) -> None:
    shared = facts.placeholders
    add("placeholder", [(row, "") for group in shared for row in group], things=len(shared))
    within = [(a, b) for a, b in facts.near if facts.splits[a] == facts.splits[b] and facts.ids[a] != facts.ids[b]]
    add("alike", [(a, f"like {facts.name(b)}") for a, b in within])
    sizes = [(row, look.size) for row, look in facts.all_pictures if look.size]
    add("small", [(row, f"{w} \u00d7 {h}") for row, (w, h) in sizes if min(w, h) < SMALL_SIDE])
    add("thin", [(row, f"{w} \u00d7 {h}") for row, (w, h) in sizes if max(w, h) >= LONG_RATIO * min(w, h)])
    add("position", [(row, "") for row, look in facts.all_pictures if look.position])


def _numbers(facts: Facts, add: Add) -> None:
    by = facts.roles.leading
    for name in facts.roles.columns("number"):
        values = facts.values[name]
        known = [(row, value) for row, value in enumerate(values) if value is not None]
        add("not_positive", [(row, f"{name} {value:,.12g}") for row, value in known if value <= 0], name=name)
        fine = [(row, f"{name} {value!r}") for row, value in known if _decimals(value) > MAX_DECIMALS]
        add("decimals", fine, name=name)
        broken = [(row, value) for row, value in known if value % 1]
        thirds = [(row, f"{name} {value!r}") for row, value in broken if _decimals(value) == GROUP]
        add("thousands", thirds if len(thirds) >= max(MIN_GROUPED, 0.8 * len(broken)) else [], name=name)
        far = [
            (row, f"{values[row]:,.12g}{f' in {facts.values[by][row]}' if by else ''}, median {median:,.6g}")
            for row, median in facts.outliers[name]
        ]
        add("far_from_category" if by else "outlier", far, name=name)


def _categories(facts: Facts, add: Add) -> None:
    for name in facts.roles.columns("category"):
        groups = facts.categories(name)
        twins = [(word, ", ".join(map(repr, group))) for group in spelling_twins(groups) for word in group[1:]]
        rows = [(row, spellings) for word, spellings in twins for row in groups[word]]
        add("spellings", rows, things=len({spellings for _, spellings in twins}), name=name)
        trained = {word: sum(facts.splits[row] == "train" for row in rows) for word, rows in groups.items()}
        unseen = [word for word in groups if not trained[word]]
        add("untrained", [(row, word) for word in unseen for row in groups[word]], things=len(unseen), name=name)
        rare = [word for word in groups if 0 < trained[word] < RARE]
        add("rare", [(row, repr(word)) for word in rare for row in groups[word]], things=len(rare), name=name)


def _texts(facts: Facts, add: Add) -> None:
    for name in [*facts.roles.columns("text"), *facts.roles.columns("category")]:
        known = [(row, value) for row, value in enumerate(facts.values[name]) if value]
        long = [(row, f"{len(value):,} characters") for row, value in known if len(value) > LONG_TEXT]
        add("long", long, name=name)
        add("markup", [(row, value) for row, value in known if MARKUP.search(value)], name=name)
        add("formula", [(row, value) for row, value in known if FORMULA.match(value)], name=name)
    for name in facts.roles.columns("text"):
        shared = [(row, f"{facts.values[name][row]} ({count} products)") for row, count in facts.repeated(name)]
        add("repeated", shared, name=name)


def spelling_twins(words: Iterable[str]) -> list[list[str]]:
    """Group words that differ in case, white space, Unicode form, punctuation, or one letter of a long word.

    Words that hold digits or are shorter than 6 letters are too often meant to differ by one letter.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for word in sorted(set(words)):
        text = unicodedata.normalize("NFKC", word).casefold()
        spellings[" ".join(re.sub(r"[^\w]+", " ", text).split()) or word].append(word)
    long = [word for word in sorted(spellings) if len(word) >= 6 and not any(c.isdigit() for c in word)][
        :MAX_COMPARED
    ]
    alike = process.cdist(["", *long], ["", *long], scorer=Levenshtein.distance, score_cutoff=1) <= 1
    group_of = dict(zip(long, connected_components(alike)[1][1:].tolist(), strict=True))
    groups: dict[str | int, list[str]] = defaultdict(list)
    for word, spelt in sorted(spellings.items()):
        groups[group_of.get(word, word)] += spelt
    return [group for group in groups.values() if len(group) > 1]


def _decimals(value: float) -> int:
    """Digits after the point in the shortest decimal of a number."""
    return max(0, -int(Decimal(repr(value)).normalize().as_tuple().exponent))
