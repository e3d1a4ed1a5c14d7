"""Tables as text: their encoding and delimiter, told from the bytes, and records one by one.

    "sku;título\\n1;Niño azul"   in UTF-8, in UTF-16 with or without a mark   ->  told from the bytes alone
    the same in Windows-1252    ->  "cp1252": read as cp1250 it would be "Nińo", which no language writes
    one word, "Niño"            ->  an error that shows both readings and asks for --encoding
    "sku;title\\n1;\\"open\\n2;Bag\\n"   ->   ["sku", "title"], "a quote that is not closed", ["2", "Bag"]

A code page has no mark: the languages that could have written the bytes are compared by `chardet`, among the pages
that spreadsheets write. A reading is taken only where it stands out from every other that gives other text.

Python's csv reads the records; what cannot be read costs its own row. A quote that opens in one record and closes in
another would swallow all rows between them, so a record of several lines is taken apart where it cannot be one cell
with line breaks.
"""

import codecs
import csv
import errno
import io
import itertools
import json
import re
import unicodedata
import zipfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

import chardet
import fsspec

from catalens.errors import CatalogError, first_line
from catalens.reading.nested import parsed, with_answer

PAGES = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"),
    *("cp932", "gb18030", "big5hkscs", "cp949", "mac-roman", "iso-8859-2"),
)
"""Encodings without a mark that Excel and its like write."""
WEIGHTS = {"cp1252": 1.15, "cp1257": 0.85, "cp874": 0.85, "mac-roman": 0.85, "iso-8859-2": 0.95}
"""Factors by which a page is more or less likely before anything is read."""
LEAST = 0.01
"""Confidence below which no language of a page is recognised."""
MARGIN = 0.15
"""Share of its confidence by which a reading stands out; more for a page other than cp1252 where few words differ."""
ODD_WORDS = 0.1
"""Share of words no language writes from which a reading is not believed."""
DAMAGED_SHARE = 0.1
"""Damaged characters for each sound one up to which a table is UTF-8 with damage, and not in a code page."""
SYMBOLS = frozenset("€£¥©®™°•·–—‘’“”„«»‹›…½¼¾²³×±µ¿¡ªº§№´\u00a0\u202f\u2009")  # noqa: RUF001
INSIDE_WORDS = frozenset("’·®™")  # noqa: RUF001
DAMAGED = "\udcff"
"""Stands for bytes that are not of the encoding: half a character, so that no text that holds it is accepted."""

TABLES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xls", ".ods", ".xml")
MAX_DIGITS = 100
"""Digits from which a whole number in JSON is read as a double: nothing of use is as large."""
DELIMITERS = ",;\t|"
SHOWN_LINES = 50
"""Lines that tell the header from what stands above it."""
MAX_RECORD = 2**20
"""Characters of a record of several lines; a longer one is a quote that is never closed."""
NOT_CLOSED = "a quote that is not closed: --quote none reads quotes as text"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""A line that Excel writes above the header to say the delimiter."""

NOTHING = "\\N"
"""Sign that MySQL and PostgreSQL write for a cell without a value."""
Quotes = Literal["double", "backslash", "none"]
DOUBLED, BACKSLASHED = re.compile(r'[^\s,;|]""[^\s,;|]'), re.compile(r'[^\\]\\"[^\r\n,;|\t]')
"""A quote inside a cell as most programs write it, and as MySQL does."""

csv.field_size_limit(2**31 - 1)  # a cell that nobody uses may be of any length; those that are used are limited
codecs.register_error("catalens.damaged", lambda error: (DAMAGED, getattr(error, "end", 0)))


@dataclass(frozen=True)
class _Reading:
    encoding: str
    text: str
    confidence: float

    def words(self) -> list[str]:
        """Words beyond ASCII."""
        return [word for word in re.findall(r'[^\s;,|"]+', self.text) if not word.isascii()]


COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compressions by the first bytes of a file."""


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, decompressed where its first bytes say so, whatever it is called.

    Of a zip archive the one table in it is opened; CatalogError where there are several, or none.
    """
    if "://" not in path and Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise OSError(errno.EISDIR, "Is a folder, a pipe or a device")
    to_open: Any = fsspec.open(path, "rb")
    opened = to_open.open()
    file = opened if opened.seekable() else io.BufferedReader(opened)
    head = file.peek(8)[:8] if hasattr(file, "peek") else _peek(file)
    if name := next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None):
        codecs_by_name: Any = fsspec.compression.compr
        return codecs_by_name[name](file, mode="rb")
    return _member(path, file) if head.startswith(b"PK\x03\x04") else file


def _peek(file: IO[bytes]) -> bytes:
    head = file.read(8)
    file.seek(0)
    return head


def _member(path: str, file: IO[bytes]) -> IO[bytes]:
    """The table in a zip archive; the archive itself where it is a workbook."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise CatalogError(f"{path}: a damaged zip archive ({error})") from error
    names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    if {"[Content_Types].xml", "content.xml"} & set(names):
        file.seek(0)
        return file
    tables = [name for name in names if PurePosixPath(name).suffix.lower() in TABLES]
    if len(tables) != 1:
        found = ", ".join(map(repr, tables[:10])) if tables else "none"
        raise CatalogError(f"{path}: one table is read from a zip archive, and it holds {found}: unpack it")
    return archive.open(tables[0])


