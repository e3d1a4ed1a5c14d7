"""Sample data like a real catalogue, with nothing of the catalogue in it.

    catalogs/burberry   ->  profile.json   ->  catalogs/like-burberry
    "Vintage Check Cotton Scarf", 390.0        "Check Cotton Dorvel Scarf", 370.0, a drawn scarf

The profile is learnt from the catalogue (`learning`), speaks of k products or more in all it says (`profile`), and is
all that is drawn from (`products`, `photographs`). What was drawn is compared with the catalogue, or with the profile
alone where that is all there is (`surveys`, `privacy`, `fidelity`).
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from catalens.catalog.folder import refuse_taken
from catalens.catalog.splits import split_of
from catalens.catalog.storage import Catalog, CatalogCard, CatalogWriter, Roles
from catalens.mimicking.fidelity import Cost, Fidelity, compare, time_steps, write_fidelity
from catalens.mimicking.learning import learn_profile
from catalens.mimicking.photographs import photograph
from catalens.mimicking.privacy import refuse_leaks
from catalens.mimicking.products import MimickedProduct, Planner
from catalens.mimicking.profile import K, Profile, load_profile, save_profile
from catalens.mimicking.surveys import Meter, Survey, survey_catalog
from catalens.sampling.drawing import in_pool, noise_floor

__all__ = ["Fidelity", "K", "Mimicked", "Profile", "learn_profile", "load_profile", "mimic_catalog", "save_profile"]

EXAMPLES = 24
"""Products that the page shows."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, rows done and rows in all."""


@dataclass(frozen=True)
class Mimicked:
    """A catalogue that was drawn like another."""

    card: CatalogCard
    fidelity: Fidelity
    step: Cost | None
    """Seconds of a training step, where there was a meter and the original; no part of the page, which is the same
    every time."""


def mimic_catalog(
    out: Path | str,
    like: Path | str,
    rows: int | None = None,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
    workers: int = 1,
    meter: Callable[[Roles], Meter] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Mimicked:
    """Draw the catalogue `out` like another one, or from a `profile.json`; the same arguments give the same bytes.

    As many rows and the same split fractions as there, unless given. `meter` makes what says what rows
    cost a model. Beside the catalogue stand `profile.json` and `fidelity.html`. Raises CatalogError where `out`
    exists, `like` is neither or has too few products, or where something of the original is in a drawn row: nothing
    is written then.
    """
    refuse_taken(Path(out))
    profile, original = _know(Path(like), meter, progress)
    rows = rows or profile.rows
    fractions = fractions or profile.fractions
    text = profile.model_dump_json()
    provenance = {
        "command": "sample --like",
        "profile": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        "rows": rows,
        "seed": seed,
        "fractions": dict(fractions),
    }
    drawn = Survey(profile.roles, rows, meter(profile.roles) if meter else None)
    prices: list[tuple[float, float]] = []
    examples: list[dict[str, Any]] = []
    with CatalogWriter(out, profile.roles, provenance, profile.integer_fields) as writer:
        places = Planner(profile, seed).rows(rows)
        made = in_pool(partial(_draw, text=text, seed=seed), places, workers)
        for done, (product, image) in enumerate(made, start=1):
            row = {profile.roles.image: image, profile.roles.id: product.id, **product.values}
            split = split_of(product.id, fractions)
            writer.add(split, image, product.id, product.values)
            examples += [row] if len(examples) < EXAMPLES and product.id not in drawn.firsts else []
            drawn.take(split, row)
            prices += [(float(row[name]), expected) for name, expected in product.expected.items()]
            progress("drawing", done, rows)
        if original:
            refuse_leaks(original, drawn, profile.k)
        if len(profile.numbers) == 1 and min(prices, default=(0, 0))[0] > 0:
            writer.figures = noise_floor(*zip(*prices, strict=True))
        fidelity = compare(profile, original, drawn)
        save_profile(profile, writer.aside / "profile.json")
        write_fidelity(writer.aside / "fidelity.html", profile, fidelity, drawn, examples)
    step = time_steps(original, drawn, drawn.meter) if drawn.meter and original else None
    return Mimicked(writer.card, fidelity, step)


def _know(like: Path, meter: Callable[[Roles], Meter] | None, progress: Progress) -> tuple[Profile, Survey | None]:
    """The profile, and the original, where it is at hand."""
    if like.is_file():
        return load_profile(like), None
    catalog = Catalog(like)
    original = survey_catalog(catalog, meter, lambda done, total: progress("measuring", done, total))
    return learn_profile(catalog, K, original), original


def _draw(place: tuple[int, int], text: str, seed: int) -> tuple[MimickedProduct, bytes]:
    """A product with one of its photographs."""
    planner, (number, shot) = _planner(text, seed), place
    product = planner.product(number)
    dice = random.Random(f"catalens/like/{seed}/product/{number}/photograph/{shot}")
    return product, photograph(product.look, planner.profile.pictures, dice, planner.evenly(number, shot))


@lru_cache(maxsize=1)
def _planner(text: str, seed: int) -> Planner:
    """A worker's planner, kept from row to row."""
    return Planner(Profile.model_validate_json(text), seed)
