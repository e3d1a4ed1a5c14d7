"""The rows of a catalogue as mimicry needs them: what they hold, what was seen of their pictures, what they cost.

Survey.values   {"title": ["Check Scarf", ...], "full_price": [390.0, ...]}, a product's first row for the product
Survey.costs    [Needs(tokens=84, crops=5), ...] of some rows
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from catalens.catalog.scan import Scan, look_at
from catalens.catalog.storage import Catalog, Roles
from catalens.errors import CatalensError
from catalens.mimicking.profile import Needs

DECODED, MEASURED = 2000, 100
"""Pictures that are decoded, rows whose tokens are counted: of a catalogue, at most."""
BATCH = 16


class Meter(Protocol):
    """What rows cost a model; it lives above the catalogue, so it is handed in."""

    def needs(self, row: Mapping[str, Any]) -> Needs:
        """Tokens and crops of a row; raises CatalensError where it is of no use to a model."""
        ...

    def step(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take a training step on rows of which `needs` was told; its time is what counts."""
        ...


class Survey(Scan):
    """The facts of a catalogue's rows, `total` of them in all."""

    def __init__(self, roles: Roles, total: int, meter: Meter | None = None) -> None:
        super().__init__(roles)
        self.total, self.meter = total, meter
        self.costs: list[Needs] = []
        self.samples: list[Mapping[str, Any]] = []
        """Rows for a training step."""

    def take(self, split: str, row: Mapping[str, Any]) -> None:
        """Take in a row with its picture."""
        seen = look_at(row[self.roles.image], decode=len(self) % max(1, self.total // DECODED) == 0)
        self.add(split, row, seen)
        if self.meter and len(self) % max(1, self.total // MEASURED) == 0:
            try:
                self.costs.append(self.meter.needs(row))
            except CatalensError:
                return  # as in training, which names it
            self.samples += [row] if len(self.samples) < BATCH else []

    @property
    def needs(self) -> Needs | None:
        """Mean tokens and crops, where they were measured."""
        return Needs(*np.mean(self.costs, axis=0).round(2).tolist()) if self.costs else None

    def products(self, column: str) -> list[Any]:
        """The values of a column, a product each."""
        return [self.values[column][row] for row in self.firsts.values()]

    def strata(self) -> list[Any]:
        """The leading category of each product; None where there is none."""
        return self.products(self.roles.leading) if self.roles.leading else [None] * len(self.firsts)


def survey_catalog(
    catalog: Catalog,
    meter: Callable[[Roles], Meter] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Read a catalogue once; `meter` makes what says what its rows cost."""
    roles = catalog.card.roles
    survey = Survey(roles, sum(catalog.card.rows.values()), meter(roles) if meter else None)
    for split, batch in catalog.all_batches():
        for row in batch:
            survey.take(split, row)
        progress(len(survey), survey.total)
    return survey
