"""Sample data like a real catalogue, with nothing of the catalogue in it.

    catalogs/burberry   ->  profile.json   ->  catalogs/like-burberry
    "Vintage Check Cotton Scarf", 390.0        "Check Cotton Dorvel Scarf", 370.0, a drawn scarf

The profile is learnt from the catalogue (`learning`), speaks of k products or more in all it says (`profile`), and is
all that is drawn from (`products`, `text`, `pictures`). What was drawn is compared with the catalogue, or with the
profile alone where that is all there is (`fidelity`).
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from catalens.catalog.folder import refuse_taken
from catalens.catalog.pictures import picture_facts
from catalens.catalog.splits import split_of
from catalens.catalog.storage import FACTS, Catalog, CatalogCard
from catalens.catalog.writer import CatalogWriter
from catalens.mimicking.fidelity import Fidelity, compare, refuse_leaks
from catalens.mimicking.learning import Survey, learn_profile, survey_catalog
from catalens.mimicking.page import write_fidelity
from catalens.mimicking.pictures import draw_product
from catalens.mimicking.products import Planner
from catalens.mimicking.profile import K, load_profile, save_profile
from catalens.progress import Progress, silent
from catalens.sampling.assortment import plan_rows
from catalens.sampling.sample import in_pool, noise_floor

SHOWN = 24  # products on the page


class Mimicked(NamedTuple):
    """A catalogue that was drawn like another."""

    card: CatalogCard
    fidelity: Fidelity


def mimic_catalog(
    out: Path | str,
    like: Path | str,
    rows: int | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Mimicked:
    """Draw the catalogue `out` like another one, or from a `profile.json`; the same arguments give the same bytes.

    As many rows and the same split fractions as there, unless given. Beside the catalogue stand `profile.json` and
    `fidelity.html`. Raises CatalogError where `out` exists, `like` is neither or has too few products, or where
    something of the original is in a drawn row: nothing is written then.
    """
    refuse_taken(Path(out))
    original = None
    if Path(like).is_file():
        profile = load_profile(like)
    else:
        catalog = Catalog(like)
        original = survey_catalog(catalog, progress)
        profile = learn_profile(catalog, K, original)
    rows, fractions, roles = rows or profile.rows, fractions or profile.fractions, profile.roles
    text = profile.model_dump_json()
    provenance = {
        "command": "sample --like",
        "profile": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        "rows": rows,
        "seed": seed,
        "fractions": dict(fractions),
    }
    drawn = Survey(roles, rows)
    prices: list[tuple[float, float]] = []
    shown: list[dict[str, Any]] = []
    with CatalogWriter(out, roles, provenance, profile.integer_fields) as writer:
        plan = plan_rows(rows, Planner(profile, seed).photographs)
        for done, (product, image) in enumerate(
            in_pool(partial(draw_product, text=text, seed=seed), plan, workers), start=1
        ):
            row = {roles.image: image, roles.id: product.id, **product.values, FACTS: picture_facts(image)}
            split = split_of(product.id, fractions)
            writer.add(split, image, product.id, product.values, row[FACTS])
            shown += [row] if len(shown) < SHOWN and product.id not in drawn.firsts else []
            drawn.take(split, row)
            prices += [(float(row[name]), expected) for name, expected in product.expected.items()]
            progress("drawing", done, rows)
        if original:
            refuse_leaks(original, drawn, profile.k)
        if len(profile.numbers) == 1 and min(prices, default=(0, 0))[0] > 0:
            writer.figures = noise_floor(prices)
        fidelity = compare(profile, original, drawn)
        save_profile(profile, writer.aside / "profile.json")
        write_fidelity(writer.aside / "fidelity.html", profile, fidelity, drawn, shown)
    return Mimicked(writer.card, fidelity)
