"""URLs without what they hold that is nobody else's business: user, password, and queries, which may be signatures."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"
# up to the last @ before a slash; or a password that has a slash in it, which some libraries take (a port has none)
USER = re.compile(r"(?<=://)(?:[^/\s]+(?=@)|[^\s/:@]*:(?!\d+/)[^\s@]+(?=@))")
QUERY = re.compile(r"(?<=\?)(?<!\s\?)[^\s'\"?]+=[^\s'\"]*")


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def hidden_in(text: str) -> str:
    """Return text in whose URLs user, password and query are ``***``."""
    return QUERY.sub(HIDDEN, USER.sub(HIDDEN, text))
