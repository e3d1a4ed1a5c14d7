"""Catalogues: rows with pictures, drawn or prepared from a table, split by product, stored to be trusted."""

from catalens.lazy import exports

HOMES = {
    "duplicates": "fingerprint near_pairs",
    "pictures": "has_position open_picture picture_facts picture_size storable_picture",
    "splits": "assign_splits components DEFAULT_FRACTIONS key split_of Ties",
    "storage": "Catalog CatalogCard group_batches kind_of_reason open_parquet Pictures RejectedRow Roles SPLITS",
    "values": "is_missing",
    "writer": "CatalogWriter",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
