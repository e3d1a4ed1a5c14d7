"""A table with pictures -> a catalogue.

    imageurl,product_code,title,category3_code,full_price
    https://shop.example/8043.jpg,8043,Check Scarf,ACCESSORIES,390.0

    catalogs/shop.work/   journal.sqlite   the rows, and what came of their pictures
    catalogs/shop/        the catalogue

Four passes, none of which holds the table: rows are read into the journal; their pictures are fetched, decoded and
recorded; splits are assigned from short keys of all rows; rows and pictures go into the catalogue in the table's
order. The work folder stays, so that a later run, also of a table or flags that have changed, asks only for pictures
that it has not seen; it may be removed.
"""

import asyncio
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from catalens.catalog.duplicates import near_pairs
from catalens.catalog.folder import manifest, occupied, recover, refuse_taken
from catalens.catalog.pictures import PictureFacts, picture_facts
from catalens.catalog.splits import DEFAULT_FRACTIONS, Ties, assign_splits, key
from catalens.catalog.storage import GROUP_BYTES, Catalog, CatalogCard, RejectedRow, kind_of_reason
from catalens.catalog.writer import CatalogWriter
from catalens.config import Kind
from catalens.errors import CatalogError, TooManyBadRowsError
from catalens.files import locked, writing
from catalens.preparing.collect import CollectSpec, collect, picture_key
from catalens.preparing.download import Downloader
from catalens.preparing.journal import TableJournal
from catalens.progress import Progress, silent
from catalens.reading.opening import open_source
from catalens.reading.roles import Columns
from catalens.reading.source import Source
from catalens.reading.table import SPARE, Notice, Table, TableRow, TableSpec, local_base

MAX_SOURCE = 200
"""Characters that are shown of a URL or path."""
BATCH_ROWS = 1000
"""Rows that are written down together, or fewer with `GROUP_BYTES` of pictures that came with them."""
TIED = "tied to products of two splits"
TIED_FIX = "give variants of one product one id, or raise --max-bad to leave them out"


class PrepareSpec(CollectSpec):
    """Settings of `prepare`; `base` is that of the source."""

    fractions: dict[str, float] | None = None
    """Shares of train, validation and test; unset: the splits that the source has, or 0.8, 0.1, 0.1."""
    max_bad: float = 0.05
    """Largest share of rows that may be left out."""
    table: TableSpec = TableSpec()
    image_root: str | None = None
    """Folder or URL that picture paths are relative to, in the place of the table's."""


def prepare(
    where: str | Source,
    out: Path | str | None = None,
    columns: Columns | None = None,
    spec: PrepareSpec | None = None,
    retry_failed: bool = False,
    progress: Progress = silent,
    notice: Notice = lambda text: None,
) -> tuple[Path, CatalogCard]:
    """Make the catalogue `out`, by default `catalogs/<name of the source>`, of a source or what `open_source` takes.

    Goes on from where an earlier run was stopped, and keeps the pictures of earlier runs whatever else is asked;
    `retry_failed` asks again for those that failed. `notice` hears what was guessed and found. Raises CatalogError
    where the table cannot be read, lacks a column or has no rows, where `out` is something else, or another process
    is at it; RecipeError where a column's role cannot be told; and TooManyBadRowsError above `max_bad` or where no
    row is left, with what was fetched kept.
    """
    spec, given = spec or PrepareSpec(), columns or Columns()
    source = where if isinstance(where, Source) else open_source(where, spec.table)
    out = Path("catalogs") / source.name if out is None else Path(out)
    table = Table.of(source, given, spec.table, notice, lambda name, some: _are_pictures(name, some, spec, notice))
    with _held_journal(out) as journal:
        work = _Work(out, table, spec, journal, notice)
        work.read(progress)
        if retry_failed:
            notice(f"{journal.forget_failed()} rows failed before and are asked for again")
        elif (done := work.finished()) is not None:
            left_out = sum(done.left_out.values())
            notice(f"{out} is complete; --retry failed asks again for the {left_out} rows left out")
            return out, done
        collect(journal, work.spec, progress, notice)
        return out, work.write(progress)


