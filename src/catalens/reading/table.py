"""A source read as products: which columns are what, how numbers are written, one row for each picture.

    table = Table.of(open_source("products_export.csv"), Columns(), TableSpec(), print)
      guessed from names and values: --image 'Image Src' --id Handle --text Title --number 'Variant Price'
      Variant Price: 60 of 60 read with --decimal .
    for row in table.rows():  TableRow(1, "item-0", {"Title": "Item 0", "Variant Price": 10.0}, "https://...")

What an export says once for a product, on its first row, is said for its other rows, too.
"""

import re
import shlex
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from catalens.catalog.storage import Roles, refuse_double_roles
from catalens.catalog.values import is_missing
from catalens.errors import RecipeError, first_line
from catalens.reading.addresses import TEMPLATE, filled, pictures_of
from catalens.reading.columns import Missing, picture_reason, read_id, read_values, storable
from catalens.reading.nested import paths_in
from catalens.reading.numbers import Numbers, Sign, tell_numbers
from catalens.reading.roles import ROW_NUMBERS, Columns, Probe, Sample, expand, further_images, guess_columns
from catalens.reading.source import OWN_SPLIT, ReadSpec, Row, Source, with_split_column

REMEMBERED = 2**16
"""Products whose texts and categories are kept for rows that lack them."""
NO_PICTURE = "no picture of its own"
"""Reason against a further row of a product that has a picture in another one."""
PARENT = "a product whose variants have rows of their own"
"""Reason against the row of a product that lacks a price or picture which its variants have."""
SPARE = {NO_PICTURE: "whose product has a picture in another row", PARENT: "whose variants have rows of their own"}
"""Reasons that are not counted as bad, in words."""
Notice = Callable[[str], None]


class TableSpec(ReadSpec):
    """Settings of reading a table as products."""

    decimal: Sign | None = None
    """Sign before the fraction of numbers; unset: told from all cells of a column."""
    thousands: str | None = None
    """Sign between groups of digits; it tells the other one."""
    pictures: Literal["first", "each", "all"] = "first"
    """Of several pictures of a row: the first, a row for each, or all of them in one."""
    max_pictures: int = Field(default=4, ge=2, le=16)
    """Of `all`: most in one row."""
    missing: Missing = "keep"
    """Rows that lack some of their fields: kept with those that they have, or left out."""

    @model_validator(mode="after")
    def _signs_differ(self) -> "TableSpec":
        if self.thousands and self.thousands == self.decimal:
            raise ValueError(f"--thousands and --decimal are both {self.decimal!r}: give two signs")
        if self.thousands and (len(self.thousands) > 1 or self.thousands.isalnum() or self.thousands in "-+"):
            raise ValueError(f"--thousands {self.thousands!r}: give one sign, such as , or . or a space")
        return self

    @property
    def point(self) -> Sign | None:
        """The decimal sign, as far as it is said."""
        others: dict[str | None, Sign] = {",": ".", ".": ","}
        return self.decimal or others.get(self.thousands)


@dataclass(frozen=True)
class TableRow:
    """A row of the table, read and checked."""

    number: int
    """Its place in the table, from 1."""
    id: str
    fields: Mapping[str, Any]
    """By column; None where the row lacks one."""
    picture: str
    """URL or path of the picture; empty where the bytes came with the row."""
    embedded: bytes | None = None
    reason: str | None = None
    """Reason why it cannot be used, whatever its picture is."""
    split: str | None = None
    """Its own split, where the table says one."""
    together: int | None = None
    """Number of the first row of those whose pictures make one row of a catalogue."""


