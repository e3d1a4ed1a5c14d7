r"""Characters that make a terminal, an editor or a reader see something else than what is there.

    visible("P1\x1b[2J")  ->  "P1�[2J"

Escape sequences and other control characters, those that turn the direction of text, and half characters.
"""

import re

TERMINAL = "\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"  # control characters but the newline; bidi
HIDING = re.compile(f"[{TERMINAL}\ud800-\udfff]")
IN_JSON = re.compile(f"[{TERMINAL}]")


def visible(text: str) -> str:
    """Replace what hides, but for newlines."""
    return HIDING.sub("\ufffd", text)


def visible_json(text: str) -> str:
    """JSON in which what hides is written as `\\u009b`: the same values for whatever reads it."""
    return IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
