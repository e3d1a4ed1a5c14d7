"""Tables of shops, whatever their form, read as products."""

from catalens.lazy import exports

HOMES = {
    "addresses": "filled pictures_of",
    "columns": "picture_reason read_id read_values Unreadable",
    "arrow": "batch_rows",
    "nested": "paths_in paths_of value_of",
    "numbers": "Numbers tell_numbers",
    "roles": "Columns expand guess_columns Sample",
    "opening": "open_source",
    "source": "ReadSpec Source",
    "text": "detect_delimiter detect_encoding records",
    "table": "NO_PICTURE PARENT SPARE Table TableRow TableSpec",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
