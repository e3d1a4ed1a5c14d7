"""The catalogue on disk: a folder that `datasets.load_dataset(folder)` opens as it is.

    catalogs/demo/
      data/train-00000-of-00001.parquet   {"image": {"bytes": ..., "path": ...}, "product_code": "10432877",
      data/validation-00000-of-...         "title": "Striped Red Tote Bag", "category3_code": "BAGS",
      data/test-00000-of-...               "full_price": 129.0,
                                           "image_facts": {"sha256": "9f86d0...", "width": 300, "height": 375, ...}}
                                          "image_2", ... where rows have several pictures, null where one lacks them
      catalog.json                        roles, provenance, content hash, counts, what was left out and why
      rejected.parquet                    the rows that were left out, if any: row, id, reason
      README.md                           dataset card

`writer.py` writes it.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from catalens.catalog.pictures import PictureFacts, picture_facts
from catalens.config import Frozen, Kind
from catalens.errors import CatalogError

SPLITS = ("train", "validation", "test")
GROUP_BYTES = 16 * 2**20
BATCH_ROWS = 256
BUFFER_BYTES = 2**18
GROUPS_KEPT = 2
"""Row groups in memory of which pictures are read."""
FACTS = "image_facts"
"""Column of the facts of a row's picture; formats before 2 lack it."""
FACT_TYPES = {
    **dict.fromkeys(("sha256", "format", "fingerprint", "reason"), "string"),
    **dict.fromkeys(("stored", "width", "height", "brightness"), "int64"),
    **dict.fromkeys(("transparent", "position"), "bool"),
}


class Roles(Frozen):
    """Roles of a catalogue's columns."""

    id: str
    """Column that names the product; rows that share it are variants of one product."""
    fields: dict[str, Kind]
    """Columns to learn, with their kinds."""
    image: str = "image"
    """Column of the picture, an Image feature of Hugging Face datasets."""
    pictures: int = Field(default=1, ge=1)
    """Most pictures of a row; the further ones are in columns of their own, `image_2`, ..."""
    inputs: tuple[str, ...] = ()
    """Text columns that a question may give to the model."""

    def columns(self, kind: Kind) -> list[str]:
        """Columns of a kind."""
        return [name for name, own in self.fields.items() if own == kind]

    @property
    def images(self) -> list[str]:
        """Columns of the pictures, in their order."""
        return [self.image, *(f"{self.image}_{number}" for number in range(2, self.pictures + 1))]

    @property
    def facts(self) -> list[str]:
        """Columns of the facts of the pictures, in the same order."""
        return [FACTS, *(f"{name}_facts" for name in self.images[1:])]

    @property
    def names(self) -> list[str]:
        """All columns: pictures, id, fields, inputs."""
        return [*self.images, self.id, *self.fields, *self.inputs]

    @property
    def leading(self) -> str | None:
        """The first category column: numbers are compared within its categories."""
        return next(iter(self.columns("category")), None)


class RejectedRow(Frozen):
    """A row that did not make it into the catalogue."""

    row: int
    """Number of the row in its table, the first being 1."""
    id: str
    """Its product id, as far as known."""
    reason: str
    """In words; what stands before the first colon is what summaries count by."""
    url: str = ""
    """URL or path of its picture, as the table has it."""


class CatalogCard(Frozen):
    """`catalog.json`."""

    format: Literal[1, 2] = 2
    """1: without the facts of pictures."""
    name: str
    roles: Roles
    provenance: dict[str, Any]
    """Origin of the rows: the command's settings, the source and its hash."""
    rows: dict[str, int]
    """Rows by split."""
    products: dict[str, int]
    """Distinct products by split."""
    integer_fields: tuple[str, ...] = ()
    """Number columns stored as int64: their text has no decimal point."""
    content_hash: str
    """SHA-256 over all rows in order: split, id, fields and picture bytes; independent of Parquet's encoding."""
    left_out: dict[str, int] = {}
    """Rows left out, by reason; each is named in `rejected.parquet`."""
    figures: dict[str, float] = {}
    """Figures that belong to the data, such as the noise floor of a drawn catalogue."""


