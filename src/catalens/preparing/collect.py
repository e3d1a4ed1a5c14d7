"""Pictures without a record -> one record each, fetched, decoded and written down, several at a time.

    picture 3, https://shop.example/8043.jpg  ->  200, 1 attempt, its facts, the picture to store

A connection is kept until its picture is written down, so that there are never more pictures in memory, or lost to a
kill, than connections.
"""

import asyncio
import errno
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit

from catalens.catalog.pictures import storable_picture
from catalens.catalog.storage import kind_of_reason
from catalens.config import Frozen
from catalens.errors import PictureError, first_line
from catalens.preparing.download import Downloader, Fetched
from catalens.preparing.fetch import DownloadSpec
from catalens.preparing.journal import EMBEDDED, Record, TableJournal, Wanted
from catalens.progress import Progress, silent
from catalens.reading.text import open_bytes

HOST = re.compile(
    r"(www\.|[\w-]+(\.[\w-]+)*\.(com|net|org|shop|store|io|co|de|fr|es|it|nl|pl|se|uk|eu|ch|at|be|cz)/)\S+"
)
"""An address without its `https://`."""
STORES = ("s3", "gs", "gcs", "az", "abfs", "hf", "oss")
"""Schemes of stores of objects, read through fsspec."""
LEAVES = "picture path leaves the folder of the table: name another with --image-root"
LINKED = "picture path leaves the folder of the table: it is a link, name the folder of its file with --image-root"
AHEAD = 16
"""Rows under way for each connection, so that one slow host does not keep the others waiting."""


class CollectSpec(Frozen):
    """Settings by which pictures are fetched and stored."""

    base: str = "."
    """Folder or URL that paths are relative to, and that holds all local pictures."""
    beside: str | None = None
    """Folder of the table, where `base` is another: paths may be relative to it, too."""
    download: DownloadSpec = DownloadSpec()
    max_side: int | None = None
    """Longest side of a stored picture in pixels; unset: as it came."""
    strip_metadata: bool = False
    """Take EXIF with its position, XMP and comments out of stored pictures."""

    @property
    def made(self) -> str:
        """Settings of a stored picture, in words; other words: it is made again of what was received."""
        return f"max_side={self.max_side} strip_metadata={self.strip_metadata}"


def collect(
    journal: TableJournal,
    spec: CollectSpec,
    progress: Progress = silent,
    notice: Callable[[str], None] = lambda text: None,
) -> None:
    """Give every picture a record that has none; the note of the progress says which failures are most frequent.

    `notice` hears what kinds of pictures were taken although something in them is odd.
    """
    total, done = journal.pictures(spec.made)
    failures, oddities = Counter[str](), Counter[str]()
    progress("pictures", done, total)

    def take(wanted: Wanted, record: Record) -> None:
        nonlocal done
        journal.record(wanted.number, record, spec.made)
        done += 1
        oddities.update(record.oddities)
        if reason := record.got.reason:
            failures[kind_of_reason(reason)] += 1
        progress("pictures", done, total, ", ".join(f"{count} {reason}" for reason, count in failures.most_common(3)))

    asyncio.run(_collect(journal, spec, take))
    for oddity, count in oddities.items():
        notice(f"taken all the same: {count} {oddity}")


async def _collect(journal: TableJournal, spec: CollectSpec, take: Callable[[Wanted, Record], None]) -> None:
    """Hand the record of each pending picture to `take`; raises what the journal and `take` raise."""
    cores, loop = os.cpu_count() or 1, asyncio.get_running_loop()
    queue, here = journal.pending(spec.made), asyncio.Semaphore(2 * cores)
    with ThreadPoolExecutor(cores) as threads:
        async with Downloader(spec.download) as downloader:

            async def work() -> None:
                for one in queue:
                    web = not one.kept and _url(one.source, spec.base) is not None
                    async with nullcontext() if web else here:  # the downloader has slots of its own
                        data = journal.received(one.number) if one.kept else None
                        async with receiving(one.source, data, spec, downloader, threads) as got:
                            take(one, await loop.run_in_executor(threads, _record, got, spec, web, one.kept))

            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(AHEAD * spec.download.concurrency):
                        tasks.create_task(work())
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None


def _record(got: Fetched, spec: CollectSpec, web: bool, kept: bool) -> Record:
    """Decode a picture; never raises. One of the web is kept as it came, for other settings."""
    if (data := got.body) is None:
        return Record(got)
    oddities: list[str] = []
    try:
        stored, facts = storable_picture(data, spec.max_side, spec.strip_metadata, oddities.append)
    except PictureError as error:
        return Record(replace(got, reason=f"picture: {error}"))
    except Exception as error:  # hostile bytes make libraries raise anything
        return Record(replace(got, reason=f"picture: cannot be decoded ({type(error).__name__})"))
    same = stored == data and (web or kept)
    return Record(got, facts, None if same else stored, data if web else None, tuple(oddities))


