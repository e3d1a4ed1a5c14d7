"""Values that a field may still take, as trees over tokens that all rows of a batch grow together, a level at a time.

    Full Price:  1 --- 2 --- 9 .     a third of the quantiles of the price
                 |     `---- 1 .
                 `- 9 --- 9 .

Numbers and closed sets of categories are finite languages in which few tokens may follow, so that a level is one pass
over the cache that the rows have: each token sees the prompt and those before it in its branch. Of a number each row
follows `QUANTILES` evenly spaced quantiles from digit to digit, by the cumulative probabilities of the digits, as one
draws from a distribution by its inverse: 32 tell its median as well as hundreds of branches do. They stop where more
digits would change it by less than 1 %. Of categories the likeliest branches are followed. Which tokens may follow a
number depends on how many digits it has, and not on which: the grammar is asked once.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalens.config import FieldSpec, PromptSpec
from catalens.distributions import Distribution, Estimate
from catalens.examples import parse_value
from catalens.inference.grammar import Constraint

QUANTILES = 32
"""Quantiles of a number that are followed."""
WIDTH = 32
"""Most branches of a category that are followed at a time."""
CUT = 0.002
"""Branches of a category less likely than this are left, but for the likeliest."""
VALUES = 10_000
"""Texts of values that are read once."""
ROOM = 64
"""Tokens that hardly a value takes more than."""
DIGITS = 100
"""Digits after the decimal sign are of no account from here on: a number in units of the last one."""

Scores = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float32]]
"""Numbers [n] of branches that grow, tokens [k] -> their scores [n, k] by the model."""


@dataclass(frozen=True)
class Choice:
    """Token that may follow, with those that must follow it."""

    tokens: tuple[int, ...]
    text: bytes
    """Bytes that they write."""
    whole: bool
    """The value ends with them."""


@dataclass(eq=False)
class Branch:
    """Beginning of a value of a row."""

    row: int
    text: bytes
    """Bytes since the label."""
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()
    """Of each token, 0 for a forced one."""
    share: float = 1.0
    """Probability; of a number the share of its quantiles."""
    places: tuple[int, ...] = ()
    """Slots of its tokens that were fed."""


@dataclass(frozen=True)
class Found:
    """Finding of a row's tree."""

    distribution: Distribution
    tokens: tuple[int, ...]
    """Of the value that stands for the distribution; of a number perhaps not up to its end."""
    log_probabilities: tuple[float, ...]


