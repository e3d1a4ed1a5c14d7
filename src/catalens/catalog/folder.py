"""The folder of a catalogue beside a person's own: replaced only by its writer, removed only where it is ours.

catalogs/shop             the catalogue
catalogs/.shop.partial    the next one, while it is written
catalogs/.shop.previous   the one before, until it is removed
"""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Protocol

from catalens.errors import CatalogError
from catalens.files import is_page, locked, writing

CHECK = "check.html"
"""Page that `catalens check` writes into a catalogue."""
FILES = re.compile(
    r"catalog\.json|README\.md|rejected(-\d{5}\.partial|\.parquet)|profile\.json|fidelity\.html|"
    r"data/(train|validation|test)-\d{5}(\.partial|-of-\d{5}\.parquet)"
)
"""Files of a catalogue, whole or half written."""
TAIL_BYTES = 2**16


class Manifests(Protocol):
    """Manifests of the catalogues that were written into a place."""

    def __contains__(self, manifest: object) -> bool: ...

    def add(self, manifest: str) -> None:
        """Remember one more; durable when this returns."""


def manifest(folder: Path) -> str:
    """Digest of the files of a catalogue by their names, sizes and ends, where Parquet keeps its statistics."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECK):
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name} {size} {hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return digest.hexdigest()


def occupied(path: Path) -> bool:
    """Tell whether anything but an empty folder stands at a path; a link always does."""
    if path.is_symlink() or not path.exists():
        return path.is_symlink()
    return not path.is_dir() or any(path.iterdir())


def partial_of(folder: Path) -> Path:
    """Path at which a catalogue is written before it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def refuse_taken(folder: Path, replaces: Manifests | None = None) -> None:
    """Raise CatalogError where a catalogue may not be put; an empty folder does not matter.

    Only a catalogue of the manifests that it `replaces` may stand there, untouched but for the page of `check`.
    """
    if folder.name in ("", "..") or "\0" in folder.name:
        raise CatalogError(f"--out {folder}: give the name of a new folder, such as catalogs/shop")
    with writing(folder):
        if not occupied(folder):
            return
        if replaces is None:
            raise CatalogError(f"{folder} exists already: choose another --out or remove it first")
        if folder.is_symlink() or not folder.is_dir():
            raise CatalogError(f"{folder} is a link or a file: choose another --out or remove it first")
        whole = (folder / "catalog.json").is_file()
        if whole and (strange := _foreign(folder)) is not None:
            raise CatalogError(
                f"{folder} holds {strange.relative_to(folder)}, which is no part of the catalogue: move it away, or "
                "choose another --out"
            )
        if not whole or manifest(folder) not in replaces:
            raise CatalogError(
                f"{folder} exists already and is not as this command left it: choose another --out or move it away"
            )


def _foreign(folder: Path) -> Path | None:
    """Find the first thing in a folder that is no part of a catalogue; None where there is none. Links never are."""
    data = folder / "data"
    for path in [*folder.iterdir(), *(data.iterdir() if data.is_dir() else ())]:
        name = path.relative_to(folder).as_posix()
        ours = path.is_dir() if name == "data" else path.is_file() and bool(FILES.fullmatch(name))
        if path.is_symlink() or not (ours or (name == CHECK and path.is_file() and is_page(path))):
            return path
    return None


def recover(folder: Path) -> None:
    """Tidy up after a killed command: one of the catalogues that it left is in place then, and no other is there.

    Raises CatalogError where something of a person's is under one of our names.
    """
    partial, previous = partial_of(folder), _previous(folder)
    for path in filter(os.path.lexists, (partial, previous)):
        strange = _foreign(path) if path.is_dir() and not path.is_symlink() else path
        if strange is not None:
            raise CatalogError(f"{strange} is in the way: move it away or choose another --out")
    if partial.exists():
        with locked(partial) as held:
            if held:
                sweep(partial)
    if previous.exists():
        if occupied(folder) or not (previous / "catalog.json").is_file():
            _remove(previous)
        else:
            previous.rename(folder)


def sweep(partial: Path) -> None:
    """Remove what is half written of a catalogue, and leave its folder, which is locked; it may have become one."""
    for path in partial.iterdir() if partial.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def put_in_place(aside: Path, folder: Path, replaces: Manifests | None) -> None:
    """Move a catalogue that is whole to its place, and then remove the one that it replaces.

    Killed at any moment it leaves both on disk, and `recover` puts one in place.
    """
    refuse_taken(folder, replaces)  # somebody may have come in between
    if replaces is not None:
        replaces.add(manifest(aside))
    if not occupied(folder):
        aside.rename(folder)  # an empty folder gives way
        return
    previous = _previous(folder)
    folder.rename(previous)
    aside.rename(folder)
    _remove(previous)


def _remove(folder: Path) -> None:
    """Remove a catalogue; killed half way it leaves none that looks whole."""
    (folder / "catalog.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
