"""A table with pictures -> a catalogue.

    imageurl,product_code,title,category3_code,full_price
    https://shop.example/8043.jpg,8043,Check Scarf,ACCESSORIES,390.0

    catalogs/shop.work/   plan.json            what was asked for, and whether all rows are read
                          shards/00000.sqlite  1,000 rows each and what came of them (`records`)
    catalogs/shop/        the catalogue

Four passes, none of which holds the table: rows are read into shards; their pictures are fetched, decoded and
recorded; splits are assigned from short keys of all rows; rows and pictures go into the catalogue in the table's
order. The work folder stays, so that a later run asks only for what is missing or failed; it may be removed.
"""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from catalens.catalog.collecting import CollectSpec, collect, collect_on_ray
from catalens.catalog.downloading import DownloadSpec
from catalens.catalog.duplicates import near_pairs
from catalens.catalog.records import Shard, TableRow
from catalens.catalog.roles import Columns, guess_columns
from catalens.catalog.sources import Row, Source, open_source
from catalens.catalog.splits import DEFAULT_FRACTIONS, Ties, assign_splits, key
from catalens.catalog.storage import Catalog, CatalogCard, CatalogWriter, LeftOut, Roles, refuse_existing
from catalens.catalog.values import Numbers, read_picture, read_values
from catalens.config import Frozen
from catalens.errors import CatalogError, TooManyBadRowsError

SHARD_ROWS = 1000
TIED = "tied to products of two splits"

Progress = Callable[[str, int, int | None, str], None]
"""Called with a stage's name, rows done, rows in all where known, and failures by reason."""


class PrepareSpec(Frozen):
    """How a table becomes a catalogue."""

    fractions: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    """Shares of train, validation and test."""
    max_bad: float = 0.05
    """Largest share of rows that may be left out."""
    numbers: Numbers = Numbers()
    download: DownloadSpec = DownloadSpec()
    max_side: int | None = None
    """Longest side of a stored picture in pixels; unset: as it came."""
    encoding: str | None = None
    delimiter: str | None = None
    engine: Literal["local", "ray"] = "local"
    """Where shards are worked on; the result is the same."""


@dataclass(frozen=True)
class _Keys:
    """Short keys of all rows with a picture."""

    ties: Ties
    categories: tuple[str, ...]
    """Names of the categories by their numbers in `ties`."""
    integers: tuple[str, ...]
    """Number columns in which every value is whole."""


def prepare(
    where: str,
    out: Path | str | None = None,
    columns: Columns | None = None,
    spec: PrepareSpec | None = None,
    retry_failed: bool = False,
    progress: Progress = lambda stage, done, total, note: None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Path, CatalogCard]:
    """Make the catalogue `out`, by default `catalogs/<name of the source>`, of any source of `open_source`.

    Goes on from where an earlier run with the same settings was stopped; `retry_failed` asks again for pictures that
    failed. `tell` hears what was guessed and found. Raises CatalogError where the table cannot be read, lacks a
    column or has no rows, or where `out` is something else; RecipeError where a column's role cannot be told; and
    TooManyBadRowsError above `max_bad` or where no row is left, with what was fetched kept.
    """
    spec = spec or PrepareSpec()
    source = open_source(where, spec.encoding, spec.delimiter)
    if source.told:
        tell(source.told)
    out = Path(out) if out else Path("catalogs") / source.name
    columns = _columns(source, columns or Columns(), spec.numbers, tell)
    work = _Work(out, source, columns, spec)
    if retry_failed:
        tell(f"{work.forget_failed()} rows failed before and are asked for again")
    elif (done := work.finished()) is not None:
        tell(f"{out} is complete; --retry failed asks again for the {sum(done.left_out.values())} rows left out")
        return out, done
    work.read(progress)
    work.collect(progress)
    return out, work.write(progress, tell)


def _columns(source: Source, given: Columns, numbers: Numbers, tell: Callable[[str], None]) -> Columns:
    first = source.first(given.image, given.id, *given.fields)
    columns = guess_columns(source.columns, first, given, numbers)
    flags = {columns.image: "--image", columns.id: "--id"} | {
        name: f"--{kind}" for name, kind in columns.fields.items()
    }
    guessed = {name for name in flags if name not in (given.image, given.id, *given.fields)}
    if guessed:
        said = " ".join(f"{flag} {name}" for name, flag in flags.items() if name in guessed)
        tell(f"guessed from names and values: {said}")
    return columns


