"""A catalogue -> what is wrong with it, and what training on it costs: `check.html` and a summary.

    check_catalog("catalogs/demo").findings[0]
    Finding("warning", "3 pairs of pictures that look alike straddle two splits", why=..., fix=..., count=3,
            rows=(Named("train row 12 (10441027)", "like test row 5 (10398111)"), ...))

Before an expensive run, not after it. Nothing is changed but the page that is written.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from catalens.catalog.storage import Catalog, CatalogCard
from catalens.checking.costs import CropCost, crop_costs
from catalens.checking.evidence import NAMED_ROWS, Evidence, Finding, read_rejections
from catalens.checking.page import write_check
from catalens.checking.rules import find
from catalens.checking.scanning import Describe, scan_catalog
from catalens.config import TrainingSpec
from catalens.errors import CatalogError
from catalens.estimates import ModelShape
from catalens.pages.base import refuse_to_overwrite

PAGE = "check.html"


@dataclass(frozen=True)
class Check:
    """What came out of a check."""

    page: Path
    card: CatalogCard
    findings: tuple[Finding, ...]
    """Errors first, then warnings and notes."""
    missing: Mapping[str, int]
    """Missing values by field."""
    costs: tuple[CropCost, ...]

    def count(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


@dataclass(frozen=True)
class Plan:
    """What is to be trained on the catalogue, as far as a check needs to know."""

    describe: Describe
    """What the recipe makes of a row."""
    shape: ModelShape
    training: TrainingSpec
    basis: str
    """A sentence for the reader: which model, which tokenizer."""


def check_catalog(
    folder: Path | str,
    out: Path | str | None = None,
    plan: Plan | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Check:
    """Check a catalogue and write the page, to `out` or into its folder.

    Without a plan no text is read back and no cost is reckoned. Raises CatalogError where the catalogue cannot be
    read or the page cannot be written.
    """
    catalog = Catalog(folder)
    page = Path(out) if out else catalog.folder / PAGE
    page = page / PAGE if page.is_dir() else page
    with _written(page):
        refuse_to_overwrite(page)
    scan, described = scan_catalog(catalog, plan.describe if plan else None, progress)
    evidence = Evidence(catalog.card, scan, described, read_rejections(catalog.folder, NAMED_ROWS))
    findings = find(evidence)
    costs = crop_costs(scan.splits, described, plan.shape, plan.training) if plan else []
    with _written(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_check(page, catalog, evidence, findings, costs, plan.basis if plan else "")
    missing = {name: values.count(None) for name, values in scan.values.items()}
    return Check(page, catalog.card, tuple(findings), missing, tuple(costs))


@contextmanager
def _written(page: Path) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence."""
    try:
        yield
    except OSError as error:
        raise CatalogError(f"{page}: cannot be written ({error.strerror}): give another --out") from error
