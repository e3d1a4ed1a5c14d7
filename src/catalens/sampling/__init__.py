"""Drawn sample catalogues."""

from catalens.lazy import exports

HOMES = {
    "assortment": "Look plan_product plan_rows read_asset",
    "picture": "compose_svg take_shot",
    "sample": "draw_catalog noise_floor sample_catalog SAMPLE_ROLES",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
