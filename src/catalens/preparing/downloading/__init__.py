"""URLs -> bytes, from servers that nobody vouches for.

    https://shop.example/photos/10432877.jpg
      -> Fetched(final_url="https://cdn.example/10432877.jpg", status=200, body=b"\\xff\\xd8...", attempts=1,
                 reason=None, retryable=False)
    https://shop.example/photos/gone.jpg
      -> Fetched(final_url="https://shop.example/photos/gone.jpg", status=410, body=None, attempts=1,
                 reason="HTTP 410", retryable=False)

`settings` is what a caller decides, `network` says which addresses are spoken to, `pacing` how often, `reasons` lists
what can go wrong, `fetching` asks, and reads what servers ask of a client.
"""

from catalens.preparing.downloading.fetching import Downloader, Fetched
from catalens.preparing.downloading.network import Network
from catalens.preparing.downloading.settings import DownloadSpec

__all__ = ["DownloadSpec", "Downloader", "Fetched", "Network"]