def refuse_double_roles(roles: Roles) -> None:
    """Raise CatalogError where one column would stand for two things in the catalogue."""
    names = [*roles.names, *roles.facts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CatalogError(f"column {twice!r} has two roles in the catalogue: rename it in the table")


def kind_of_reason(reason: str) -> str:
    """The words by which reasons are counted: of `stable words: details` the first, of a picture what is wrong."""
    first, _, rest = reason.partition(": ")
    if first not in ("picture", "picture cannot be read"):
        return first
    return re.split(r"[:(;]| in one of ", rest)[0].strip()


class Catalog:
    """A catalogue on disk, opened for reading."""

    def __init__(self, folder: Path | str) -> None:
        """Raises CatalogError where the folder is no catalogue."""
        self.folder = Path(folder)
        path = self.folder / "catalog.json"
        try:
            self.card = CatalogCard.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CatalogError(
                f"{self.folder} is not a catalogue (no catalog.json): make one with `catalens prepare` or "
                "`catalens sample`"
            ) from error
        except ValidationError as error:
            raise CatalogError(f"{path}: not a catalogue of format 1 or 2: prepare the table again") from error

    def files(self, split: str) -> list[Path]:
        """Files of a split, in order."""
        return sorted((self.folder / "data").glob(f"{split}-*.parquet"))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn whatever reading the files raises into one sentence."""
        try:
            yield
        except (OSError, TypeError, KeyError, pa.ArrowException) as error:
            raise CatalogError(f"{self.folder}/data: cannot be read ({error}): prepare the table again") from error

    def rows(self, split: str, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """All that `batches` yields, in one list."""
        return [row for batch in self.batches(split, columns) for row in batch]

    def picture_facts(self, split: str) -> list[PictureFacts]:
        """Facts of a split's pictures, in the order of the rows; none is read, but of a catalogue of format 1."""
        return [row[FACTS] for row in self.rows(split, [FACTS])]

    def all_batches(self, columns: Iterable[str] | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(split, rows) of all splits that have rows, as `batches` yields them."""
        for split in SPLITS:
            if self.card.rows.get(split):
                yield from ((split, batch) for batch in self.batches(split, columns))

    def batches(self, split: str, columns: Iterable[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """Rows of a split as dicts, some hundreds at a time.

        Wanted are by default picture, id and fields; the picture is encoded bytes. `FACTS` may be wanted as well.
        Raises CatalogError where the split or a column does not exist, the split is empty, or rows are not there.
        """
        if not self.card.rows.get(split):
            having = ", ".join(name for name, count in self.card.rows.items() if count)
            raise CatalogError(f"{self.folder}: split {split!r} has no rows; splits with rows: {having}")
        roles = self.card.roles
        known = roles.names
        wanted = list(known if columns is None else columns)
        if missing := [name for name in wanted if name not in (*known, *roles.facts)]:
            raise CatalogError(f"{self.folder}: no column {missing[0]!r}; columns are {', '.join(known)}")
        in_file = {roles.image if name == FACTS and self.card.format == 1 else name for name in wanted}
        found = 0
        with self.reading():
            for file in self.files(split):
                with open_parquet(file) as parquet:
                    for batch in group_batches(parquet, range(parquet.num_row_groups), [*in_file]):
                        rows = self._completed(batch.to_pylist(), wanted)
                        found += len(rows)
                        yield rows
        if found != (counted := self.card.rows[split]):
            raise CatalogError(
                f"{self.folder}/data: {found} {split} rows, but {counted} in catalog.json: prepare the table again"
            )

    def _completed(self, rows: list[dict[str, Any]], wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows as they are stored -> with the wanted columns, pictures as bytes, facts as objects."""
        roles = self.card.roles
        image = roles.image
        for name in (name for name in roles.images if name in rows[0]):
            for row in rows:
                row[name] = (row[name] or {}).get("bytes") or b""
        if FACTS in wanted and self.card.format == 1:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for row, facts in zip(rows, pool.map(picture_facts, [row[image] for row in rows]), strict=True):
                    row[FACTS] = facts
        else:
            for name in (name for name in roles.facts if name in wanted):
                for row in rows:
                    row[name] = row[name] and PictureFacts(**row[name])
        return [{name: row[name] for name in wanted} for row in rows]


class Pictures(Sequence[bytes]):
    """Encoded pictures of a column of a split, by row; each is read when it is asked for, with its row group.

    Raises CatalogError where they cannot be read.
    """

    def __init__(self, catalog: Catalog, split: str, column: str | None = None) -> None:
        self._catalog, self._column = catalog, f"{column or catalog.card.roles.image}.bytes"
        self._groups: list[tuple[Path, int]] = []
        self._ends = [0]
        with catalog.reading():
            for file in catalog.files(split):
                with open_parquet(file) as parquet:
                    for number in range(parquet.num_row_groups):
                        self._groups.append((file, number))
                        self._ends.append(self._ends[-1] + parquet.metadata.row_group(number).num_rows)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: Any) -> Any:
        group = bisect_right(self._ends, row) - 1
        with self._catalog.reading():
            pictures = _pictures(*self._groups[group], self._column, self._catalog.card.content_hash)
        return pictures[row - self._ends[group]].as_py() or b""


@lru_cache(GROUPS_KEPT)
def _pictures(file: Path, number: int, column: str, content_hash: str) -> pa.Array:
    with open_parquet(file) as parquet:
        return parquet.read_row_group(number, [column], use_threads=False).column(0).combine_chunks().field("bytes")


def open_parquet(file: Path | IO[bytes]) -> pq.ParquetFile:
    """Open a Parquet file; by default Arrow reads a whole row group at once, and keeps all that it has read."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True)


def group_batches(
    parquet: pq.ParquetFile, groups: Iterable[int], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of row groups, some hundreds of rows or some megabytes at a time, however large the groups are."""
    for number in groups:
        group = parquet.metadata.row_group(number)
        wanted = min(BATCH_ROWS, group.num_rows * GROUP_BYTES // max(1, group.total_byte_size))
        yield from parquet.iter_batches(max(1, wanted), row_groups=[number], columns=columns)


def facts_of(roles: Roles, row: Mapping[str, Any]) -> list[PictureFacts]:
    """Facts of all pictures of a row that was read with the columns of them."""
    return [row[name] for name in roles.facts if row[name] is not None]
