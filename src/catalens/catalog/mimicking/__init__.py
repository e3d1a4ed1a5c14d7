"""Sample data like a real catalogue, with nothing of the catalogue in it.

    catalogs/burberry   ->  profile.json   ->  catalogs/like-burberry
    "Vintage Check Cotton Scarf", 390.0        "Check Cotton Dorvel Scarf", 370.0, a drawn scarf

The profile is learnt from the catalogue (`learning`), speaks of k products or more in all it says (`profile`), and is
all that is drawn from (`products`, `photographs`). What was drawn is compared with the catalogue, or with the profile
alone where that is all there is (`surveys`, `privacy`, `fidelity`).
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from catalens.catalog.drawing import in_pool, noise_floor
from catalens.catalog.mimicking.fidelity import Cost, Fidelity, compare, time_steps, write_fidelity
from catalens.catalog.mimicking.learning import Progress, learn_profile, read_rows
from catalens.catalog.mimicking.photographs import photograph
from catalens.catalog.mimicking.privacy import Original
from catalens.catalog.mimicking.products import MimickedProduct, Planner
from catalens.catalog.mimicking.profile import K, Profile, load_profile, save_profile
from catalens.catalog.mimicking.surveys import Meter, Survey, survey_profile
from catalens.catalog.splits import split_of
from catalens.catalog.storage import Catalog, CatalogCard, CatalogWriter, Roles, refuse_existing

__all__ = ["Fidelity", "K", "Mimicked", "Profile", "learn_profile", "load_profile", "mimic_catalog", "save_profile"]

PORTION = 16
"""Rows that a worker draws at a time."""


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
    refuse_existing(out)
    profile, source, original = _know(Path(like), meter, progress)
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
    numbers: dict[str, list[tuple[float, float]]] = {name: [] for name in profile.numbers}
    examples: list[dict[str, Any]] = []
    with CatalogWriter(out, profile.roles, provenance, profile.integer_fields) as writer:
        for done, (product, image) in enumerate(_draw(profile, text, rows, seed, workers), start=1):
            row = {profile.roles.image: image, profile.roles.id: product.id, **product.values}
            if original:
                original.refuse(row, done)
            writer.add(split_of(product.id, fractions), image, product.id, product.values)
            drawn.add(row)
            examples += [row] if len(examples) < 24 and drawn.products[product.id] == 1 else []
            for name, expected in product.expected.items():
                numbers[name].append((float(row[name]), expected))
            progress("drawing", done, rows)
        writer.figures = _floor(numbers)
        fidelity = compare(profile, source, drawn, checked=original is not None)
    save_profile(profile, Path(out) / "profile.json")
    write_fidelity(Path(out) / "fidelity.html", profile, fidelity, drawn, examples)
    step = time_steps(source, drawn, drawn.meter) if drawn.meter and original else None
    return Mimicked(writer.card, fidelity, step)


def _know(
    like: Path, meter: Callable[[Roles], Meter] | None, progress: Progress
) -> tuple[Profile, Survey, Original | None]:
    """The profile, what the drawn rows are to be compared with, and what none of them may hold."""
    if like.is_file():
        profile = load_profile(like)
        return profile, survey_profile(profile), None
    catalog = Catalog(like)
    roles = catalog.card.roles
    source = Survey(roles, sum(catalog.card.rows.values()), meter(roles) if meter else None)
    original = Original(roles, K)
    columns = [roles.image, roles.id, *roles.fields]
    for _, row in read_rows(catalog, columns, lambda done, total: progress("measuring", done, total)):
        source.add(row)
        original.add(row)
    return learn_profile(catalog, K, source.needs, progress), source, original


def _draw(profile: Profile, text: str, rows: int, seed: int, workers: int) -> Iterator[tuple[MimickedProduct, bytes]]:
    """Products with a picture each, in order, by any number of workers."""
    places = Planner(profile, seed).rows(rows)
    portions = iter(lambda: tuple(islice(places, PORTION)), ())
    return in_pool(_draw_portion, ((portion, text, seed) for portion in portions), workers)


def _draw_portion(places: tuple[tuple[int, int], ...], text: str, seed: int) -> list[tuple[MimickedProduct, bytes]]:
    planner = _planner(text, seed)
    drawn: list[tuple[MimickedProduct, bytes]] = []
    for number, shot in places:
        product = planner.product(number)
        dice = random.Random(f"catalens/like/{seed}/product/{number}/photograph/{shot}")
        drawn.append(
            (product, photograph(product.look, planner.profile.pictures, dice, planner.evenly(number, shot)))
        )
    return drawn


@lru_cache(maxsize=1)
def _planner(text: str, seed: int) -> Planner:
    """A worker's planner, kept from portion to portion."""
    return Planner(Profile.model_validate_json(text), seed)


def _floor(numbers: Mapping[str, list[tuple[float, float]]]) -> dict[str, float]:
    """The noise floor, where there is one number column above zero that it can be told of."""
    pairs = next(iter(numbers.values())) if len(numbers) == 1 else []
    if not pairs or min(value for value, _ in pairs) <= 0:
        return {}
    floor = noise_floor(*zip(*pairs, strict=True))
    return {"mdape": floor.median_ape, "mae": floor.mae}