def detect_encoding(where: str, sample: bytes) -> str:
    """Detect the encoding, by Python's name; CatalogError that shows the readings where it cannot be told.

    `sample` is the beginning of the table, up to a whole line.
    """
    if wide := wide_encoding(sample):
        return wide
    decoded = sample.decode("utf-8", errors="catalens.damaged")
    damaged = decoded.count(DAMAGED)
    if damaged <= DAMAGED_SHARE * sum(not char.isascii() for char in decoded if char != DAMAGED):
        return "utf-8"
    return _page(where, sample)


def wide_encoding(sample: bytes) -> str | None:
    """UTF-32 or UTF-16 by its mark, or without one: every other byte of signs, digits and line ends is zero."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if sample.startswith(mark):
            return encoding
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) < len(sample) / 50 or min(even, odd) * 10 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _page(where: str, sample: bytes) -> str:
    readings = _readings(sample)
    if not readings or readings[0].confidence < LEAST:
        raise CatalogError(f"{where}: its encoding cannot be told: say which with --encoding")
    best, *others = readings
    if not others:
        return best.encoding
    words, other = best.words(), others[0].words()
    differing = [(one, two) for one, two in zip(words, other, strict=False) if one != two]
    needed = MARGIN if best.encoding == "cp1252" else max(MARGIN, 1 / max(1, len(set(differing))))
    if best.confidence - others[0].confidence >= needed * best.confidence:
        return best.encoding
    shown = [", ".join(dict.fromkeys(pair[side] for pair in differing[:5])) for side in (0, 1)]
    raise CatalogError(
        f"{where}: its encoding cannot be told: read as {best.encoding} it says {shown[0]!r}, "
        f"as {others[0].encoding} {shown[1]!r}: say which with --encoding"
    )


def _readings(sample: bytes) -> list[_Reading]:
    """Readings of `sample` that a language could have written, each text once, the likeliest first."""
    found: dict[str, _Reading] = {}
    guesses = chardet.detect_all(sample, ignore_threshold=True, include_encodings=PAGES, compat_names=False)
    western = sample.decode("cp1252", errors="replace")
    for guess in guesses:
        encoding = str(guess["encoding"])
        try:
            text = sample.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        encoding = "cp1252" if text == western else encoding  # the usual one of pages that agree
        reading = _Reading(encoding, text, float(guess["confidence"]) * WEIGHTS.get(encoding, 1.0))
        words = set(reading.words())
        if sum(map(_is_odd, words)) <= ODD_WORDS * len(words) and (
            text not in found or found[text].confidence < reading.confidence
        ):
            found[text] = reading
    return sorted(found.values(), key=lambda reading: -reading.confidence)


def _is_odd(word: str) -> bool:
    """Tell a word that no language writes: two scripts, a capital after a small letter, a sign between letters."""
    for one, two in itertools.pairwise(word):
        if one.isascii() and two.isascii():
            continue
        if one.isalpha() and two.isalpha() and (_script(one) != _script(two) or (one.islower() and two.isupper())):
            return True
    for index, char in enumerate(word):
        if char.isascii() or unicodedata.category(char)[0] in "LM" or _script(char) == "wide":
            continue
        between = 0 < index < len(word) - 1 and word[index - 1].isalpha() and word[index + 1].isalpha()
        if char not in SYMBOLS or (between and char not in INSIDE_WORDS):
            return True
    return False


def _script(char: str) -> str:
    """`LATIN`, `CYRILLIC` and so on; the scripts of East Asia, which mix, are one."""
    return "wide" if ord(char) >= 0x2E80 else unicodedata.name(char, "?").partition(" ")[0]


def detect_quotes(sample: str) -> Quotes:
    """Detect how a quote stands within a quoted cell."""
    return "backslash" if BACKSLASHED.search(sample) and not DOUBLED.search(sample) else "double"


def detect_delimiter(sample: str) -> str:
    """Detect the delimiter: what Excel's `sep=` line says, or the most frequent sign of the header outside quotes."""
    if given := SEPARATOR_LINE.match(sample):
        return given.group(1)
    header = re.match(r'(?:"(?:[^"]|"")*+"|[^"\r\n])*', sample.lstrip("\r\n"))
    plain = re.sub(r'"(?:[^"]|"")*+"', "", header.group() if header else "")
    return max(DELIMITERS, key=lambda sign: (plain.count(sign), -DELIMITERS.index(sign)))