# Where a picture is ----------------------------------------------------------------------------------------------


def picture_key(picture: str, embedded: bytes | None, spec: CollectSpec) -> str:
    """Identity of a picture: its URL; a file's path, size and time; the hash of bytes that came with the row."""
    base = spec.base
    if embedded is not None:
        return EMBEDDED + hashlib.sha256(embedded).hexdigest()
    if (url := _url(picture, base)) is not None:
        return url
    base = _local(base)
    if "://" in base:
        return f"{base}/{picture}"
    path = _local_file(picture, spec) if spec.beside else Path(base).absolute() / _local(picture)
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # reading it will say so
        return f"file:{path}"
    return f"file:{path} {found.st_size} {found.st_mtime_ns}"


@asynccontextmanager
async def receiving(
    picture: str, embedded: bytes | None, spec: CollectSpec, downloader: Downloader, threads: ThreadPoolExecutor
) -> AsyncIterator[Fetched]:
    """Give the bytes of a picture, whatever they are: from its row, a file below the table's folder, or the web.

    The slot of a connection is kept until the block ends. Never raises: `reason` says why there are none.
    """
    if embedded is not None:
        yield Fetched(None, None, embedded)
    elif (url := _url(picture, spec.base)) is not None:
        async with downloader.fetching(url) as got:
            yield got
    else:
        read = await asyncio.get_running_loop().run_in_executor(threads, _read, picture, spec)
        yield Fetched(None, None, read) if isinstance(read, bytes) else Fetched(None, None, None, reason=read)


def _url(picture: str, base: str) -> str | None:
    """URL of a picture of the web; None of a file."""
    if picture.lower().startswith(("http://", "https://")):
        return picture
    if urlsplit(base).scheme in ("http", "https") and "://" not in picture:
        return urljoin(f"{base}/", picture)
    named = HOST.match(picture) and "://" not in base and not (Path(base) / picture).exists()
    return f"https://{picture}" if named else None


def _local(base: str) -> str:
    """A folder of this machine as a path, also where it is given as a URL."""
    return unquote(urlsplit(base).path) if base.startswith(("file://", "local://")) else base


def _read(picture: str, spec: CollectSpec) -> bytes | str:
    """A file below the table's folder, here or on the table's own file system; or why it cannot be had."""
    base, picture, largest = _local(spec.base), _local(picture), spec.download.max_bytes
    if (scheme := urlsplit(picture).scheme) in STORES and "://" in picture:
        opened = partial(open_bytes, picture)
    elif "://" in picture:
        return f"picture address begins with {scheme}://, which is not fetched"
    elif "://" in base:
        if picture.startswith("/") or ".." in picture.split("/"):
            return LEAVES
        opened = partial(open_bytes, f"{base}/{picture}")
    else:
        found = _local_file(picture, spec)
        if isinstance(found, str):
            return found
        opened = partial(_open_file, found)
    try:
        with opened() as file:
            data = file.read(largest + 1)
    except ValueError:
        return "picture path is none"
    except ImportError as error:
        return f"picture cannot be read: {first_line(error)}"
    except OSError as error:
        return f"picture cannot be read: {error.strerror or first_line(error)}"
    return data if len(data) <= largest else f"too large: more than {largest:,} bytes"


def _local_file(picture: str, spec: CollectSpec) -> Path | str:
    """The file that a path names inside the folder of pictures, or why it names none."""
    folder = Path(_local(spec.base)).resolve()
    named = [folder / picture]
    if spec.beside and "://" not in spec.beside:
        named += [folder / picture.lstrip("/"), Path(spec.beside).resolve() / picture]
    try:
        inside = [path for one in named if (path := one.resolve()).is_relative_to(folder)]
    except (ValueError, RuntimeError, OSError):  # a null character, a circle of links, a name too long
        return "picture path is none"
    if not inside:
        return LINKED if Path(os.path.normpath(named[0])).is_relative_to(folder) else LEAVES
    return next((path for path in inside if os.path.exists(path)), inside[0])  # noqa: PTH110


def _open_file(path: Path) -> IO[bytes]:
    """Open a file, and nothing that is none: a pipe would be waited for, a device has no end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EISDIR, "Is a directory" if stat.S_ISDIR(mode) else "Is a pipe or a device")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise
