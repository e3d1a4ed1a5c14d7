"""Pictures that a cell names: addresses, paths and bytes, in the forms that shops export.

"http://shop/1.jpg, http://shop/2.jpg"          two addresses
'["http://shop/1.jpg"]', [{"large": "..."}]     lists and objects, also as text
"data:image/png;base64,iVBOR..."                bytes
"//cdn.shop/x.jpg", "pix\\\\p014.jpg"             https://cdn.shop/x.jpg, pix/p014.jpg
'<img src="...">', '=IMAGE("...")', "![](...)"   the addresses in them
template "images/{id}.jpg"                      a path made of other cells of the row
"""

import ast
import base64
import binascii
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from catalens.reading.nested import parsed

PICTURE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?|#|$)", re.IGNORECASE)
BEST_KEYS = (
    *("hi_res", "original", "full", "large", "url", "src", "href", "image"),
    *("image_url", "link", "path", "thumb"),
)
"""Keys of an object that hold its picture, the best first."""
WRAPPED = re.compile(
    r"<img\b[^>]*?\bsrc\s*=\s*[\"']([^\"']+)|=(?:IMAGE|HYPERLINK)\(\s*\"([^\"]+)|!?\[[^\]]*\]\(([^)\s]+)"
    r"|[^,()]+\.\w{3,4} \((https?://[^)\s]+)\)",
    re.IGNORECASE,
)
"""An address in HTML, a formula of a spreadsheet, Markdown, or behind a file's name as Airtable writes it."""
HEX = re.compile(r"(?:\\x|0x)?((?:[0-9a-f]{2}){64,})", re.IGNORECASE)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")
SIMPLE = re.compile(r"https?://[\w./%?=&+@-]+|\w[\w./-]{0,60}")
"""One address or path, which is asked for as it stands."""
SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//"
BETWEEN_ADDRESSES = re.compile(rf"\s*[,;|#~]+\s*(?={SCHEME})|\s+(?={SCHEME})")
BETWEEN_PATHS, BLANKS = re.compile(r"\s*[,;|\n]+\s*"), re.compile(r"\s+")
TEMPLATE = re.compile(r"\{([^{}]+)\}")


def pictures_of(cell: Any) -> list[str | bytes]:
    """The pictures that a cell names, in its order; empty where it names none."""
    if isinstance(cell, bytes):
        return [cell]
    if isinstance(cell, Mapping):
        data = cell.get("bytes")
        if isinstance(data, bytes):
            return [data]
        keys = [key for key in BEST_KEYS if cell.get(key)]
        found = next((found for key in keys if (found := pictures_of(cell[key]))), [])
        own = cell.values() if all(str(key).isdigit() for key in cell) else filter(_is_plain, cell.values())
        return found or [one for value in own for one in pictures_of(value) if is_named_picture(one)]
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return [picture for item in cell for picture in pictures_of(item)]
    return _of_text(str(cell).strip()) if isinstance(cell, str | int) and not isinstance(cell, bool) else []


def _of_text(text: str) -> list[str | bytes]:
    if not text:
        return []
    if SIMPLE.fullmatch(text) and "&amp" not in text:
        return [text]
    if (nested := parsed(text)) is not text:
        return pictures_of(nested)
    if "(" in text or "<" in text:
        wrapped = ["".join(found) for found in WRAPPED.findall(text)]
        if wrapped:
            return [_address(one) for one in wrapped]
    if (data := _embedded(text)) is not None:
        return [data]
    text = text[1:-1] if text[0] + text[-1] in ("[]", "{}") else text  # a list of PostgreSQL
    parts = BETWEEN_ADDRESSES.split(text) if re.match(rf"[\"']?{SCHEME}", text) else []
    for between in () if parts else (BETWEEN_PATHS, BLANKS):
        some = [part for part in between.split(text) if part]
        if not parts and len(some) > 1 and all(map(PICTURE_NAME.search, some)):
            parts = some
    return [_address(one) for part in parts or [text] if (one := part.strip(" \"'"))]


def _is_plain(value: Any) -> bool:
    """Tell a cell of an object that stands for itself: what lies deeper belongs to something else, as a logo does."""
    return isinstance(value, str | bytes) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def is_named_picture(picture: str | bytes) -> bool:
    """Tell bytes, and an address or path that ends as pictures do."""
    return isinstance(picture, bytes) or bool(PICTURE_NAME.search(picture))


def _embedded(text: str) -> bytes | None:
    """Bytes of a data URI, or of a picture in base64, in hexadecimal or as Python prints it."""
    if text[:2] in ("b'", 'b"'):
        try:
            printed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError):
            return None
        return printed if isinstance(printed, bytes) else None
    if (digits := HEX.fullmatch(text)) and (data := bytes.fromhex(digits[1])).startswith(MAGIC):
        return data
    if text[:5].lower() == "data:":
        head, comma, body = text[5:].partition(",")
        if not comma:
            return None
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(body)
        text = body
    elif not BASE64.fullmatch(text):
        return None
    plain = re.sub(r"\s", "", text).translate(str.maketrans("-_", "+/"))
    try:
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(MAGIC) or data[4:12] == b"ftypavif" else None


def _address(text: str) -> str:
    """An address or path as it is asked for."""
    text = html.unescape(text) if "&amp;" in text else text
    if text.startswith("//"):
        return f"https:{text}"
    if re.match(r"https?:[/\\]", text, flags=re.IGNORECASE):  # also with one slash, or with backslashes
        return re.sub(r"^(https?:)[/\\]+", r"\1//", text, flags=re.IGNORECASE).replace("\\", "/")
    return text if "://" in text else text.replace("\\", "/")


def filled(template: str, row: Mapping[Any, Any]) -> str | None:
    """A path with the row's cells, or their first signs (`{id[:3]}`), in its braces; None where one is missing."""
    path = template
    for inside in TEMPLATE.findall(template):
        name, _, cut = inside.partition("[:")
        cell = row.get(name)
        if cell is None or cell == "":
            return None
        text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
        path = path.replace(f"{{{inside}}}", text[: int(cut.rstrip("]"))] if cut else text)
    return path
