"""A table of a shop becomes a catalogue."""

from catalens.lazy import exports

HOMES = {
    "columns": "Columns guess_columns is_missing number_flags Numbers picture_reason read_id read_picture "
    "read_values Unreadable",
    "download": "Downloader Fetched Host",
    "fetch": "DownloadSpec forbidding_directive Network refusal retry_after",
    "journal": "TableJournal",
    "prepare": "PrepareSpec",
    "sources": "batch_rows open_source Source",
    "text": "detect_delimiter detect_encoding records",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
