"""A check of a catalogue before an expensive run."""

from catalens.lazy import exports

HOMES = {
    "check": "Check check_catalog",
    "costs": "crop_costs CropCost method_name",
    "facts": "modified_z",
    "page": "print_check",
    "rules": "Finding spelling_twins",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
