"""How a secret may be written by whoever prints it: as it is, quoted, escaped, encoded."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote

# of a base64 text around a secret, the characters that nothing else can explain
SURE_BASE64 = 8
# a line of a private key
SURE_LINE = 8
ANSI = {9: r"\t", 10: r"\n", 13: r"\r", 39: r"\'", 92: r"\\"}


def spellings(secret: str) -> set[str]:
    """Return the ways in which a secret is searched for in text.

    Its percent-encodings and their decoding, JSON (once and twice), Python's ``repr``, the quotings of shells, base64
    by itself and inside of a longer text (``Basic`` authentication), and each line where it has several.
    """
    whole = {secret, unquote(secret), *_in_urls(secret), *_escaped(secret), *_for_shells(secret), *_in_base64(secret)}
    lines = [line.strip() for line in secret.splitlines()] if "\n" in secret else []
    for line in lines:
        # the first and the last one of a key say only what it is
        if len(line) >= SURE_LINE and not line.startswith("-----"):
            # what stands between them may be written in any way
            whole |= {line, *_in_urls(line), *_in_base64(line)}
    return whole - {""}


def _in_urls(secret: str) -> Iterator[str]:
    data = secret.encode(errors="surrogateescape")
    for encoded in (quote(data), quote(data, safe=""), quote_plus(data), quote(data, safe="!'()*~/:@&=+$,;-._")):
        yield encoded
        yield re.sub(r"%..", lambda found: found[0].lower(), encoded)


def _escaped(secret: str) -> Iterator[str]:
    for ascii_alone in (True, False):
        once = json.dumps(secret, ensure_ascii=ascii_alone)
        yield once[1:-1]
        yield once[1:-1].replace("/", "\\/")
        yield json.dumps(once, ensure_ascii=ascii_alone)[3:-3]
    yield repr(secret)[1:-1]
    yield ascii(secret)[1:-1]
    yield repr(secret.encode(errors="surrogateescape"))[2:-1]
    yield secret.encode("unicode_escape").decode()


def _for_shells(secret: str) -> Iterator[str]:
    quoted = shlex.quote(secret)
    yield quoted[1:-1] if quoted != secret else quoted
    yield secret.replace("'", r"'\''")
    yield re.sub(r'([$`"\\])', r"\\\1", secret)
    # $'...', by which bash writes what no terminal shows
    data = secret.encode(errors="surrogateescape")
    yield "".join(ANSI.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in data)
    yield "".join(ANSI.get(ord(sign), sign) for sign in secret)
    # `printf %q`, and `set -x` where nothing is quoted
    yield re.sub(r"([^\w@%+=:,./\n-])", r"\\\1", secret, flags=re.ASCII)


def _in_base64(secret: str) -> Iterator[str]:
    data = secret.encode(errors="surrogateescape")
    yield base64.b64encode(data).decode()
    # three bytes make four characters, so the text around it shifts it in one of three ways; the characters that it
    # shares with its neighbours are left out
    for before in range(3):
        first, last = -(-8 * before // 6), (8 * (before + len(data))) // 6
        encoded = base64.b64encode(bytes(before) + data).decode()[first:last]
        if len(encoded) >= SURE_BASE64:
            yield encoded
            yield encoded.replace("+", "-").replace("/", "_")
