"""Scores of a run by free generation."""

from catalens.lazy import exports

HOMES = {
    "baselines": "majority nearest_neighbour",
    "calibrating": "confidence_block one_a_product review_block",
    "compare": "common_rows corrected figures with_pictures",
    "evaluate": "calibrate flatten validation_scorer",
    "image_use": "blanked partners",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
