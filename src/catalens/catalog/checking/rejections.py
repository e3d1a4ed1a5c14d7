"""What did not make it into a catalogue, grouped by reason, every rejected form shown.

    {"row": 17, "id": "10432877", "reason": "not a number in 'full_price': '1.299,00 EUR'"}

becomes, with its like, `not a number in 'full_price'`: 12 rows, of which 9 hold '1.299,00 EUR' and 3 'on request'.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalens.errors import CatalogError

FILE = "rejected.parquet"


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


def read_rejections(catalog: Path, named: int) -> list[Rejection]:
    """Reasons of `rejected.parquet`, the most frequent first; none without the file. Raises CatalogError."""
    path = catalog / FILE
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
