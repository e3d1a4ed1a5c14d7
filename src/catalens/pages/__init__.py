"""Pages for people: reports, checks, comparisons."""

from catalens.lazy import exports

HOMES = {
    "charts": "histogram Scale",
    "compare": "Comparison Difference figure_lines headline write_comparison",
    "format": "rows_of",
    "gallery": "is_right",
    "report": "confidence groups review write_report",
    "terminal": "print_scores",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
