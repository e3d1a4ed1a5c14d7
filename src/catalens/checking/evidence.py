"""What is wrong with a catalogue, worst first, each with its rows and the fix.

    error    4 products are in more than one split     train row 7 (10432877), test row 2 (10432877), ...
    warning  12 numbers stand far from their category  train row 31 (10577): full_price 11,990 in BAGS, median 1,250
    note     38 titles stand more than once

An error makes a run's scores false or stops it; a warning makes the model worse; a note is good to know.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalens.catalog.duplicates import BITS, near_pairs
from catalens.catalog.scan import Scan
from catalens.catalog.storage import CatalogCard
from catalens.checking.distributions import FAR, modified_z
from catalens.checking.scanning import Description
from catalens.errors import CatalogError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

NAMED_ROWS = 10
PLACEHOLDER_PRODUCTS = 3
"""Products that share one picture from which it is taken for a placeholder."""


@dataclass(frozen=True)
class Named:
    """A row that a finding names."""

    row: str
    """`train row 7 (10432877)`"""
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """One problem."""

    severity: Severity
    title: str
    why: str
    """What it does to a run."""
    fix: str
    count: int
    """Rows concerned."""
    rows: tuple[Named, ...] = ()
    """The first `NAMED_ROWS` of them."""


@dataclass(frozen=True)
class Rejection:
    """Rows that were left out for one reason."""

    reason: str
    """What stands before the first colon."""
    count: int
    forms: tuple[tuple[str, int], ...]
    """What stands after it, with the number of rows, the most frequent first."""
    rows: tuple[tuple[str, str], ...]
    """Name and whole reason of the first rows."""


class Evidence:
    """What the rules look at: the scan, and what several of them need from it."""

    def __init__(
        self, card: CatalogCard, scan: Scan, described: Sequence[Description], rejections: Sequence[Rejection]
    ) -> None:
        self.card, self.scan, self.rejections = card, scan, rejections
        self.problems = {row: its.problem for row, its in enumerate(described) if its.problem}
        """By row: why training would leave it out."""
        self.rounded = {row: its.rounded for row, its in enumerate(described) if its.rounded}
        """By row: which number loses digits."""

    @cached_property
    def decoded(self) -> NDArray[np.intp]:
        """Rows whose picture can be decoded."""
        return np.array([row for row, look in enumerate(self.scan.pictures) if look.size], np.intp)

    @cached_property
    def copies(self) -> list[list[int]]:
        """Groups of two or more rows with the same picture, byte by byte."""
        groups: dict[bytes, list[int]] = defaultdict(list)
        for row in self.decoded.tolist():
            groups[self.scan.pictures[row].digest].append(row)
        return [rows for rows in groups.values() if len(rows) > 1]

    @cached_property
    def placeholders(self) -> list[list[int]]:
        """Groups of rows of many products that share one picture, the largest first."""
        shared = [rows for rows in self.copies if len(self.products(rows)) >= PLACEHOLDER_PRODUCTS]
        return sorted(shared, key=lambda rows: -len(rows))

    @cached_property
    def near(self) -> list[tuple[int, int]]:
        """Pairs of rows whose pictures are alike without being the same bytes."""
        looks = self.scan.pictures
        prints = b"".join(looks[row].fingerprint for row in self.decoded)
        pairs = self.decoded[near_pairs(np.frombuffer(prints, np.uint8).reshape(-1, BITS // 8))]
        return [(a, b) for a, b in pairs.tolist() if looks[a].digest != looks[b].digest]

    @cached_property
    def across(self) -> list[tuple[int, int]]:
        """Those of the near pairs that straddle two splits."""
        return [(a, b) for a, b in self.near if self.scan.splits[a] != self.scan.splits[b]]

    @cached_property
    def outliers(self) -> dict[str, list[tuple[int, float]]]:
        """By number field: rows far from their category, each with that category's median; the furthest first."""
        return {name: _outlying(self, name) for name in self.scan.roles.columns("number")}

    def categories(self, name: str) -> dict[str, list[int]]:
        """Rows of each value of a category field, the most frequent first."""
        groups: dict[str, list[int]] = defaultdict(list)
        for row, value in enumerate(self.scan.values[name]):
            if value is not None:
                groups[value].append(row)
        return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))

    def repeated(self, name: str) -> list[tuple[int, int]]:
        """Texts of a field that several products share: the first row and the number of products, most first."""
        products: dict[str, dict[str, int]] = defaultdict(dict)
        for row, value in enumerate(self.scan.values[name]):
            if value is not None:
                products[value].setdefault(self.scan.ids[row], row)
        shared = [(next(iter(rows.values())), len(rows)) for rows in products.values() if len(rows) > 1]
        return sorted(shared, key=lambda pair: (-pair[1], pair[0]))

    def products(self, rows: Sequence[int]) -> set[str]:
        """Product ids of rows."""
        return {self.scan.ids[row] for row in rows}

    def splits(self, rows: Sequence[int]) -> set[str]:
        """Splits of rows."""
        return {self.scan.splits[row] for row in rows}

    def finding(
        self, severity: Severity, title: str, why: str, fix: str, rows: Sequence[int], details: Iterable[str] = ()
    ) -> list[Finding]:
        """The finding about rows of the scan, with a detail for each of the first of them; none without rows."""
        names = [self.scan.name(row) for row in rows[:NAMED_ROWS]]
        named = zip_longest(names, islice(details, len(names)), fillvalue="")
        return [Finding(severity, title, why, fix, len(rows), tuple(Named(*one) for one in named))] if rows else []


def _outlying(evidence: Evidence, name: str) -> list[tuple[int, float]]:
    numbers = evidence.scan.values[name]
    by = evidence.scan.roles.leading
    groups = list(evidence.categories(by).values()) if by else [list(range(len(numbers)))]
    found = []
    for rows in groups:
        known = [row for row in rows if numbers[row] is not None]
        median = float(np.median([numbers[row] for row in known])) if known else 0.0
        if median > 0:  # where zero and negative numbers are the exception, a rule of their own names them
            known = [row for row in known if numbers[row] > 0]
        scores = modified_z([numbers[row] for row in known])
        found += [(float(scores[i]), known[i], median) for i in np.flatnonzero(scores > FAR).tolist()]
    return [(row, median) for _, row, median in sorted(found, key=lambda item: (-item[0], item[1]))]


def read_rejections(catalog: Path, named: int) -> list[Rejection]:
    """Reasons of `rejected.parquet`, the most frequent first; none without the file. Raises CatalogError."""
    path = catalog / "rejected.parquet"
    if not path.is_file():
        return []
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["row", "id", "reason"]):
                for row in batch.to_pylist():
                    reason, _, form = str(row["reason"]).partition(":")
                    forms[reason][form.strip()] += 1
                    if len(rows[reason]) < named:
                        rows[reason].append((f"row {row['row']} ({row['id']})", str(row["reason"])))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}): prepare the table again") from error
    found = [
        Rejection(
            reason, counts.total(), tuple((form, n) for form, n in counts.most_common() if form), tuple(rows[reason])
        )
        for reason, counts in forms.items()
    ]
    return sorted(found, key=lambda rejection: (-rejection.count, rejection.reason))