def lines_above(sample: str, signs: str = DELIMITERS) -> tuple[int, str]:
    """Count lines above the header (a title, a date, notes), and the delimiter of the rows below; 0 where none are.

    Such a line has cells for less than half of the columns that most lines have.
    """
    lines = re.split(r"\r\n|\r|\n", sample)[:SHOWN_LINES]
    plain = [re.sub(r'"(?:[^"]|"")*+"', '"', line) for line in lines]
    filled_lines = [line for line in plain if line.strip()]
    widths = {
        sign: Counter(n for line in filled_lines if (n := line.count(sign)) > 1).most_common(1) for sign in signs
    }
    sign = max(signs, key=lambda sign: widths[sign][0][::-1] if widths[sign] else (0, 0))
    width, count = widths[sign][0] if widths[sign] else (0, 0)
    if count < 2 or count * 4 < len(filled_lines) or SEPARATOR_LINE.match(sample):
        return 0, ""
    cells = [sum(map(bool, map(str.strip, line.split(sign)))) for line in plain]
    above = next((index for index, filled in enumerate(cells) if filled * 2 > width), 0)
    told = any(line.strip() for line in lines[:above]) and not any('"' in line for line in lines[:above])
    return (above, sign) if told else (0, "")


def csv_rows(
    where: str, encoding: str, delimiter: str, quotes: Quotes = "double", above: int = 0
) -> Iterator[Mapping[Any, Any] | str]:
    """Yield the rows of a CSV by column, or why one cannot be read."""
    found = csv_records(where, encoding, delimiter, quotes, above)
    header = next(found)
    for cells in found:
        if isinstance(cells, list):
            if NOTHING in cells:
                cells = ["" if cell == NOTHING else cell for cell in cells]
            fits = len(cells) <= len(header)
            yield dict(zip(header, cells, strict=False)) if fits else "more values than the table has columns"
        else:
            yield cells


def csv_records(
    where: str, encoding: str, delimiter: str, quotes: Quotes = "double", above: int = 0
) -> Iterator[list[str] | str]:
    """Yield the records of a CSV, the header first, which stands below `above` lines, as `records` does."""
    with open_bytes(where) as file:
        yield from records(itertools.islice(_lines(file, encoding), above, None), delimiter, quotes)


def json_rows(where: str, encoding: str) -> Iterator[Mapping[Any, Any] | str]:
    """Yield the rows of a JSON Lines file, or why one cannot be read."""
    with open_bytes(where) as file:
        for line in filter(str.strip, _lines(file, encoding)):
            try:
                row = json.loads(line, parse_int=lambda digits: (int if len(digits) <= MAX_DIGITS else float)(digits))
            except (ValueError, RecursionError) as error:
                row = parsed(line)  # as Python prints it
                yield with_answer(row) if isinstance(row, dict) else f"not JSON: {first_line(error)}"
            else:
                yield with_answer(row) if isinstance(row, dict) else "not a JSON object"


def _lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends, as csv wants them; what is not of the encoding is marked in them."""
    with io.TextIOWrapper(file, encoding=encoding, errors="catalens.damaged", newline="") as text:
        yield next(text, "").removeprefix("\ufeff")
        yield from text


def records(lines: Iterable[str], delimiter: str, quotes: Quotes = "double") -> Iterator[list[str] | str]:
    """Yield the cells of each record, the header's first, or why it cannot be read; blank lines are left out.

    A quote within a quoted cell stands twice (`double`) or behind a backslash; with `none` quotes are text.
    """
    how: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if quotes == "none" else {}
    if quotes == "backslash":
        how = {"escapechar": "\\", "doublequote": False}
        nothing = re.compile(rf"(?<![^{re.escape(delimiter)}])\\N(?=[{re.escape(delimiter)}\r\n]|$)")
        lines = (nothing.sub("", line) for line in lines)
    source, width = _Lines(lines), 0
    reader = csv.reader(source, delimiter=delimiter, strict=True, **how)
    while True:
        source.taken, source.length = [], 0
        try:
            cells, reason = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            closed = not str(error).startswith(("unexpected end", NOT_CLOSED))
            cells, reason = [], f"a stray quote: {error}; --quote none reads quotes as text" if closed else NOT_CLOSED
        if width and len(source.taken) > 1 and (reason or _are_rows(source.taken, delimiter, width)):
            reason = NOT_CLOSED
            source.again.extendleft(reversed(source.taken[1:]))
        if reason:
            yield reason
        elif cells:
            width = width or len(cells)
            yield cells


def _are_rows(lines: list[str], delimiter: str, width: int) -> bool:
    """Tell lines that each have the cells of a row of their own: quotes of two rows met there."""
    return width > 2 and all(line.count(delimiter) == width - 1 for line in lines)


class _Lines:
    """Lines for csv that can be given back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        first = next(self._lines, "")
        self.again = deque([] if SEPARATOR_LINE.fullmatch(first) else [first])
        """Lines that come before those that are left."""
        self.taken: list[str] = []
        """Lines of the record that is being read, of `length` characters."""
        self.length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.taken and self.length > MAX_RECORD:
            raise csv.Error(NOT_CLOSED)
        line = self.again.popleft() if self.again else next(self._lines)
        self.taken.append(line)
        self.length += len(line)
        return line
