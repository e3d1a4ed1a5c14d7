"""Test of whether a model uses its pictures: what it reads from each one, against another product's.

    image_use(kinds, truths, predictions, exchanged, ids)
    {"verdict": "uses_image", "margin": 0.05,
     "fields": {"title": {"metric": "exact", "loss": {"value": 0.62, "low": 0.55, "high": 0.69, "p": 0.002},
                          "shown": true, "telling": true}, ...}}

Where an answer depends on one picture alone, what a model reads from another product's picture is what it read from
it in that product's own row, and nothing is generated anew. Where it is given texts, or several pictures, it writes
again: about the pictures of another product with the texts of its own, and with one of several exchanged.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from catalens import metrics
from catalens.intervals import holm

MARGIN = 0.05
"""A model that loses less than this by other products' pictures ignores them: points of a share or a median error."""


def blanked(size: tuple[int, int]) -> bytes:
    """Make a grey picture of a size: as many tokens, nothing to see."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def partners(ids: Sequence[str]) -> list[int]:
    """Give every row the picture of another one, [rows]: of another product, as long as none has half of the rows."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    given = [0] * len(ids)
    for index, row in enumerate(order):
        given[row] = order[(index + len(order) // 2) % len(order)]
    return given


def image_use(
    kinds: Mapping[str, str],
    truths: Sequence[metrics.Row],
    predictions: Sequence[metrics.Row | None],
    exchanged: Sequence[metrics.Row | None],
    ids: Sequence[str],
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Test on the same rows how much the first figure of each field loses by other products' pictures.

    `exchanged` is what was read with the pictures of `partners`.

    `uses_image`: some field loses, by a paired test with Holm's correction over the fields. `ignores_image`: none
    does, and the 95 % interval of each loss ends within `MARGIN`, in the `telling` fields, which have more than that
    to lose: answers are right often enough, and what other products' pictures truly show is wrong often enough.
    `undecided`: these rows cannot tell. A field that no row has a truth of is not among the fields.
    """
    given = partners(ids)
    rows = [i for i, other in enumerate(given) if ids[i] != ids[other]]
    result: dict[str, Any] = {"verdict": "undecided", "margin": MARGIN, "fields": {}}
    if not rows:
        return result
    y_true, own = [truths[i] for i in rows], [predictions[i] for i in rows]
    changes = metrics.differences(kinds, y_true, own, [exchanged[i] for i in rows], [ids[i] for i in rows], resamples)
    shown = [truths[given[i]] for i in rows]
    measured = {name: metrics.primary(kind) for name, kind in kinds.items() if changes[name]}
    held = holm([changes[name][metric]["p"] for name, metric in measured.items()])
    for (name, metric), significant in zip(measured.items(), held, strict=True):
        change, higher = changes[name][metric], metrics.higher_is_better(metric)
        known = metrics.rows_with(name, y_true)
        both = [i for i in known if shown[i][name] is not None]
        right = _figure(name, kinds[name], y_true, own, known)
        wrong = _figure(name, kinds[name], y_true, shown, both) if both else 0.0
        most = min(right, 1 - wrong) if higher else min(1 - right, wrong)
        loss = {"value": -change["value"], "low": -change["high"], "high": -change["low"]} if higher else change
        result["fields"][name] = {
            "metric": metric,
            "loss": loss | {"p": change["p"]},
            "shown": significant and loss["value"] > 0,
            "telling": bool(both) and most > MARGIN,
        }
    telling = [field["loss"]["high"] for field in result["fields"].values() if field["telling"]]
    if any(field["shown"] for field in result["fields"].values()):
        result["verdict"] = "uses_image"
    elif telling and max(telling) <= MARGIN:
        result["verdict"] = "ignores_image"
    return result


def _figure(
    name: str,
    kind: str,
    truths: Sequence[metrics.Row],
    predictions: Sequence[metrics.Row | None],
    rows: Sequence[int],
) -> float:
    """The first figure of a field over some rows."""
    measured = metrics.statistics(name, kind, [truths[i] for i in rows], [predictions[i] for i in rows])
    return float(measured[metrics.primary(kind)](np.ones(len(rows))))
