"""Drawn rows -> a catalogue, split by product, with the noise floor of its prices."""

from collections.abc import Callable, Mapping
from pathlib import Path

from catalens.catalog.splits import DEFAULT_FRACTIONS, split_of
from catalens.catalog.storage import CatalogCard, CatalogWriter, Roles
from catalens.sampling.drawing import DEMO, Assortment, draw_catalog, noise_floor

SAMPLE_ROLES = Roles(
    id="product_code", fields={"title": "text", "category3_code": "category", "full_price": "number"}
)


def sample_catalog(
    out: Path | str,
    rows: int,
    seed: int = 0,
    assortment: Assortment = DEMO,
    noise: float = 0.08,
    workers: int = 1,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    progress: Callable[[int], None] = lambda done: None,
) -> CatalogCard:
    """Draw `rows` pictures of products into the catalogue `out`; the same arguments give the same bytes.

    `noise` is the standard deviation of the log-normal factor on each price: the card's figures hold what nobody can
    know from a picture, as `mdape` and `mae`. Raises CatalogError where `out` exists.
    """
    provenance = {
        "command": "sample",
        "rows": rows,
        "seed": seed,
        "assortment": assortment.name,
        "noise": noise,
        "fractions": dict(fractions),
    }
    prices: list[float] = []
    expected: list[float] = []
    with CatalogWriter(out, SAMPLE_ROLES, provenance) as writer:
        for done, row in enumerate(draw_catalog(rows, seed, assortment, workers, noise), start=1):
            values = {"title": row.title, "category3_code": row.category3_code, "full_price": row.full_price}
            writer.add(split_of(row.product_code, fractions), row.image, row.product_code, values)
            prices.append(row.full_price)
            expected.append(row.expected_price)
            progress(done)
        writer.figures = noise_floor(prices, expected)
    return writer.card
