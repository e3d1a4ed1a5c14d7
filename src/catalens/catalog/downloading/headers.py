"""What servers ask of a client in their answers.

X-Robots-Tag: noai, noimageai              -> "noai": this picture is not for us
X-Robots-Tag: googlebot: noindex           -> nothing: it is addressed to somebody else
Retry-After: 120                           -> 120.0 seconds
Retry-After: Wed, 21 Oct 2026 07:28:00 GMT -> the seconds until then
"""

import email.utils
import re
from collections.abc import Iterable

FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives that keep a picture out: those that img2dataset obeys, and `none`, which is Google's word for noindex
with nofollow."""
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives that have a value after their colon, and so are no crawler's name."""


def forbidding_directive(values: Iterable[str], name: str) -> str | None:
    """The first directive in the X-Robots-Tag headers `values` that forbids the picture to the crawler `name`.

    A directive after `somebody:` is theirs, up to the next name or the end of the header; case does not matter.
    Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
    """
    for value in values:
        ours = True
        for part in value.lower().split(","):
            directive = part.strip()
            if found := re.fullmatch(r"([a-z][\w.-]*)\s*:\s*(.*)", directive):
                if found[1] in VALUED:
                    continue
                ours, directive = found[1] == name.lower(), found[2].strip()
            if ours and directive in FORBIDDING:
                return directive
    return None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from `now` (Unix time) that a Retry-After header asks for, 0 at least; None where it says nothing."""
    text = (value or "").strip()
    if re.fullmatch(r"\d{1,9}", text, flags=re.ASCII):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
