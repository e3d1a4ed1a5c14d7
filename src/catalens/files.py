"""Files and folders that are whole or absent, whatever happens to the process that writes them.

with atomic(Path("runs/demo/metrics.json")) as aside: aside.write_text(text)     there at once, or not at all
with locked(Path("catalogs/shop.work")) as held: ...        one process at a time; the lock dies with its process
with writing(Path("catalogs/shop")): ...                    whatever a file system raises is one sentence
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from catalens.errors import CatalensError, CatalogError, CheckpointError

EXPORT = "export.json"
"""File that makes a folder an export: of which run, for what, in which precision."""
CERTIFICATE = "equality.json"
"""File of an export: how far its answers are from those of the run."""
ONNX = "onnx.json"
"""File of an export for ONNX Runtime: sizes of its graphs."""
VLLM = "vllm.yaml"
"""File of an export for vLLM: the flags of its server."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a path to write to, `path` with `.partial`: synced and renamed when the block ends well, else removed."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive the death of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder, made if absent; False where another process has it. An empty folder is removed in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def is_there() -> bool:
        """Tell whether the folder is still the one that was opened: whoever had it may have removed it."""
        try:
            return os.path.samestat(os.fstat(handle), folder.stat())
        except FileNotFoundError:
            return False

    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = is_there()
        except BlockingIOError:
            held = False
        try:
            yield held
        finally:
            with suppress(OSError):
                if held and is_there():
                    folder.rmdir()
    finally:
        os.close(handle)


@contextmanager
def writing(
    path: Path,
    error: type[CatalensError] = CatalogError,
    fix: str = "mend that, or choose another --out, and give the same command again",
) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence with its fix."""
    try:
        yield
    except OSError as cause:
        raise error(f"{path} cannot be written ({cause.strerror or cause}): {fix}") from cause


def model_folder(run: Path) -> Path:
    """Give the folder of a run's best model; an export is its own."""
    return run if (run / EXPORT).is_file() else run / "best"


def read_export(folder: Path) -> dict[str, Any]:
    """Read `export.json`; CheckpointError where there is none that can be read."""
    path = folder / EXPORT
    try:
        about = json.loads(path.read_bytes())
        known = about["format"] == 1
    except FileNotFoundError as error:
        message = f"{folder} is not an export (no {EXPORT}): give one that `catalens export` made"
        raise CheckpointError(message) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: export the run again") from error
    if not known:
        raise CheckpointError(f"{folder} was exported by another version of catalens: export the run again")
    return about


def is_page(path: Path) -> bool:
    """Tell whether a file is a page that catalens wrote."""
    with path.open("rb") as file:
        return b"catalens</title>" in file.read(4096)
