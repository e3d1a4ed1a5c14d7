"""Whether a model looks: what blanked and shuffled pictures are, and when a score has fallen with them."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from catalens.catalog.pictures import picture_size
from catalens.config import LOWER_IS_BETTER


def blanked(picture: bytes) -> bytes:
    """A grey picture of the same size: as many tokens, nothing to see."""
    buffer = io.BytesIO()
    Image.new("RGB", picture_size(picture), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def shuffle(pictures: Sequence[bytes], ids: Sequence[str]) -> list[bytes]:
    """Every row gets the picture of another product, as long as none has half of the rows."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    shuffled = list(pictures)
    for place, row in enumerate(order):
        shuffled[row] = pictures[order[(place + len(order) // 2) % len(order)]]
    return shuffled


def pictures_matter(model: Mapping[str, Any], shuffled: Mapping[str, Any]) -> bool:
    """Whether wrong pictures hurt: some field's first figure is worse, beyond both 95 % intervals."""

    def hurts(field: str, metric: str) -> bool:
        own, others = model["fields"][field][metric], shuffled["fields"][field][metric]
        return own["high"] < others["low"] if metric in LOWER_IS_BETTER else own["low"] > others["high"]

    return any(hurts(field, next(iter(figures))) for field, figures in model["fields"].items())
