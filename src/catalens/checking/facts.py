"""Facts of a catalogue: each row read once, and what several rules need of all of them.

train row 7 (10432877) -> 800 x 1000 JPEG with its hash and fingerprint; title "Check Scarf", category BAGS,
                          price 129.0; its text reads back and has 61 tokens
Facts.copies           -> [[6, 214], ...]  rows with the same picture
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from catalens.catalog.duplicates import BITS, near_pairs
from catalens.catalog.scan import Scan
from catalens.catalog.storage import Catalog, facts_of
from catalens.config import PromptSpec
from catalens.data import Encoder, readable_inputs
from catalens.errors import CatalogError, PromptError
from catalens.examples import complete_question, fields_of, format_number, parse_number, render_answer
from catalens.model import REFERENCE
from catalens.progress import Progress, silent

NAMED_ROWS = 10  # rows that a finding or a reason names
PLACEHOLDER_PRODUCTS = 3  # products that share one picture from which it is taken for a placeholder
CHARACTERS_PER_TOKEN = 2.8
"""Of Phi-3's tokenizer on product texts (docs/estimates.md): the estimate where it is not on disk."""
FAR = 5.0
"""Modified z-score of an outlier. Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) take 3.5 for some
tens of values; of thousands, some pass that by chance."""
MIN_VALUES = 10  # values below which no outlier is named


@dataclass(frozen=True)
class Rejected:
    """Rows of the table that were left out for one reason."""

    reason: str
    """Words before the first colon."""
    count: int
    forms: tuple[tuple[str, int], ...]
    """Words after it, with the number of rows, the most frequent first."""
    rows: tuple[tuple[str, str], ...]
    """Name and whole reason of the first rows."""


