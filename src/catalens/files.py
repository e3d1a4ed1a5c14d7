"""Folders and files of ours beside those of others: locked by their process, and removed only where they are ours.

with locked(Path("catalogs/shop.work")) as held:      one process at a time; the lock dies with its process
foreign(Path("catalogs/shop"))                        catalogs/shop/my_corrections.csv: not ours, nothing is removed
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from catalens.errors import CatalogError

CHECK = "check.html"
"""Page that `catalens check` writes into a catalogue."""
FILES = re.compile(
    r"catalog\.json|README\.md|rejected\.parquet|profile\.json|fidelity\.html|"
    r"data/(train|validation|test)-\d{5}(\.partial|-of-\d{5}\.parquet)"
)
"""Files of a catalogue, whole or half written."""
TAIL_BYTES = 2**16


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder, made if absent; False where another process has it. An empty folder is removed in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        held = _lock(handle, folder)
        try:
            yield held
        finally:
            with suppress(OSError):
                if held and os.path.samestat(os.fstat(handle), folder.stat()):
                    folder.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Lock a folder; False also where it is no longer the one that was opened: whoever had it may have removed it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), folder.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def foreign(folder: Path) -> Path | None:
    """Find the first thing in a folder that is no part of a catalogue; None where there is none. Links never are."""
    data = folder / "data"
    for path in [*folder.iterdir(), *(data.iterdir() if data.is_dir() else ())]:
        name = path.relative_to(folder).as_posix()
        ours = path.is_dir() if name == "data" else path.is_file() and bool(FILES.fullmatch(name))
        if path.is_symlink() or not (ours or (name == CHECK and path.is_file() and is_page(path))):
            return path
    return None


def refuse_strange(folder: Path) -> None:
    """Raise CatalogError where a folder that is ours to remove holds what is not ours."""
    strange = foreign(folder) if folder.is_dir() and not folder.is_symlink() else folder
    if strange is not None:
        raise CatalogError(f"{strange} is in the way: move it away or choose another --out")


def is_page(path: Path) -> bool:
    """Tell whether a file is a page that catalens wrote."""
    with path.open("rb") as file:
        return b"catalens</title>" in file.read(4096)


def occupied(place: Path) -> bool:
    """Tell whether anything but an empty folder stands at a place; a link always does."""
    if place.is_symlink() or not place.exists():
        return place.is_symlink()
    return not place.is_dir() or any(place.iterdir())


class Manifests(Protocol):
    """What is remembered of the catalogues that were written into a place."""

    def __contains__(self, manifest: object) -> bool: ...

    def add(self, manifest: str) -> None:
        """Remember one more; durable when this returns."""


def refuse_existing(folder: Path | str) -> None:
    """Raise CatalogError where something stands at the place of a new catalogue; an empty folder does not matter."""
    folder = Path(folder)
    if folder.name in ("", "..") or "\0" in folder.name:
        raise CatalogError(f"--out {folder}: give the name of a new folder, such as catalogs/shop")
    with writing(folder):
        if occupied(folder):
            raise CatalogError(f"{folder} exists already: choose another --out or remove it first")


def refuse_other(folder: Path, known: Manifests) -> None:
    """Raise CatalogError where a folder is anything but a catalogue of the `manifest`s that are `known`, untouched.

    The page that `catalens check` has written into it does not matter.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise CatalogError(f"{folder} is a link or a file: choose another --out or remove it first")
    whole = (folder / "catalog.json").is_file()
    if whole and (strange := foreign(folder)) is not None:
        raise CatalogError(
            f"{folder} holds {strange.relative_to(folder)}, which is no part of the catalogue: move it away, or "
            "choose another --out"
        )
    if not whole or manifest(folder) not in known:
        raise CatalogError(
            f"{folder} exists already and is not as this command left it: choose another --out or move it away"
        )


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


def recover(folder: Path) -> None:
    """Tidy up after a killed command: one of the catalogues that it left is in place then, and no other is there.

    Raises CatalogError where something of a person's is under one of our names.
    """
    partial, previous = partial_of(folder), _previous(folder)
    if partial.exists() or partial.is_symlink():
        refuse_strange(partial)
        with locked(partial) as held:
            if held:
                sweep(partial)
    if previous.exists() or previous.is_symlink():
        refuse_strange(previous)
        if occupied(folder) or not (previous / "catalog.json").is_file():
            _remove(previous)
        else:
            previous.rename(folder)


def sweep(partial: Path) -> None:
    """Remove what is half written of a catalogue, and leave its folder, which is locked; it may have become one."""
    for path in partial.iterdir() if partial.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def partial_of(folder: Path) -> Path:
    """Where a catalogue is written before it is whole."""
    return folder.parent / f".{folder.name}.partial"


def _remove(folder: Path) -> None:
    """Remove a catalogue; killed half way it leaves none that looks whole."""
    (folder / "catalog.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence."""
    try:
        yield
    except OSError as error:
        raise CatalogError(
            f"{folder} cannot be written ({error.strerror or error}): mend that, or choose another --out, and give "
            "the same command again"
        ) from error


def refuse_taken(folder: Path, replaces: Manifests | None) -> None:
    """Raise CatalogError where a catalogue may not be put: whatever is there is no catalogue that it replaces."""
    if replaces is None or not folder.name or folder.name == "..":
        refuse_existing(folder)
        return
    with writing(folder):
        if occupied(folder):
            refuse_other(folder, replaces)


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
