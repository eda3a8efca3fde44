"""Looks for the canaries, in every spelling that may be read back, in whatever bytes a run has left or shown."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

from tests.canaries import SECRETS


def _spelled(secret: str) -> Iterator[bytes]:
    data = secret.encode()
    for text in (
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1], json.dumps(json.dumps(secret))[3:-3], repr(secret)[1:-1],
    ):  # fmt: skip
        yield text.encode()
    yield secret.encode("utf-16-le")
    # by itself, and behind one or two other bytes; what its neighbours change is left out
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data)[-(-8 * before // 6) :].rstrip(b"=")[:-1]
        if len(encoded) >= 8:
            yield encoded
            yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


FORMS = {
    name: sorted(
        {
            form
            for piece in [secret, *secret.splitlines()]
            if piece and not piece.startswith("-----")
            for form in _spelled(piece)
        }
    )
    for name, secret in SECRETS.items()
}


def leaks_in(data: bytes) -> dict[str, bytes]:
    """Return what stands around the first place of each canary that is in the bytes, by the name of its variable."""
    found = {}
    for name, forms in FORMS.items():
        at = next((at for at in map(data.find, forms) if at >= 0), None)
        if at is not None:
            found[name] = data[max(0, at - 60) : at + 60]
    return found


def leaks(*folders: Path, besides: Iterable[Path] = ()) -> dict[str, dict[str, bytes]]:
    """Return the same for each file below some folders, by its path; names of files are looked at too."""
    skipped = {path.resolve() for path in besides}
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.resolve() in skipped:
                continue
            here = leaks_in(str(path).encode() + b"\n" + (path.read_bytes() if path.is_file() else b""))
            if here:
                found[str(path)] = here
    return found
