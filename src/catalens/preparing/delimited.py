"""CSV and its kin, record by record: what cannot be read costs its own row.

    "sku;title\\n1;\\"open\\n2;Bag\\n"   ->   ["sku", "title"], "a quote that is not closed", ["2", "Bag"]

Python's csv reads the records. A quote that opens in one record and closes in another would swallow all rows between
them, so a record of several lines is taken apart where it cannot be one cell with line breaks.
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator

csv.field_size_limit(2**31 - 1)  # a cell that nobody uses may be of any length; `values` limits those that are used

DELIMITERS = ",;\t|"
MAX_RECORD = 2**20
"""Characters of a record of several lines; a longer one is a quote that is never closed."""
NOT_CLOSED = "a quote that is not closed"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
"""A line that Excel writes above the header to say the delimiter."""


def detect_delimiter(sample: str) -> str:
    """Detect the delimiter: what Excel's `sep=` line says, or the most frequent sign of the header outside quotes."""
    if said := SEPARATOR_LINE.match(sample):
        return said.group(1)
    header = re.match(r'(?:"(?:[^"]|"")*+"|[^"\r\n])*', sample.lstrip("\r\n"))
    plain = re.sub(r'"(?:[^"]|"")*+"', "", header.group() if header else "")
    return max(DELIMITERS, key=lambda sign: (plain.count(sign), -DELIMITERS.index(sign)))


def records(lines: Iterable[str], delimiter: str) -> Iterator[list[str] | str]:
    """Yield the cells of each record, the header's first, or why it cannot be read; blank lines are left out."""
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    width = 0
    while True:
        source.taken.clear()
        source.length = 0
        try:
            cells, reason = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            cells, reason = [], _reason(error)
        if width and len(source.taken) > 1 and (reason or _are_rows(source.taken, delimiter, width)):
            reason = NOT_CLOSED
            source.put_back()
        if reason:
            yield reason
        elif cells:
            width = width or len(cells)
            yield cells


class _Lines:
    """Lines for csv that can be given back."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        first = next(self._lines, "")
        self._again = deque([] if SEPARATOR_LINE.fullmatch(first) else [first])
        self.taken: list[str] = []
        """Lines of the record that is being read."""
        self.length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.taken and self.length > MAX_RECORD:
            raise csv.Error(NOT_CLOSED)
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.length += len(line)
        return line

    def put_back(self) -> None:
        """Give back all lines of the record but the first."""
        self._again.extendleft(reversed(self.taken[1:]))


def _are_rows(lines: list[str], delimiter: str, width: int) -> bool:
    """Tell lines that each have the cells of a row of their own: quotes of two rows met there."""
    return width > 2 and all(line.count(delimiter) == width - 1 for line in lines)


def _reason(error: csv.Error) -> str:
    text = str(error)
    return NOT_CLOSED if text.startswith(("unexpected end", NOT_CLOSED)) else f"a stray quote: {text}"
