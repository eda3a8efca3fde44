"""Text that somebody else wrote, made harmless for the place where it is shown."""

from __future__ import annotations

import html

LONGEST = 300


def printable(text: object, *, lines: bool = False, most: int = LONGEST) -> str:
    """Return text for a terminal: what would move the cursor, colour it or turn the writing round is spelled out.

    Parameters
    ----------
    text : object
        What is shown.
    lines : bool
        Keep the ends of lines.
    most : int
        Characters after which it is cut, 0 for none.
    """
    kept = "\n" if lines else ""
    shown = "".join(sign if sign.isprintable() or sign in kept else _spelled(sign) for sign in str(text))
    return shown if not most or len(shown) <= most else f"{shown[:most]}..."


def markdown(text: object) -> str:
    """Return text for a line of Markdown, in a code span or outside: no markup, one line."""
    return html.escape(printable(text), quote=False).replace("`", "'").replace("|", "\\|")


def _spelled(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
