"""Pages that open offline, all with one look: the base is `page.html.j2`.

    write_page(Path("catalogs/demo/check.html"), Path(__file__).with_name("page.html.j2"), name="demo", rows=3040)

A page is one file that asks for nothing outside itself. It has no script, or one of ours that the page's own policy
knows by its hash. Titles, ids and pictures are hostile: text is escaped by the template, a picture is decoded, made
small and encoded again, so that none of its metadata leaves.
"""

import base64
import errno
import hashlib
import io
from pathlib import Path
from typing import Any, SupportsBytes

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from catalens.catalog.pictures import open_picture
from catalens.config.characters import visible
from catalens.errors import PictureError
from catalens.files import is_page

THUMBNAIL = 160
"""Pixels of a picture's longer side in a page."""


def write_page(path: Path, template: Path, script: Path | None = None, **values: Any) -> None:
    """Fill a template and write the page; the same values give the same bytes."""
    path.write_text(render_page(template, script, **values), encoding="utf-8", newline="\n")


def refuse_to_overwrite(path: Path) -> None:
    """Raise FileExistsError where something stands in the place of a page that is none of ours."""
    if path.exists() and not (path.is_file() and is_page(path)):
        raise FileExistsError(errno.EEXIST, "it is there already, and no page of catalens")


def render_page(template: Path, script: Path | None = None, **values: Any) -> str:
    """Fill a template, which extends `page.html.j2`; `script`, after all else, is the only code that it may run."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    code = script.read_text(encoding="utf-8") if script else ""
    return environment.get_template(template.name).render(
        script=Markup(code), script_hash=source_hash(code), **values
    )


def source_hash(source: str) -> str:
    """Name a style or a script as a Content-Security-Policy does: `sha256-...`."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode('ascii')}"


def shown(value: object, most: int = 160, lines: bool = False) -> str:
    """Text that is safe to lay out: cut to `most` characters, control characters and surrogates replaced.

    `lines` keeps line breaks. A filter of every template; escaping is the template's part.
    """
    text = str(value)
    text = text if len(text) <= most else text[: most - 1].rstrip() + "\u2026"
    return visible(text if lines else text.replace("\n", "\ufffd"))


def thumbnail(picture: SupportsBytes, side: int = THUMBNAIL) -> str | None:
    """A small WebP data URI of pixels alone, at most `side` pixels; None where the bytes are no picture."""
    try:
        image = open_picture(bytes(picture))
    except PictureError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", image.size, image.tobytes())  # Pillow would carry comments over
    buffer = io.BytesIO()
    bare.save(buffer, "WEBP", quality=65)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