@dataclass
class Table:
    """The products of a source."""

    source: Source
    image: str
    """Column of the picture, or a template of paths."""
    roles: Roles
    numbers: Mapping[str, Numbers]
    spec: TableSpec
    further: Sequence[str] = ()
    """Columns with more pictures of a row."""
    _texts: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    """Texts and categories of products, by id."""
    _pictured: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Products that have a picture."""
    _parents: frozenset[str] = frozenset()
    """Products that variants name in a column for that."""
    _completions: int = 0

    @classmethod
    def of(
        cls, source: Source, given: Columns, spec: TableSpec, notice: Notice, probe: Probe | None = None
    ) -> "Table":
        """Complete what is given by what the source holds; `notice` hears all that is guessed, with the evidence.

        `probe` asks for addresses where neither names nor endings tell the column of the pictures.
        Raises CatalogError where a column is not there, RecipeError where a role or a number cannot be told.
        """
        if source.notice:
            notice(source.notice)
        first = source.first(*picture_columns(given.image, source), given.id, *given.fields, *given.inputs)
        source = with_split_column(source, first)
        sample = expand(source.columns, first, "" if "://" in source.base else source.base)
        columns = guess_columns(sample, given, probe)
        flags = [("--image", columns.image, given.image), ("--id", columns.id, given.id)]
        flags += [(f"--{kind}", name, given.fields.get(name)) for name, kind in columns.fields.items()]
        numbered = (
            given.id is None and columns.id not in sample.columns and not paths_in(str(columns.id), sample.columns)
        )
        known = [flag for flag in flags if not flag[2] and not (numbered and flag[0] == "--id")]
        if known:
            notice(f"guessed from names and values: {shlex.join(str(word) for flag in known for word in flag[:2])}")
        if numbered:
            notice(f"no column names the product: {columns.id!r} is the number of the row; --id names a column")
        roles = Roles(id=str(columns.id), fields=dict(columns.fields), inputs=tuple(columns.inputs))
        refuse_double_roles(roles)
        table = cls(
            source, str(columns.image), roles, {}, spec, more_images(source, str(columns.image), spec, notice)
        )
        table.numbers = {name: table._told(name, sample, notice) for name in roles.columns("number")}
        if (group := roles.id.partition("|")[0]) != roles.id:
            rows = (row for row in source.rows([group]) if isinstance(row, Mapping))
            table._parents = frozenset(read_id(row[group]) for row in rows if not is_missing(row.get(group)))
        return table

    def _told(self, name: str, sample: Sample, notice: Notice) -> Numbers:
        """The way of a number column; all of its cells are read where they are text."""
        if not any(isinstance(value, str) for value in sample.values(name)):
            return Numbers()
        cells = (row.get(name) for row in self.source.rows([name]) if isinstance(row, Mapping))
        told = tell_numbers(name, cells, self.spec.point)
        if told.evidence:
            notice(told.evidence)
        return told.numbers

    @property
    def asked(self) -> dict[str, Any]:
        """All that the rows depend on, as JSON."""
        return {
            "version": self.source.version,
            "image": [self.image, *self.further],
            "roles": self.roles.model_dump(mode="json"),
            "numbers": {name: way.model_dump(mode="json") for name, way in self.numbers.items()},
            **self.spec.model_dump(mode="json"),
        }

    def rows(self, notice: Notice = lambda text: None) -> Iterator[TableRow]:
        """Rows that can be kept, in the table's order; at their end `notice` hears what was completed."""
        for rows in self.products(notice):
            yield from rows

    def products(self, notice: Notice = lambda text: None) -> Iterator[list[TableRow]]:
        """The same, in lists of those whose pictures belong together."""
        named = [self.roles.id, *self.roles.fields, *self.roles.inputs]
        wanted = [*picture_columns(self.image, self.source), *self.further, *(name for name in named if name)]
        together, spare, numbered = self.spec.pictures == "all", Counter[str](), self.roles.id in ROW_NUMBERS
        most, number, beyond = self.spec.max_pictures if together else sys.maxsize, 0, 0
        group: list[TableRow] = []
        for place, row in enumerate(self.source.rows([*wanted, *([OWN_SPLIT] if self.source.splits else [])]), 1):
            if numbered and isinstance(row, Mapping):
                row = {self.roles.id: place, **row}
            split = row.get(OWN_SPLIT) if isinstance(row, Mapping) else None
            made = self._rows(row)
            joins = bool(group) and made[0][4] is None and isinstance(row, Mapping) and self._joins(row, group[0])
            if group and not joins:
                yield group
                group = []
            for one in made:
                if len(group) == most:
                    beyond += 1
                    continue
                if group and not together:
                    yield group
                    group = []
                number += 1
                spare[one[4] or ""] += 1
                id, fields = (group[0].id, group[0].fields) if group else one[:2]
                first = (group[0].number if group else number) if together else None
                group.append(TableRow(number, id, fields, *one[2:], split, first))
        if group:
            yield group
        told = {"rows with texts or categories of an earlier row of their product": self._completions}
        told |= {f"rows left out, and not counted as bad, {words}": spare[reason] for reason, words in SPARE.items()}
        told[f"pictures left out beyond the first {most} of their rows (--max-pictures)"] = beyond
        for text, count in told.items():
            if count:
                notice(f"{text}: {count}")

    def _joins(self, row: Mapping[Any, Any], first: TableRow) -> bool:
        """Tell whether a row has nothing but a further picture of the product of the row before it."""
        if self.spec.pictures != "all" or first.reason is not None:
            return False
        bare = all(is_missing(row.get(name)) for name in self.roles.fields) and bool(self.roles.fields)
        return bare and first.id == read_id(row.get(self.roles.id))

    def _rows(self, row: Row) -> list[tuple[str, dict[str, Any], str, bytes | None, str | None]]:
        """Id, fields, picture, bytes and reason of each row to make of one of the table, whatever it holds."""
        if isinstance(row, str):
            return [("", {}, "", None, storable(row))]
        try:
            cell: Any = row.get(self.image)
            if self.image not in self.source.columns and TEMPLATE.search(self.image):
                cell = filled(self.image, row)
            more = [picture for name in self.further for picture in pictures_of(row.get(name))]
            row = self._completed(row)
            id, fields, reason = read_values(row, self.roles, self.numbers, self.spec.missing)
            pictures = [*dict.fromkeys([*pictures_of(cell), *more])]
            if id in self._parents and (reason or not pictures) and self._lacks(row, cell):
                return [(id, {}, "", None, PARENT)]
            if not pictures:
                known = id in self._pictured and is_missing(cell)
                reason = NO_PICTURE if known else reason or picture_reason(cell, self.image)
            elif reason is None:
                if any(isinstance(one, str) and storable(one) != one for one in pictures[:1]):
                    reason = picture_reason(cell, self.image)
                _remember(self._pictured, id, None)
        except Exception as error:  # cells may hold anything, and make their reading raise anything
            return [("", {}, "", None, storable(f"cannot be read: {first_line(error)}"))]
        if reason is not None or not pictures:
            first = next((one for one in pictures if isinstance(one, str)), "")
            return [(id, {}, storable(first), None, storable(reason or ""))]
        taken = pictures[:1] if self.spec.pictures == "first" else pictures
        return [
            (id, fields, "", one, None) if isinstance(one, bytes) else (id, fields, storable(one), None, None)
            for one in taken
        ]

    def _lacks(self, row: Mapping[Any, Any], picture: Any) -> bool:
        """Tell a row that names no product above it, and has no picture or lacks a field."""
        above = is_missing(row.get(self.roles.id.partition("|")[0]))
        return above and (is_missing(picture) or any(is_missing(row.get(name)) for name in self.roles.fields))

    def _completed(self, row: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """A row with the texts and categories that an earlier row of its product has and this one lacks."""
        id = read_id(row.get(self.roles.id))
        names = [*(name for name, kind in self.roles.fields.items() if kind != "number"), *self.roles.inputs]
        texts = {name: row.get(name) for name in names}
        said = {name: value for name, value in texts.items() if isinstance(value, str) and value.strip()}
        known = self._texts.get(id, {})
        lacking = [name for name in known if name not in said and is_missing(texts[name])]
        added = {name: known[name] for name in lacking}
        if id and not said.keys() <= known.keys():
            _remember(self._texts, id, said | known)
        self._completions += bool(added)
        return {**row, **added} if added else row


def _remember(products: OrderedDict[str, Any], id: str, value: Any) -> None:
    products[id] = value
    if len(products) > REMEMBERED:
        products.popitem(last=False)


def picture_columns(image: str | None, source: Source) -> list[str]:
    """The column of the picture, or those that a template names: `images/{article_id[:3]}/{article_id}.jpg`."""
    if image is None or image in source.columns or not TEMPLATE.search(image):
        return [image] if image else []
    return [re.sub(r"\[:\d+\]$", "", inside) for inside in TEMPLATE.findall(image)]


def more_images(source: Source, image: str, spec: TableSpec, notice: Notice) -> list[str]:
    """Columns with more pictures of a row, where more than the first are asked for."""
    found = further_images(source.columns, image) if spec.pictures != "first" else []
    if found:
        notice(f"more pictures of a row: {shlex.join(found)}")
    return found


def local_base(source: Source, root: str | None) -> str:
    """The folder or URL that picture paths are relative to, as an absolute path."""
    base = root or source.base
    if root and "://" not in root and not Path(root).is_dir():
        raise RecipeError(f"--image-root {root}: there is no such folder")
    return base if "://" in base else str(Path(base).absolute())