class Facts(Scan):
    """Facts of N rows, in the catalogue's order."""

    def __init__(self, catalog: Catalog) -> None:
        """Raises CatalogError where `rejected.parquet` cannot be read."""
        super().__init__(catalog.card.roles)
        self.card, self.rejected = catalog.card, read_rejected(catalog.folder)
        self.learnt: Mapping[str, str | None] = {}
        """Fields of the prompt, and the word of each for what is absent."""
        self.text_tokens: list[int | None] = []
        """Tokens of prompt and answer, the picture's not counted; None where training would leave the row out."""
        self.problems: dict[int, str] = {}
        """By row: why its text does not read back."""
        self.rounded: dict[int, str] = {}
        """By row: the first number that its written form is not equal to."""

    def add_text(self, row: Mapping[str, Any], prompt: PromptSpec, encoder: Encoder | None) -> None:
        """Note what a prompt makes of the row that was added last; without an encoder its length is estimated."""
        index = len(self) - 1
        name, known = self.name(index), fields_of(prompt, row)
        if not known:
            self.text_tokens.append(None)
            return
        question, images = complete_question(prompt, row), 1 + len(self.further[index])
        try:
            if encoder:
                tokens = encoder.text_tokens(question, images) + len(encoder.answer_ids(row, name))
            else:
                text = REFERENCE.chat(question, images) + render_answer(prompt, row, name) + REFERENCE.end_token
                tokens = math.ceil(len(text) / CHARACTERS_PER_TOKEN)
        except PromptError as error:
            self.problems[index] = str(error).removeprefix(f"{name}: ")
            self.text_tokens.append(None)
            return
        self.text_tokens.append(tokens)
        for field in known:
            if field.kind == "number" and index not in self.rounded:
                text = format_number(prompt.numbers, row[field.column])
                if parse_number(prompt.numbers, text) != row[field.column]:
                    self.rounded[index] = f"{field.column} {row[field.column]!r} is written {text!r}"

    @cached_property
    def copies(self) -> list[list[int]]:
        """Groups of two or more rows with the same picture, byte by byte."""
        pictures = self.all_pictures
        groups = group_rows(look.sha256 if look.size else None for _, look in pictures).values()
        by_row = ([*dict.fromkeys(pictures[i][0] for i in group)] for group in groups)
        return [rows for rows in by_row if len(rows) > 1]

    @cached_property
    def placeholders(self) -> list[list[int]]:
        """Groups of rows of many products that share one picture, the largest first."""
        shared = [rows for rows in self.copies if len({self.ids[row] for row in rows}) >= PLACEHOLDER_PRODUCTS]
        return sorted(shared, key=lambda rows: -len(rows))

    @cached_property
    def near(self) -> list[tuple[int, int]]:
        """Pairs of rows whose pictures are alike without being the same bytes."""
        seen = [(row, look) for row, look in self.all_pictures if look.size]
        prints = bytes.fromhex("".join(look.fingerprint for _, look in seen))
        pairs = near_pairs(np.frombuffer(prints, np.uint8).reshape(-1, BITS // 8)).tolist()
        found = ((seen[a], seen[b]) for a, b in pairs if seen[a][1].sha256 != seen[b][1].sha256)
        return [*dict.fromkeys((one, other) for (one, _), (other, _) in found if one != other)]

    @cached_property
    def across(self) -> list[tuple[int, int]]:
        """Near pairs that straddle two splits."""
        return [(a, b) for a, b in self.near if self.splits[a] != self.splits[b]]

    @cached_property
    def outliers(self) -> dict[str, list[tuple[int, float]]]:
        """By number field: rows far from their category, each with that category's median; the furthest first."""
        return {name: self._outliers(name) for name in self.roles.columns("number")}

    def _outliers(self, name: str) -> list[tuple[int, float]]:
        numbers, by = self.values[name], self.roles.leading
        found = []
        for rows in self.categories(by).values() if by else [range(len(numbers))]:
            known = [row for row in rows if numbers[row] is not None]
            median = float(np.median([numbers[row] for row in known])) if known else 0.0
            if median > 0:  # where zero and negative numbers are the exception, a rule of their own names them
                known = [row for row in known if numbers[row] > 0]
            scores = modified_z([numbers[row] for row in known])
            found += [(float(scores[i]), known[i], median) for i in np.flatnonzero(scores > FAR).tolist()]
        return [(row, median) for _, row, median in sorted(found, key=lambda item: (-item[0], item[1]))]

    def categories(self, name: str) -> dict[str, list[int]]:
        """Rows of each value of a category field, the most frequent first."""
        return dict(sorted(group_rows(self.values[name]).items(), key=lambda item: (-len(item[1]), item[0])))

    def repeated(self, name: str) -> list[tuple[int, int]]:
        """Texts of a field that several products share: the first row and the number of products, most first."""
        products = [
            (rows[0], len({self.ids[row] for row in rows})) for rows in group_rows(self.values[name]).values()
        ]
        return sorted(((row, count) for row, count in products if count > 1), key=lambda pair: (-pair[1], pair[0]))


def read_facts(catalog: Catalog, prompt: PromptSpec, encoder: Encoder | None, progress: Progress = silent) -> Facts:
    """Read every row once, and the facts of its picture, which is not decoded.

    Raises CatalogError where the catalogue's files cannot be read or do not hold what `catalog.json` says.
    """
    facts, roles = Facts(catalog), catalog.card.roles
    facts.learnt = {field.column: field.absent for field in prompt.fields}
    wanted = [roles.id, *roles.fields, *roles.facts, *readable_inputs(prompt, catalog)]
    for split, batch in catalog.all_batches(dict.fromkeys(wanted)):
        for row in batch:
            facts.add(split, row, facts_of(roles, row))
            facts.add_text(row, prompt, encoder)
        progress("checking", len(facts), sum(catalog.card.rows.values()))
    return facts


def read_rejected(folder: Path) -> list[Rejected]:
    """Reasons of `rejected.parquet`, the most frequent first; none without the file. Raises CatalogError."""
    path = folder / "rejected.parquet"
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, list[tuple[str, str]]] = defaultdict(list)
    if not path.is_file():
        return []
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=["row", "id", "reason"]):
            for row in batch.to_pylist():
                reason, _, form = str(row["reason"]).partition(":")
                forms[reason][form.strip()] += 1
                if len(first[reason]) < NAMED_ROWS:
                    first[reason].append((f"row {row['row']} ({row['id']})", str(row["reason"])))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}): prepare the table again") from error
    found = [
        Rejected(reason, own.total(), tuple(pair for pair in own.most_common() if pair[0]), tuple(first[reason]))
        for reason, own in forms.items()
    ]
    return sorted(found, key=lambda one: (-one.count, one.reason))


def group_rows(values: Iterable[Any]) -> dict[Any, list[int]]:
    """Indices of each value that is not None, in order."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        if value is not None:
            groups[value].append(row)
    return groups


def modified_z(values: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """Modified z-scores [N], by median and median absolute deviation; on the log scale if all values are positive.

    Prices spread by factors, so a slipped decimal point stands out on the log scale and a dear product does not. Zero
    everywhere where there are fewer than `MIN_VALUES` values.
    """
    array = np.asarray(values, float)
    if array.size < MIN_VALUES:
        return np.zeros(array.size)
    if array.min() > 0:
        array = np.log(array)
    away = np.abs(array - np.median(array))
    deviation = float(np.median(away)) / 0.6745
    if deviation == 0:  # more than half are equal
        deviation = 1.253314 * float(away.mean())
    return away / deviation if deviation else away