class _Work:
    """The work folder of a catalogue, and the passes over it."""

    def __init__(self, out: Path, source: Source, columns: Columns, spec: PrepareSpec) -> None:
        self.out, self.source, self.spec = out, source, spec
        self.image = str(columns.image)
        self.roles = Roles(id=str(columns.id), fields=dict(columns.fields))
        self.folder = out.with_name(f"{out.name}.work")
        self._plan_file = self.folder / "plan.json"
        asked = {
            "source": source.where,
            "version": source.version,
            "image": self.image,
            "roles": self.roles.model_dump(mode="json"),
            **spec.model_dump(mode="json", include={"numbers", "max_side", "encoding", "delimiter"}),
        }
        try:
            self.plan: dict[str, Any] = json.loads(self._plan_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            refuse_existing(out)
            self.plan = {"asked": asked, "rows": None}
        except (OSError, ValueError) as error:
            raise CatalogError(f"{self._plan_file} cannot be read: remove {self.folder} to start again") from error
        if self.plan["asked"] != asked:
            raise CatalogError(
                f"{self.folder} is of another table or other settings ({_difference(self.plan['asked'], asked)}): "
                "choose another --out, or remove it to start again"
            )

    def finished(self) -> CatalogCard | None:
        """The card of the catalogue, where it is complete and split as asked."""
        if not (self.out / "catalog.json").is_file():
            return None
        card = Catalog(self.out).card
        return card if card.provenance.get("fractions") == dict(self.spec.fractions) else None

    def forget_failed(self) -> int:
        """Forget what failed; how many rows that were."""
        total = 0
        for path in self._shards():
            with Shard(path) as shard:
                total += shard.forget_failed()
        return total

    def read(self, progress: Progress) -> None:
        """Read the table into shards, from where an earlier run was stopped."""
        if self.plan["rows"] is not None:
            return
        (self.folder / "shards").mkdir(parents=True, exist_ok=True)
        self._save_plan()
        read = SHARD_ROWS * len(self._shards())
        rows = itertools.islice(enumerate(self.source.rows(), start=1), read, None)
        while batch := [self._row(number, row) for number, row in itertools.islice(rows, SHARD_ROWS)]:
            Shard.write(self.folder / "shards" / f"{read // SHARD_ROWS:05d}.sqlite", batch)
            read += len(batch)
            progress("reading", read, None, "")
        self.plan["rows"] = read
        progress("reading", read, read, "")
        self._save_plan()

    def collect(self, progress: Progress) -> None:
        """Give every row a record."""
        done = 0
        for path in self._shards():
            with Shard(path) as shard:
                done += shard.done()
        total = self.plan["rows"]
        progress("pictures", done, total, "")
        run = collect_on_ray if self.spec.engine == "ray" else collect
        asked = CollectSpec(base=self.source.base, download=self.spec.download, max_side=self.spec.max_side)

        def heard(more: int, failures: Mapping[str, int]) -> None:
            worst = sorted(failures.items(), key=lambda item: -item[1])[:3]
            progress("pictures", done + more, total, ", ".join(f"{count} {reason}" for reason, count in worst))

        run(self._shards(), asked, heard)

    def write(self, progress: Progress, tell: Callable[[str], None]) -> CatalogCard:
        """Assign splits and write the catalogue, in the place of an earlier one."""
        keys = self._keys()
        kept, total = len(keys.ties.products), self.plan["rows"]
        if not kept or total - kept > self.spec.max_bad * total:
            allowed = f"more than --max-bad {self.spec.max_bad * 100:g}%" if kept else "no row is left"
            raise TooManyBadRowsError(
                f"{total - kept} of {total} rows of {self.source.where} cannot be used, {allowed}: {self._reasons()}"
            )
        assigned = assign_splits(keys.ties, self.spec.fractions)
        splits = iter(assigned)
        provenance = {
            "command": "prepare",
            "table": Path(self.source.where).name if "://" not in self.source.where else self.source.where,
            "version": self.source.version,
            "image_column": self.image,
            "fractions": dict(self.spec.fractions),
        }
        floats = [name for name in self.roles.columns("number") if name not in keys.integers]
        with CatalogWriter(self.out, self.roles, provenance, keys.integers, replace=True) as writer:
            for row, stored in self._results():
                left_out = LeftOut(row=row.number, id=row.id, url=row.picture, reason=row.reason or TIED)
                if stored is None or (split := next(splits)) is None:
                    writer.leave_out(left_out)
                else:
                    writer.add(split, stored, row.id, {**row.fields, **{n: float(row.fields[n]) for n in floats}})
                progress("storing", row.number, total, "")
        if rare := _rare(keys, assigned, [split for split, share in self.spec.fractions.items() if share]):
            tell(f"categories too rare to be in every split: {rare}")
        tell(f"{self.folder} keeps what was fetched for a later run; it may be removed")
        return writer.card

    def _row(self, number: int, row: Row) -> TableRow:
        if isinstance(row, str):
            return TableRow(number, "", {}, "", reason=row)
        id, fields, reason = read_values(row, self.roles, self.spec.numbers)
        picture, embedded = read_picture(row.get(self.image))
        if reason is None and not picture and embedded is None:
            reason = f"no value in {self.image!r}"
        return TableRow(number, id, fields, picture, embedded, reason)

    def _keys(self) -> _Keys:
        products, contents, categories, prints = array("Q"), array("Q"), array("q"), bytearray()
        column = self.roles.leading
        numbered: dict[str, int] = {}
        broken: set[str] = set()
        numbers = self.roles.columns("number")
        for path in self._shards():
            with Shard(path) as shard:
                for id, fields, sha256, fingerprint in shard.keys_of_pictures():
                    products.append(key(id))
                    contents.append(int.from_bytes(sha256[:8], "big"))
                    prints += fingerprint
                    categories.append(numbered.setdefault(fields[column], len(numbered)) if column else 0)
                    broken |= {name for name in numbers if not isinstance(fields[name], int)}
        ties = Ties(
            np.array(products, np.uint64),
            np.array(contents, np.uint64),
            near_pairs(np.array(prints, np.uint8).reshape(-1, 32)),
            np.array(categories, np.intp),
        )
        return _Keys(ties, tuple(numbered), tuple(name for name in numbers if name not in broken))

    def _reasons(self) -> str:
        """Counts by reason, the most frequent first, then some rows."""
        counts: Counter[str] = Counter()
        some: list[str] = []
        for row, stored in self._results():
            if stored is None:
                counts[str(row.reason).split(":")[0]] += 1
                if len(some) < 5:
                    some.append(f"row {row.number} ({row.id}): {row.reason}")
        return (
            f"{', '.join(f'{count} {reason}' for reason, count in counts.most_common())}; such as {'; '.join(some)}"
        )

    def _results(self) -> Iterator[tuple[TableRow, bytes | None]]:
        for path in self._shards():
            with Shard(path) as shard:
                yield from shard.results()

    def _shards(self) -> Sequence[Path]:
        return sorted((self.folder / "shards").glob("*.sqlite"))

    def _save_plan(self) -> None:
        aside = self._plan_file.with_suffix(".partial")
        aside.write_text(json.dumps(self.plan, indent=2) + "\n", encoding="utf-8")
        aside.rename(self._plan_file)


def _rare(keys: _Keys, assigned: Sequence[str | None], splits: Sequence[str]) -> str:
    """Categories that some split has no row of, with their rows; empty where there are none."""
    counts = Counter(zip(keys.ties.categories.tolist(), assigned, strict=True))
    rows = {number: [counts[number, split] for split in splits] for number in range(len(keys.categories))}
    rare = [f"{keys.categories[number]} ({sum(found)})" for number, found in rows.items() if not all(found)]
    return ", ".join(rare[:10]) + (f" and {len(rare) - 10} more" if len(rare) > 10 else "")


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(name for name in other if one.get(name) != other[name])
