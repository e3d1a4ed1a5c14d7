"""Pages that open offline, all with one look: the base is `page.html.j2`.

    write_page(Path("catalogs/demo/check.html"), Path(__file__).with_name("page.html.j2"), name="demo", rows=3040)

A page is one file; it has no script and asks for nothing outside itself. Titles, ids and pictures are hostile: text
is escaped by the template, a picture is decoded, made small and encoded again, so that none of its metadata leaves.
"""

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from catalens.catalog.pictures import open_picture
from catalens.errors import PictureError

THUMBNAIL = 160
"""Pixels of a picture's longer side in a page."""


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Fill a template, which extends `page.html.j2`, and write the page; the same values give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    path.write_text(environment.get_template(template.name).render(values), encoding="utf-8", newline="\n")


def shown(value: object, most: int = 160, lines: bool = False) -> str:
    """Text that is safe to lay out: cut to `most` characters, control characters and surrogates replaced.

    `lines` keeps line breaks. A filter of every template; escaping is the template's part.
    """
    text = str(value)
    text = text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"
    kept = "\n" if lines else ""
    return "".join("\ufffd" if _hides(c) and c not in kept else c for c in text)


def thumbnail(picture: bytes) -> str | None:
    """A small JPEG data URI of pixels alone; None where the bytes are no picture."""
    try:
        image = open_picture(picture)
    except PictureError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", image.size, image.tobytes())  # Pillow would carry comments over
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=78, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _hides(character: str) -> bool:
    """Control characters, lone surrogates, and the two that reverse the text after them."""
    return unicodedata.category(character) in ("Cc", "Cs") or character in "\u202d\u202e"
