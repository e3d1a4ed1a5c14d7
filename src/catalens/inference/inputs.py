"""Sources of `catalens predict` -> products, each the rows of its pictures.

    photos/ 'more/**/*.jpg' one.png      [TableRow(1, "photos/10432877-0.jpg", {}, "/shop/photos/10432877-0.jpg")]
    shop.csv                             [TableRow(1, "8043", {}, "https://shop.example/8043.jpg")]
    catalogs/shop                        [TableRow(1, "8043", {}, "", embedded=b"\\xff\\xd8...")]

Tables are read as `catalens prepare` reads them; products come one by one, in the same order every time.
"""

import glob
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from catalens.catalog.storage import SPLITS, Catalog, Roles
from catalens.errors import CatalogError, RecipeError
from catalens.reading.addresses import PICTURE_NAME
from catalens.reading.columns import names_of
from catalens.reading.opening import is_table, open_source
from catalens.reading.roles import expand, guess_id, guess_image
from catalens.reading.table import Table, TableRow, TableSpec, local_base, more_images, picture_columns

TABLES_ONLY = ("image", "id", "image_root", *TableSpec.model_fields)


class InputSpec(TableSpec):
    """Settings of reading a table or a catalogue; pictures as files need none of it."""

    image: str | None = None
    """Column of the picture; guessed where unset."""
    id: str | None = None
    """Column of the id; guessed where unset, and the row's number where no column is one."""
    image_root: str | None = None
    """Folder or URL that picture paths are relative to, in the place of the table's."""
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
    """Set where the ids are the rows' numbers."""
    base: str
    """Folder or URL that picture paths are relative to."""
    version: str
    """Changes when the rows may have changed."""
    total: int
    products: Callable[[], Iterator[Sequence[TableRow]]]
    """Each of one or more pictures; the texts of a question are among the fields of its first row."""


def open_input(
    where: Sequence[str],
    spec: InputSpec,
    notice: Callable[[str], None] = lambda text: None,
    texts: Sequence[str] = (),
) -> Input:
    """Open pictures (files, folders, globs and URLs, together), or one table, or one catalogue.

    `texts` are the columns that a question gives to the model. `notice` is called with what was guessed and what is
    left out. Raises CatalogError where there is nothing to read or no such column or split, RecipeError where a
    setting does not fit what is given.
    """
    try:
        tables = [name for name in where if is_table(name) or (Path(name) / "catalog.json").is_file()]
        if tables and len(where) > 1:
            raise RecipeError(f"{tables[0]}: give a table or a catalogue alone, not with other sources")
        if not tables:
            _refuse_options(spec, (*InputSpec.model_fields,), f"{where[0]} is pictures")
            if texts:
                notice(f"the question has no {names_of(texts)} for pictures alone: give a table for them")
            opened = _files(where, notice)
        elif is_table(tables[0]):
            _refuse_options(spec, ("split",), f"{where[0]} is a table")
            opened = _table(where[0], spec, notice, texts)
        else:
            _refuse_options(spec, TABLES_ONLY, f"{where[0]} is a catalogue")
            opened = _catalogue(where[0], spec, texts)
    except OSError as error:
        raise CatalogError(f"{error.filename or where[0]}: cannot be read ({error.strerror or error})") from error
    if not opened.total:
        raise CatalogError(f"{', '.join(where)}: there are no pictures: give files, a folder, a glob or a table")
    return opened


def _refuse_options(spec: InputSpec, names: Sequence[str], reason: str) -> None:
    usual = InputSpec()
    if extra := next((name for name in names if getattr(spec, name) != getattr(usual, name)), None):
        raise RecipeError(f"--{extra.replace('_', '-')}: leave it out, {reason}")


def _table(where: str, spec: InputSpec, notice: Callable[[str], None], texts: Sequence[str]) -> Input:
    source = open_source(where, spec)
    if source.notice:
        notice(source.notice)
    first = source.first(spec.id, *picture_columns(spec.image, source), *texts)
    sample = expand(source.columns, first, "" if "://" in source.base else source.base)
    image = spec.image or guess_image(sample, sample.columns)
    id = spec.id or guess_id(sample, [name for name in sample.columns if name != image])
    if not (spec.image and spec.id):
        flags = shlex.join(["--image", image, *(["--id", id] if id else [])])
        notice(f"guessed from names and values: {flags}{'' if id else '; ids are row numbers'}")
    further = more_images(source, image, spec, notice)
    roles = Roles(id=id or "", fields={}, inputs=tuple(texts))

    def products() -> Iterator[Sequence[TableRow]]:
        table = Table(source, image, roles, {}, spec, further)  # anew: it remembers products
        for number, rows in enumerate(table.products(), start=1):
            reason = rows[0].reason
            if reason and id and not rows[0].id:
                reason = f"row {number}: {reason}"
            yield [replace(row, number=number, reason=reason) for row in rows]

    total = sum(1 for _ in products()) if spec.pictures == "each" else source.count()
    version = f"{source.version} {[image, *further]} {id} {spec.pictures} {spec.max_pictures} {texts}"
    return Input((where,), "id", id is None, local_base(source, spec.image_root), version, total, products)


def _catalogue(where: str, spec: InputSpec, texts: Sequence[str]) -> Input:
    catalog = Catalog(where)
    roles, counts = catalog.card.roles, catalog.card.rows
    splits = [spec.split] if spec.split else [name for name in SPLITS if counts.get(name)]
    if spec.split and not counts.get(spec.split):
        having = ", ".join(name for name, count in counts.items() if count)
        raise CatalogError(f"{where}: split {spec.split!r} has no rows; splits with rows: {having}")

    def products() -> Iterator[Sequence[TableRow]]:
        number = 0
        for split in splits:
            for batch in catalog.batches(split, [*roles.images, roles.id, *texts]):
                for row in batch:
                    number += 1
                    id, given = str(row[roles.id]), {name: row[name] for name in texts}
                    pictures = [row[name] for name in roles.images if row[name]] or [b""]
                    yield [TableRow(number, id, given, "", picture) for picture in pictures]

    version = f"{catalog.card.content_hash} {' '.join(splits)} {texts}"
    return Input((where,), "id", False, where, version, sum(counts[split] for split in splits), products)


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

    def products() -> Iterator[Sequence[TableRow]]:
        for number, name in enumerate((name for name in _names(where) if name is not None), start=1):
            shown = os.fsencode(name).decode(errors="replace")  # a file name may be no text
            yield [TableRow(number, shown, {}, name if "://" in name else str(Path(name).absolute()))]

    return Input(tuple(where), "file", False, "/", digest.hexdigest(), total, products)


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
