"""Sources of `catalens predict` -> rows that each name one picture.

    photos/ 'more/**/*.jpg' one.png      TableRow(1, "photos/10432877-0.jpg", {}, "/shop/photos/10432877-0.jpg")
    shop.csv                             TableRow(1, "8043", {}, "https://shop.example/8043.jpg")
    catalogs/shop                        TableRow(1, "8043", {}, "", embedded=b"\\xff\\xd8...")

Tables are read as `catalens prepare` reads them; rows come one by one, in the same order every time.
"""

import glob
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from catalens.catalog.storage import SPLITS, Catalog, is_missing
from catalens.errors import CatalogError, RecipeError
from catalens.reading.addresses import PICTURE_NAME, TEMPLATE, filled, pictures_of
from catalens.reading.columns import picture_reason, read_id, storable
from catalens.reading.roles import expand, guess_id, guess_image
from catalens.reading.sources import ReadSpec, Row, is_table, open_source
from catalens.reading.table import TableRow, picture_columns


class InputSpec(ReadSpec):
    """Settings of reading a table or a catalogue; pictures as files need none of it."""

    image: str | None = None
    """Column of the picture; guessed where unset."""
    id: str | None = None
    """Column of the id; guessed where unset, and the row's number where no column is one."""
    split: str | None = None
    """Split of a catalogue; unset: all of it."""


@dataclass(frozen=True)
class Input:
    """Source whose rows can be read again and again, in the same order."""

    where: tuple[str, ...]
    """As the user gave it."""
    key: Literal["file", "id"]
    """Column by which the output names a picture."""
    numbered: bool
    """Whether the ids are the rows' numbers."""
    base: str
    """Folder or URL that picture paths are relative to."""
    version: str
    """Changes when the rows may have changed."""
    total: int
    rows: Callable[[], Iterator[TableRow]]


def open_input(where: Sequence[str], spec: InputSpec, notice: Callable[[str], None] = lambda text: None) -> Input:
    """Open pictures (files, folders, globs and URLs, together), or one table, or one catalogue.

    `notice` is called with what was guessed and what of a folder is left out. Raises CatalogError where there is
    nothing to read or no such column or split, RecipeError where a setting does not fit what is given.
    """
    try:
        tables = [name for name in where if is_table(name) or (Path(name) / "catalog.json").is_file()]
        if tables and len(where) > 1:
            raise RecipeError(f"{tables[0]}: give a table or a catalogue alone, not with other sources")
        if not tables:
            _refuse_options(spec, (*InputSpec.model_fields,), f"{where[0]} is pictures")
            opened = _files(where, notice)
        elif is_table(tables[0]):
            _refuse_options(spec, ("split",), f"{where[0]} is a table")
            opened = _table(where[0], spec, notice)
        else:
            _refuse_options(spec, ("image", "id", *ReadSpec.model_fields), f"{where[0]} is a catalogue")
            opened = _catalogue(where[0], spec)
    except OSError as error:
        raise CatalogError(f"{error.filename or where[0]}: cannot be read ({error.strerror or error})") from error
    if not opened.total:
        raise CatalogError(f"{', '.join(where)}: there are no pictures: give files, a folder, a glob or a table")
    return opened


def _refuse_options(spec: InputSpec, names: Sequence[str], reason: str) -> None:
    if extra := next((name for name in names if getattr(spec, name) is not None), None):
        raise RecipeError(f"--{extra}: leave it out, {reason}")