def _are_pictures(column: str, addresses: Sequence[str], spec: PrepareSpec, notice: Notice) -> bool:
    """Ask for some addresses of a column, and tell whether most of them are pictures."""

    async def fetched() -> list[bytes | None]:
        async with Downloader(spec.download.model_copy(update={"retries": 0})) as downloader:
            return [(await downloader.fetch(address)).body for address in addresses]

    found = sum(1 for body in asyncio.run(fetched()) if body and not picture_facts(body).reason)
    notice(f"{column}: {found} of {len(addresses)} addresses that were asked for are pictures")
    return found * 2 > len(addresses)


@contextmanager
def _held_journal(out: Path) -> Iterator[TableJournal]:
    """The journal in the work folder of a catalogue, held by this process until the block ends."""
    if out.name in ("", ".."):
        refuse_taken(out)
    folder = out.with_name(f"{out.name}.work")
    with ExitStack() as held:
        with writing(folder):
            if not held.enter_context(locked(folder)):
                raise CatalogError(
                    f"{folder} is being worked on by another process: wait for it or choose another --out"
                )
            recover(out)
            path = folder / "journal.sqlite"
            if not path.is_file():
                refuse_taken(out)
                if occupied(folder):
                    raise CatalogError(f"{folder} is in the way: move it away or choose another --out")
        anew = f"remove {folder} to start again"
        if occupied(out):
            anew += f", and {out} too, or choose another --out"
        yield held.enter_context(TableJournal.open(path, anew))


