"""What no table should hold, as hypothesis draws it."""

import base64
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from shop import picture

WORDS = r"""@SUM(A1) =1+1 NULL nan -inf [bold] [/] {{7*7}} ${HOME} %s%n <script>alert(1)</script><|end|> 0x10 1_000
9007199254740993 9223372036854775808 -9223372036854775809 0.1234567890123456789 1e400 1e-400 -0 007 1e5 +5 --5
1,299.00 1.299,00 ١٢٣ ½ €5 12EUR 2024-02-30"""
NASTY = (
    *WORDS.split(),
    *("12 EUR", '"', "'", "\x00", "a\x00b", "\x1b[2J\x1b]0;owned\x07", "\x9b31mred", "\ufeffBag", "\u202egnp.exe"),
    *("zero\u200bwidth", "👩\u200d👩\u200d👧", "two\r\nlines", "\r", "  ", "\xa0", 'say "hi", he; or\tnot|'),
    *('=HYPERLINK("http://x.example")', "x" * 2001, "x" * 200_000, "9" * 400),
)
BROKEN = ("\ud83d", "half \ud800 an emoji", "\udc80")
"""Lone surrogates, as slices of JavaScript strings leave them; no CSV can hold them."""
PATHS = r"""../secret.png photos/../../secret.png {base}/../secret.png {base}/photos/1.png ./photos/1.png
photos/../photos/2.png photos/link.png photos/loop.png photos/pipe.png photos photos/1.png/ photos\1.png /dev/zero
/dev/stdin /proc/self/mem /etc/passwd ~/secret.png C:\secret.png file://{base}/photos/1.png FILE:///etc/passwd
javascript:alert(1) ftp://127.0.0.1/1.png s3://bucket/1.png zip://photos::1.zip http:// http:///1.png http://[::1
http://127.0.0.1/1.png http://0x7f000001/1.png http://[::ffff:127.0.0.1]/1.png http://127.0.0.1:99999/1.png
http://me:secret@127.0.0.1/1.png http://169.254.169.254/latest/meta-data hTTps://10.0.0.1/1.png"""
DATA_URL = f"data:image/png;base64,{base64.b64encode(picture(1)).decode()}"
PLACES = (*PATHS.split(), DATA_URL, "photos/1.png\x00.txt", "http://10.0.0.1/\x1b[2J")
"""Cells of pictures; {base} is the table's folder, beside which a picture lies that is not the table's."""
LINES: Mapping[str, tuple[str, ...]] = {
    "csv": ("one", "a,b,c,d,e,f,g,h,i", ",,,,,"),
    "jsonl": (
        "{broken",
        "[1, 2]",
        "null",
        '"text"',
        "[" * 5000,
        '{"sku": ' + "9" * 5000 + "}",
        '{"sku": "P1"}',
        "{}",
    ),
}
"""Whole lines that are no row; every one has to be rejected."""
HEADERS = ("title", "ti\x1b[2Jtle", "a,b", 'the "title"', "two\nlines", "=title", "[bold]", "größe")

TEXTS = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
JSON = st.recursive(
    TEXTS
    | st.sampled_from([*BROKEN, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400])
    | st.integers()
    | st.floats()
    | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)
BYTES = st.binary(max_size=9) | st.integers(0, 9).map(picture)
TYPES: Mapping[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), TEXTS | st.sampled_from(BROKEN) | st.none()),
    "large string": (pa.large_string(), TEXTS),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint64": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float32": (pa.float32(), st.floats(width=32).map(np.float32)),
    "float16": (pa.float16(), st.floats(width=16).map(np.float16)),
    "double": (pa.float64(), st.floats()),
    "boolean": (pa.bool_(), st.booleans()),
    "decimal": (pa.decimal128(38, 6), st.decimals(-(10**9), 10**9, places=6)),
    "wide decimal": (pa.decimal256(60, 0), st.integers(-(10**50), 10**50).map(Decimal)),
    "date": (pa.date32(), st.dates()),
    "timestamp": (pa.timestamp("us"), st.datetimes()),
    "nanoseconds": (pa.timestamp("ns"), st.integers(0, 2**62).map(lambda ns: np.datetime64(ns, "ns"))),
    "far timestamp": (pa.timestamp("us"), st.sampled_from([2**62, -(2**62)])),
    "duration": (pa.duration("s"), st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds))),
    "time": (pa.time64("us"), st.times()),
    "binary": (pa.binary(), BYTES),
    "list": (pa.list_(pa.string()), st.lists(TEXTS, max_size=3)),
    "struct": (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        st.fixed_dictionaries({"bytes": st.none() | BYTES, "path": st.sampled_from(PLACES)}),
    ),
    "null": (pa.null(), st.none()),
}
"""Types of a Parquet column, with cells that fit."""
