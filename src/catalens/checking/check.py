"""A catalogue -> what is wrong with it, and what training on it costs: `check.html` and a summary.

    check_catalog("catalogs/demo").findings[0]
    Finding("warning", "3 pairs of pictures that look alike straddle two splits", why=..., fix=..., count=3,
            rows=(NamedRow("train row 12 (10441027)", "like test row 5 (10398111)"), ...))

Before an expensive run, not after it. Nothing is changed but the page that is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalens.catalog.storage import Catalog, CatalogCard
from catalens.checking.costs import CropCost, crop_costs, default_prompt, load_sizes
from catalens.checking.facts import read_facts
from catalens.checking.page import view_of
from catalens.checking.rules import Finding, find
from catalens.config import Recipe, TrainingSpec, load_recipe
from catalens.data import Encoder
from catalens.errors import RecipeError
from catalens.files import writing
from catalens.pages.base import refuse_to_overwrite, write_page
from catalens.progress import Progress, silent

PAGE = "check.html"


@dataclass(frozen=True)
class Check:
    """Findings and costs of a catalogue, and where their page is."""

    page: Path
    card: CatalogCard
    findings: tuple[Finding, ...]
    """Errors first, then warnings and notes."""
    costs: tuple[CropCost, ...]
    view: Mapping[str, Any]
    """Content of page and terminal, by section."""

    def count(self, severity: str) -> int:
        """Count findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def check_catalog(
    catalog: Path | str,
    recipe: Recipe | Path | str | None = None,
    out: Path | str | None = None,
    progress: Progress = silent,
) -> Check:
    """Check a catalogue and write the page, to `out` or into its folder.

    Without a recipe the prompt has all fields, and costs are those of Phi-3-Vision. Raises CatalogError where the
    catalogue cannot be read or the page cannot be written, RecipeError where it lacks a column of the recipe.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, Path | str) else recipe
    stored = Catalog(catalog)
    fields = stored.card.roles.fields
    prompt = recipe.prompt if recipe else default_prompt(fields)
    if absent := [field.column for field in prompt.fields if field.column not in fields]:
        raise RecipeError(
            f"prompt.fields: {catalog} has no column {absent[0]!r}; its columns are {', '.join(fields)}"
        )
    page = Path(out) if out else stored.folder / PAGE
    page = page / PAGE if page.is_dir() else page
    with writing(page):
        refuse_to_overwrite(page)
    processor, sizes, basis = load_sizes(recipe.model if recipe else None)
    facts = read_facts(stored, prompt, Encoder(processor, prompt) if processor else None, progress)
    findings = find(facts)
    training = recipe.training if recipe else TrainingSpec()
    costs = crop_costs(facts, processor, sizes, training)
    view = view_of(stored, facts, findings, costs, training, basis)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, Path(__file__).with_name("check.html.j2"), **view)
    return Check(page, stored.card, tuple(findings), tuple(costs), view)
