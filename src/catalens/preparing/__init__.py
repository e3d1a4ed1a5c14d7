"""A table of a shop becomes a catalogue."""

from catalens.lazy import exports

HOMES = {
    "addresses": "filled pictures_of",
    "columns": "picture_reason read_id read_values Unreadable",
    "download": "Downloader Fetched Host",
    "fetch": "DownloadSpec forbidding_directive Network refusal retry_after",
    "formats": "batch_rows",
    "journal": "TableJournal",
    "nested": "paths_in paths_of value_of",
    "numbers": "Numbers tell_numbers",
    "prepare": "PrepareSpec",
    "roles": "Columns expand guess_columns Sample",
    "sources": "open_source ReadSpec Source",
    "text": "detect_delimiter detect_encoding records",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