class Choices:
    """Tokens that may follow the beginning of a value of one field."""

    def __init__(self, constraint: Constraint, prompt: PromptSpec, spec: FieldSpec) -> None:
        self.constraint, self.prompt, self.spec = constraint, prompt, spec
        place = prompt.fields.index(spec)
        following = [*prompt.fields[place + 1 :], None][0]
        self.labels = [
            f"{', ' if n else ''}{one.label}:".encode() for n, one in enumerate(prompt.fields[: place + 1])
        ]
        """Those of the fields up to this one, its own the last."""
        self._ending = f", {following.label}:".encode() if following else None
        self._known: dict[bytes, tuple[NDArray[np.intp], list[Choice]]] = {}
        self.value = lru_cache(maxsize=VALUES)(self._value)
        """Read a value, which may go on after its decimal sign; None where it is none."""

    def begins(self, rest: bytes) -> bool:
        """Tell whether a value is yet to come after what stands behind its label."""
        prefix = self.prompt.numbers.prefix if self.spec.kind == "number" else ""
        return f" {prefix}".encode().startswith(rest)

    def key(self, text: bytes) -> bytes:
        """Shorten the beginning of a value to what decides about the tokens that may follow."""
        if self.spec.kind != "number":
            return text
        nought = re.match(rb"\D*0", text) is not None  # no more digits may follow it
        return b"01"[nought : nought + 1] + re.sub(rb"\d", b"1", text)

    def after(self, branch: Branch, start: Any) -> tuple[NDArray[np.intp], list[Choice]]:
        """Tokens [k] that may follow a branch, and each with what must follow; `start` is the matcher before it."""
        key = self.key(branch.text)
        if key not in self._known:
            matcher, vocabulary, found = start.deep_copy(), self.constraint.vocabulary, []
            if branch.tokens:
                matcher.consume_tokens(list(branch.tokens))
            for token in np.flatnonzero(self.constraint.allowed([matcher])[0]).tolist():
                tokens = (token, *self.constraint.follow(matcher.deep_copy(), token))
                text = b"".join(vocabulary.piece(one) for one in tokens if one != vocabulary.end)
                ended = self._ending is not None and self._ending in branch.text + text
                found.append(Choice(tokens, text, ended or vocabulary.end in tokens))
            self._known[key] = np.array([choice.tokens[0] for choice in found], np.intp), found
        return self._known[key]

    def _value(self, text: bytes) -> float | str | None:
        text = text.partition(self._ending)[0] if self._ending else text
        written = text.decode("utf-8", errors="replace").strip()
        if self.spec.kind != "number":
            return parse_value(self.prompt, self.spec, written)
        numbers = self.prompt.numbers
        bare = written.removeprefix(numbers.prefix).removesuffix(numbers.suffix).strip().removesuffix(numbers.decimal)
        return parse_value(self.prompt, self.spec, f"{numbers.prefix}{bare}{numbers.suffix}")

    def settled(self, text: bytes) -> bool:
        """Tell whether the digits that a number still lacks change it by less than 1 %."""
        whole, point, decimals = text.partition(self.prompt.numbers.decimal.encode())
        return bool(point) and int(re.sub(rb"\D", b"", whole + decimals) or 0) >= DIGITS


@dataclass(eq=False)
class Turn:
    """Field of an answer that is written whose value grows on a tree next."""

    fields: Sequence[Choices]
    switch: float = math.inf
    """Most positions before the rotary embedding changes: no tree grows across."""
    place: int = 0
    found: int = 0
    """Labels that stand already."""
    at: int = 0
    """Bytes of the answer up to the end of the last of them."""

    def now(self, text: bytes, length: int) -> Choices | None:
        """Give the field whose value comes after an answer's `text`, at this position; None where none does."""
        while self.place < len(self.fields):
            choices = self.fields[self.place]
            for label in choices.labels[self.found :]:  # one after the other: a value may hold a later field's label
                start = text.find(label, self.at)
                if start < 0:
                    return None
                self.found, self.at = self.found + 1, start + len(label)
            if choices.begins(text[self.at :]) and not length <= self.switch < length + ROOM:
                return choices
            self.place += 1
        return None