def _table(where: str, spec: InputSpec, notice: Callable[[str], None]) -> Input:
    source = open_source(where, spec)
    if source.notice:
        notice(source.notice)
    first = source.first(spec.id, *picture_columns(spec.image, source))
    sample = expand(source.columns, first, "" if "://" in source.base else source.base)
    image = spec.image or guess_image(sample, sample.columns)
    id = spec.id or guess_id(sample, [name for name in sample.columns if name != image])
    wanted = [*picture_columns(image, source), *([id] if id else [])]
    if not (spec.image and spec.id):
        flags = shlex.join(["--image", image, *(["--id", id] if id else [])])
        notice(f"guessed from names and values: {flags}{'' if id else '; ids are row numbers'}")

    def rows() -> Iterator[TableRow]:
        for number, row in enumerate(source.rows(wanted), start=1):
            yield _row(number, row, image, id)

    base = source.base if "://" in source.base else str(Path(source.base).absolute())
    return Input((where,), "id", id is None, base, f"{source.version} {image} {id}", source.count(), rows)


def _row(number: int, row: Row, image: str, id: str | None) -> TableRow:
    if isinstance(row, str):
        return TableRow(number, "", {}, "", reason=f"row {number}: {row}")
    cell, picture = row.get(id) if id else None, row.get(image)
    if image not in row and TEMPLATE.search(image):
        picture = filled(image, row)
    name = "" if is_missing(cell) else read_id(cell)
    match pictures_of(picture):
        case [bytes() as data, *_]:
            return TableRow(number, name, {}, "", data)
        case [str() as address, *_]:
            return TableRow(number, name, {}, storable(address))
        case _:
            return TableRow(number, name, {}, "", reason=picture_reason(picture, image))


def _catalogue(where: str, spec: InputSpec) -> Input:
    catalog = Catalog(where)
    roles, counts = catalog.card.roles, catalog.card.rows
    splits = [spec.split] if spec.split else [name for name in SPLITS if counts.get(name)]
    if spec.split and not counts.get(spec.split):
        having = ", ".join(name for name, count in counts.items() if count)
        raise CatalogError(f"{where}: split {spec.split!r} has no rows; splits with rows: {having}")

    def rows() -> Iterator[TableRow]:
        number = 0
        for split in splits:
            for batch in catalog.batches(split, [roles.image, roles.id]):
                for row in batch:
                    number += 1
                    yield TableRow(number, str(row[roles.id]), {}, "", row[roles.image])

    version = f"{catalog.card.content_hash} {' '.join(splits)}"
    return Input((where,), "id", False, where, version, sum(counts[split] for split in splits), rows)


def _files(where: Sequence[str], notice: Callable[[str], None]) -> Input:
    digest, total, left_out = hashlib.sha256(), 0, 0
    for name in _names(where):
        if name is None:
            left_out += 1
            continue
        total += 1
        digest.update(os.fsencode(name) + b"\0" + _state(name).encode())
    if left_out:
        notice(f"{left_out} files in folders are left out: hidden, or no picture by their names")

    def rows() -> Iterator[TableRow]:
        for number, name in enumerate((name for name in _names(where) if name is not None), start=1):
            shown = os.fsencode(name).decode(errors="replace")  # a file name may be no text
            yield TableRow(number, shown, {}, name if "://" in name else str(Path(name).absolute()))

    return Input(tuple(where), "file", False, "/", digest.hexdigest(), total, rows)


def _names(where: Sequence[str]) -> Iterator[str | None]:
    """Files one by one, and None for what of a folder is no picture; a folder's own come before its subfolders'."""

    def refuse(error: OSError) -> None:
        raise error

    for given in where:
        if Path(given).is_dir():
            for folder, inner, names in os.walk(given, onerror=refuse):
                inner[:] = sorted(name for name in inner if not name.startswith("."))
                for name in sorted(names):
                    known = PICTURE_NAME.search(name) and not name.startswith(".")
                    yield str(Path(folder) / name) if known else None
        elif "://" not in given and glob.has_magic(given) and not Path(given).exists():
            found = glob.glob(given, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            yield from sorted(name for name in found if not Path(name).is_dir())
        else:
            yield given


def _state(name: str) -> str:
    """Size and time of a file; nothing for one that is not there."""
    try:
        found = Path(name).stat()
    except (OSError, ValueError):
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"
