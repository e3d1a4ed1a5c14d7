"""How well near-duplicates are found: the share of copies of each sort, and the pairs that are no copies.

    python benchmarks/near_duplicates.py --catalog catalogs/furniture

Every picture is copied in each way; a copy is found where its fingerprint is within the threshold of the original's.
Without --catalog the pictures are drawn. `--template 20000` prints instead what it takes to tie as many rows that
show one mock-up, each in another colour and with noise.
"""

import argparse
import io
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.table import Table

from catalens.catalog import Catalog, components, fingerprint, near_pairs, open_picture
from catalens.catalog.duplicates import THRESHOLD
from catalens.sampling import draw_catalog

THRESHOLDS = (16, 20, THRESHOLD, 28, 32)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", help="a catalogue instead of drawn pictures")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--template", type=int, help="rows of one mock-up, instead of copies")
    options = parser.parse_args()
    if options.template:
        _template(options.template)
        return
    ids, pictures = zip(*_pictures(options.catalog, options.rows), strict=True)
    originals = _fingerprints(list(pictures))
    table = Table(title=f"{len(pictures)} pictures: copies found, by most bits that differ (ours: {THRESHOLD})")
    table.add_column("copy")
    for threshold in THRESHOLDS:
        table.add_column(str(threshold), justify="right")
    for name, copy in COPIES.items():
        copies = _fingerprints([copy(picture) for picture in pictures])
        shares = []
        for threshold in THRESHOLDS:
            pairs = near_pairs(np.concatenate([originals, copies]), threshold)
            shares.append(np.isin(np.arange(len(ids)), pairs[pairs[:, 1] - pairs[:, 0] == len(ids), 0]).mean())
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    wrong = [_others(ids, near_pairs(originals, threshold)) for threshold in THRESHOLDS]
    table.add_section()
    table.add_row("pairs of different products", *map(str, wrong))
    Console().print(table)


def _template(rows: int) -> None:
    """Print time and memory of tying rows that all look alike."""
    _, pictures = zip(*_pictures(None, 1), strict=True)
    pixels = np.asarray(pictures[0].resize((128, 128)), np.float32)
    dice = np.random.default_rng(0)

    def recoloured() -> Image.Image:
        mixed = pixels @ dice.dirichlet((1, 1, 1), 3).T + dice.normal(0, 12, pixels.shape)
        return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))

    prints = np.array([np.frombuffer(fingerprint(recoloured()), np.uint8) for _ in range(rows)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pairs = near_pairs(prints)
    seconds = time.perf_counter() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    groups = len(np.unique(components(pairs, rows)))
    print(
        f"{rows:,} rows of one mock-up, {len(np.unique(prints, axis=0)):,} of them different: {seconds:.1f} s, ",
        end="",
    )
    print(f"{more / 1024:.0f} MB more than before, {len(pairs):,} pairs, {groups:,} group{'s' * (groups > 1)}")


def _pictures(catalog: str | None, rows: int) -> Iterator[tuple[str, Image.Image]]:
    if catalog is None:
        for drawn in draw_catalog(rows, seed=0):
            yield drawn.product_code, open_picture(drawn.image)
        return
    opened = Catalog(catalog)
    for row in opened.rows("train", [opened.card.roles.image, opened.card.roles.id])[:rows]:
        yield row[opened.card.roles.id], open_picture(row[opened.card.roles.image])


def _fingerprints(pictures: list[Image.Image]) -> NDArray[np.uint8]:
    return np.array([np.frombuffer(fingerprint(picture), np.uint8) for picture in pictures])


def _others(ids: tuple[str, ...], pairs: NDArray[np.intp]) -> int:
    return sum(ids[one] != ids[other] for one, other in pairs)


def _scaled(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.resize((round(picture.width * factor), round(picture.height * factor)))


def _hue(degrees: int) -> Callable[[Image.Image], Image.Image]:
    def turn(picture: Image.Image) -> Image.Image:
        hue, saturation, value = picture.convert("HSV").split()
        turned = hue.point([(level + degrees * 256 // 360) % 256 for level in range(256)])
        return Image.merge("HSV", (turned, saturation, value)).convert("RGB")

    return turn


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def encode(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return open_picture(buffer.getvalue())

    return encode


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized to 60 %": _scaled(0.6),
    "resized to 170 %": _scaled(1.7),
    "JPEG of quality 30": _jpeg(30),
    "hue turned by 60°": _hue(60),
    "hue turned by 180°": _hue(180),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "20 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "mirrored": ImageOps.mirror,
    "mirrored, JPEG 50, 70 %": lambda picture: _jpeg(50)(_scaled(0.7)(ImageOps.mirror(picture))),
}


if __name__ == "__main__":
    main()