@dataclass(eq=False)
class Forest:
    """Trees of the same field of several rows."""

    choices: Choices
    starts: Sequence[Any]
    """Matcher of each row before the value."""
    texts: Sequence[bytes]
    """Beginning of it that stands already: a space, a currency sign."""
    growing: list[Branch] = field(default_factory=list)
    whole: list[Branch] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = range(len(self.starts))
        self.growing = [Branch(row, text) for row, text in zip(rows, self.texts, strict=True)]
        marks = (np.arange(QUANTILES) + 0.5) / QUANTILES
        self._marks = [marks] * len(self.growing)  # of each growing branch: quantiles, as shares of it

    def grow(self, scores: Scores) -> None:
        """Grow every branch by a choice."""
        before, marks = self.growing, self._marks
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for n, branch in enumerate(before):
            groups[self.choices.key(branch.text)].append(n)
        self.growing, self._marks = [], []
        for members in groups.values():
            first = before[members[0]]
            tokens, choices = self.choices.after(first, self.starts[first.row])
            logs = scores(np.array(members, np.intp), tokens).astype(np.float64)
            logs -= logs.max(axis=1, keepdims=True)
            logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))  # [n, k]
            if self.choices.spec.kind == "number":
                self._follow_quantiles([(before[n], marks[n]) for n in members], choices, logs)
            else:
                self._follow_likeliest([before[n] for n in members], choices, logs)
        if self.choices.spec.kind != "number":
            self._cut()
        order = sorted(range(len(self.growing)), key=lambda n: self.growing[n].row)  # as `fresh` has them
        self.growing, self._marks = [self.growing[n] for n in order], [self._marks[n] for n in order]

    def fresh(self) -> list[list[Branch]]:
        """Growing branches, row by row."""
        rows: list[list[Branch]] = [[] for _ in self.starts]
        for branch in self.growing:
            rows[branch.row].append(branch)
        return rows

    def found(self, estimate: Estimate) -> list[Found]:
        """Give what every row's tree has found."""
        rows: list[list[Branch]] = [[] for _ in self.starts]
        for branch in self.whole:
            rows[branch.row].append(branch)
        return [self._found(whole, estimate) for whole in rows]

    def _found(self, whole: Sequence[Branch], estimate: Estimate) -> Found:
        values: dict[float | str, float] = defaultdict(float)
        best: dict[float | str, Branch] = {}
        for branch in whole:
            if (value := self.choices.value(branch.text)) is not None:
                values[value] += branch.share
                best[value] = max(best.get(value, branch), branch, key=lambda one: one.share)
        distribution = Distribution.of(values)
        number = self.choices.spec.kind == "number"
        chosen = best[distribution.point(estimate) if number else distribution.mode]
        return Found(distribution, chosen.tokens, chosen.log_probabilities)

    def _follow_quantiles(
        self, branches: Sequence[tuple[Branch, NDArray[np.float64]]], choices: Sequence[Choice], logs: NDArray[Any]
    ) -> None:
        """Follow each quantile into the choice whose share of the cumulative probabilities holds it."""
        shares, everything = np.exp(logs), logs.tolist()
        for (branch, marks), own, each, ends in zip(branches, everything, shares, shares.cumsum(axis=1), strict=True):
            picks = np.minimum(ends.searchsorted(marks, side="right"), len(choices) - 1).tolist()  # ascending
            first = 0
            for pick, group in groupby(picks):
                last = first + len(list(group))
                inside = (marks[first:last] - (ends[pick - 1] if pick else 0.0)) / max(each[pick], 1e-12)
                self._add(branch, choices[pick], own[pick], (last - first) / QUANTILES, inside)
                first = last

    def _follow_likeliest(self, branches: Sequence[Branch], choices: Sequence[Choice], logs: NDArray[Any]) -> None:
        none = np.empty(0)
        for branch, own in zip(branches, logs, strict=True):
            for choice, log in zip(choices, own.tolist(), strict=True):
                self._add(branch, choice, log, branch.share * float(np.exp(log)), none)

    def _add(self, branch: Branch, choice: Choice, log: float, share: float, marks: NDArray[np.float64]) -> None:
        text, forced = branch.text + choice.text, (0.0,) * (len(choice.tokens) - 1)
        tokens, logs = branch.tokens + choice.tokens, (*branch.log_probabilities, log, *forced)
        more = Branch(branch.row, text, tokens, logs, share, branch.places)
        if choice.whole or (self.choices.spec.kind == "number" and self.choices.settled(text)):
            self.whole.append(more)
        else:
            self.growing.append(more)
            self._marks.append(marks)

    def _cut(self) -> None:
        """Leave the unlikely branches of categories."""
        kept: list[Branch] = []
        for branches in self.fresh():
            best = sorted(branches, key=lambda branch: -branch.share)[:WIDTH]
            kept += [branch for n, branch in enumerate(best) if n == 0 or branch.share >= CUT]
        self.growing, self._marks = kept, [np.empty(0)] * len(kept)


def choices_of(
    constraint: Constraint, prompt: PromptSpec, closed: Collection[str], estimate: Estimate
) -> list[Choices]:
    """Give the fields of an answer whose values grow on trees, in order: numbers and `closed` ones; by mode none."""
    grown = [] if estimate == "mode" else prompt.fields
    return [Choices(constraint, prompt, spec) for spec in grown if spec.kind == "number" or spec.column in closed]