class _Work:
    """The passes over a journal."""

    def __init__(self, out: Path, table: Table, spec: PrepareSpec, journal: TableJournal, notice: Notice) -> None:
        self.table, self.source, self.roles = table, table.source, table.roles
        beside = local_base(table.source, None) if spec.image_root else None
        self.spec = spec.model_copy(update={"base": local_base(table.source, spec.image_root), "beside": beside})
        self.out, self.journal, self._notice = out, journal, notice
        self._asked = table.asked
        source, own = table.source, table.source.splits
        self.shares = dict(spec.fractions or DEFAULT_FRACTIONS)
        self.keeps_splits = bool(own) and spec.fractions is None
        if self.keeps_splits:
            notice(f"splits are those of {source.where}: {', '.join(own)}; --splits draws others")
            if "validation" not in own:  # training has to choose its best checkpoint by something
                rest = self.shares["train"] + self.shares["validation"]
                self.shares = {name: self.shares[name] / rest for name in ("train", "validation")} | {"test": 0.0}
                notice("validation rows are drawn from its train rows")
        elif own:
            notice(f"splits of {source.where} ({', '.join(own)}) are pooled, and drawn anew by --splits")
        here = "://" not in source.where and Path(source.where).exists()
        where = str(Path(source.where).absolute()) if here else source.where
        if (before := journal.state("table")) not in ({}, {"where": where}):
            raise CatalogError(
                f"{journal.path.parent} is of another table ({before.get('where')}): choose another --out, or remove "
                "it to start again"
            )
        refuse_taken(out, journal)
        journal.note("table", {"where": where})

    def finished(self) -> CatalogCard | None:
        """The card of the catalogue, where it is complete and as asked."""
        done = self.journal.state("complete")
        pictures, recorded = self.journal.pictures(self.spec.made)
        if recorded < pictures or done.get("asked") != self._complete or not occupied(self.out):
            return None
        if manifest(self.out) != done.get("manifest"):
            return None
        card = Catalog(self.out).card
        return card if self._few(sum(card.left_out.values())) else None

    @property
    def _complete(self) -> dict[str, Any]:
        return {
            "rows": self._asked,
            "made": self.spec.made,
            "fractions": [[split, share] for split, share in self.shares.items()],  # their order counts
            "keeps_splits": self.keeps_splits,
        }

    def _few(self, bad: int) -> bool:
        spare = sum(map(self.journal.spare, SPARE))
        return bad - spare <= self.spec.max_bad * (self.journal.total() - spare)

    def read(self, progress: Progress) -> None:
        """Read the table into the journal, unless it is there as it is now."""
        before = self.journal.state("asked")
        if before == self._asked:
            self.journal.readdress(lambda picture: picture_key(picture, None, self.spec))
            return
        if before:
            other = ", ".join(name for name in self._asked if before.get(name) != self._asked[name])
            self._notice(f"read anew, for another {other}; pictures that are there are kept")
        self.journal.read(self._batches(progress), self._asked)

    def _batches(self, progress: Progress) -> Iterator[list[tuple[TableRow, str | None]]]:
        """Rows with the keys of their pictures, some at a time."""
        batch: list[tuple[TableRow, str | None]] = []
        read = size = 0
        largest = self.spec.download.max_bytes
        for read, row in enumerate(self.table.rows(self._notice), start=1):
            if row.embedded is not None and len(row.embedded) > largest:
                row = replace(row, fields={}, embedded=None, reason=f"too large: more than {largest:,} bytes")
            key = None if row.reason else picture_key(row.picture, row.embedded, self.spec)
            batch.append((row, key))
            size += len(row.embedded or b"")
            if len(batch) == BATCH_ROWS or size >= GROUP_BYTES:
                yield batch
                progress("reading", read)
                batch, size = [], 0
        yield batch
        progress("reading", read, read)
        if self.source.changed():
            raise CatalogError(f"{self.source.where} changed while it was read: give the same command again")

    def write(self, progress: Progress) -> CatalogCard:
        """Assign splits and write the catalogue, in the place of an earlier one."""
        total = self.journal.total()
        ties, names, integers, own, before = self._keys()
        shares = self.shares
        kept = before if self.journal.state("shares") == shares else [None] * len(own)  # other shares: all anew
        if self.keeps_splits:
            drawn = "validation" not in self.source.splits
            earlier = [None if split == "test" else split for split in kept] if drawn else own
            kept = [two if one == "train" else one for one, two in zip(own, earlier, strict=True)]
        assigned = assign_splits(ties, shares, kept, self._notice)
        if self.keeps_splits:  # a row like one of another split stays where the source has it
            assigned = [
                one if one and two != one and (one, two) != ("train", "validation") else two
                for one, two in zip(own, assigned, strict=True)
            ]
        self._refuse_many(total, assigned)
        roles = self.roles.model_copy(update={"pictures": self.journal.most_together()})
        provenance = {
            "command": "prepare",
            "table": Path(self.source.where).name if "://" not in self.source.where else self.source.where,
            "version": self.source.version,
            "image_column": self.table.image,
            "fractions": shares,
        }
        with CatalogWriter(self.out, roles, provenance, integers, self.journal) as writer:
            self._store(writer, assigned, progress)
        self.journal.assign(assigned, shares)
        self.journal.note("complete", {"asked": self._complete, "manifest": manifest(self.out)})
        counts = Counter(zip(ties.categories.tolist(), assigned, strict=True))
        rows = [[counts[number, split] for split, share in shares.items() if share] for number in range(len(names))]
        named = zip(names, rows, strict=True)
        rare = [f"{name or 'no category'} ({sum(found)})" for name, found in named if not all(found)]
        if rare:
            more = f" and {len(rare) - 10} more" if len(rare) > 10 else ""
            self._notice(f"categories too rare to be in every split: {', '.join(rare[:10])}{more}")
        if writer.missing:
            lacking = ", ".join(f"{name} {count}" for name, count in writer.missing.items())
            self._notice(f"rows without a value: {lacking}, of {sum(writer.card.rows.values())}")
        self._notice(f"{self.journal.path.parent} keeps what was fetched for a later run; it may be removed")
        return writer.card

    def _store(self, writer: CatalogWriter, assigned: Sequence[str | None], progress: Progress) -> None:
        """Hand all rows to the writer in their order, those whose pictures belong together as one."""
        floats = [name for name in self.roles.columns("number") if name not in writer.integer_fields]
        splits, total = iter(assigned), self.journal.total()
        group: dict[str, tuple[TableRow, str, bytes, PictureFacts]] = {}  # by content: no picture stands twice in it

        def add() -> None:
            (row, split, stored, facts), *more = group.values()
            known = {name: float(value) for name in floats if (value := row.fields[name]) is not None}
            writer.add(split, stored, row.id, {**row.fields, **known}, facts, [one[2:] for one in more])

        for row, stored, facts in self.journal.results():
            if stored is None or facts is None or (split := next(splits)) is None:
                writer.reject(RejectedRow(row=row.number, id=row.id, url=row.picture, reason=row.reason or TIED))
            else:
                first, its_split, *_ = next(iter(group.values()), (row, split))
                if group and (row.together is None or (first.together, its_split) != (row.together, split)):
                    add()
                    group = {}
                group.setdefault(facts.sha256, (row, split, stored, facts))
            progress("storing", row.number, total)
        if group:
            add()

    def _refuse_many(self, total: int, assigned: Sequence[str | None]) -> None:
        """Raise TooManyBadRowsError where too few rows are left."""
        tied = assigned.count(None)
        bad = total - len(assigned) + tied
        if bad < total and self._few(bad):
            return
        counts, some = Counter({TIED: tied} if tied else {}), []
        for row, *_ in self.journal.results(failed=True):
            counts[kind_of_reason(str(row.reason))] += 1
            if len(some) < 5:
                shown = f" ({row.picture[:MAX_SOURCE]})" if row.picture else ""
                some.append(f"row {row.number} ({row.id}): {row.reason}{shown}")
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        raise TooManyBadRowsError(
            f"{bad} of {total} rows of {self.source.where} cannot be used, "
            + (f"more than --max-bad {self.spec.max_bad * 100:g}%" if bad < total else "no row is left")
            + f": {reasons}"
            + (f"; such as {'; '.join(some)}" if some else "")
            + ("; rows that are tied share an id or a picture: " + TIED_FIX if tied else "")
            + ("; servers that answer 403 may want another client's name: --user-agent" if counts["HTTP 403"] else "")
        )

    def _keys(self) -> tuple[Ties, list[str | None], list[str], list[str | None], list[str | None]]:
        """Of all rows with a picture: ties, names of categories, whole number columns, own and earlier splits."""
        products, contents, categories, prints = array("Q"), array("Q"), array("q"), bytearray()
        column, numbers = self.roles.leading, self.roles.columns("number")
        kinds: dict[str, Kind] = {**self.roles.fields, **dict.fromkeys(self.roles.inputs, "text")}
        numbered: dict[str | None, int] = {}  # None: rows without a category, a group of their own
        whole: set[str] = set()
        broken: set[str] = set()
        owned: list[str | None] = []
        splits: list[str | None] = []
        for id, fields, facts, own, split in self.journal.keys_of_pictures(kinds):
            products.append(key(id))
            contents.append(int(facts.sha256[:16], 16))
            prints += bytes.fromhex(facts.fingerprint)
            owned.append(own)
            splits.append(split)
            categories.append(numbered.setdefault(fields[column], len(numbered)) if column else 0)
            whole |= {name for name in numbers if isinstance(fields[name], int)}
            broken |= {name for name in numbers if isinstance(fields[name], float)}
        ties = Ties(
            np.array(products, np.uint64),
            np.array(contents, np.uint64),
            near_pairs(np.array(prints, np.uint8).reshape(-1, 32)),
            np.array(categories, np.intp),
        )
        return ties, [*numbered], [name for name in numbers if name in whole - broken], owned, splits
