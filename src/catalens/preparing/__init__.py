"""A table of a shop becomes a catalogue."""

from catalens.lazy import exports

HOMES = {
    "download": "Downloader Fetched Host",
    "fetch": "DownloadSpec forbidding_directive Network refusal retry_after",
    "journal": "TableJournal",
    "prepare": "PrepareSpec",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
