"""The page at `/`: what the model is, how well it reads, and a place to drop photos.

    render_index(read_card(Path("runs/demo")), predictor.prompt, settings)

It extends the base of all pages, whose style stands inside it: the policy that goes with it names that style by its
hash, and lets no other style and no script in but `static/page.js`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from catalens.config import FieldSpec, PromptSpec
from catalens.pages.base import render_page, source_hash
from catalens.serving.requests import GROUP, ServeSettings


class ModelCard(NamedTuple):
    """Name, card and scores of a model."""

    name: str
    """The folder's name; `tiny` for the model that ships with catalens."""
    text: str
    """Its card in Markdown; empty where it has none."""
    metrics: Mapping[str, Any] | None = None
    """Content of `evaluation/metrics.json`; None where it was not evaluated."""


def read_card(run: Path | None) -> ModelCard:
    """Read the card of a run; of the model that ships with catalens where `run` is None."""
    if run is None:
        from catalens.checkpoint import TINY  # which imports torch

        run = TINY
    try:
        text = (run / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    try:
        metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    except (OSError, ValueError):
        metrics = None
    plain = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).strip()  # without its YAML head
    return ModelCard(run.resolve().name, plain, metrics if isinstance(metrics, dict) else None)


def render_index(card: ModelCard, prompt: PromptSpec, settings: ServeSettings) -> str:
    """Fill the page."""
    return render_page(
        Path(__file__).with_name("index.html.j2"),
        card=card,
        tiles=_tiles(card, prompt.fields),
        fields=[{"column": spec.column, "label": spec.label, "kind": spec.kind} for spec in prompt.fields],
        inputs=prompt.inputs,
        settings=settings,
        group=min(settings.max_pictures, GROUP),
    )


def policy_of(page: str) -> str:
    """Make the Content-Security-Policy of a page: its one style by hash, our own script, pictures of the visitor."""
    (style,) = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    return (
        f"default-src 'none'; script-src 'self'; style-src '{source_hash(style)}'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _tiles(card: ModelCard, fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """Figures of the fields for the page; none where the metrics have another form than this version writes."""
    if not card.metrics:
        return []
    from catalens.pages.scores import tiles  # brings scikit-learn

    try:
        return tiles(card.metrics, fields)
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
