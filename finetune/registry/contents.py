"""What a registered model may be made of: the plain files of an export, sealed, and nothing else."""

from __future__ import annotations

import stat
from pathlib import Path

from shards.errors import CheckpointError
from shards.sealed import SEAL, sha256, verify

# a model of many parts holds each in a folder of its own
FOLDERS = 3
PLAIN = (".json", ".md", ".safetensors")
# recipes, schemas and cards are kilobytes; a parser that is given gigabytes takes the machine with it
MOST = 64 << 20


def check_contents(folder: Path, *, seal: str | None = None) -> str:
    """Verify a model's folder before anything of it is read.

    Parameters
    ----------
    folder : Path
        What the registry gave.
    seal : str, optional
        sha256 of the seal when the model was registered.

    Returns
    -------
    str
        sha256 of the seal.

    Raises
    ------
    CheckpointError
        Where a file is of a kind that no export has, is no plain file, or is not what was sealed; or where the seal
        is not that which was registered.
    """
    for path in sorted(folder.rglob("*")):
        mode, name = path.lstat().st_mode, path.relative_to(folder)
        if stat.S_ISDIR(mode) and len(name.parts) <= FOLDERS:
            continue
        if not stat.S_ISREG(mode):
            raise CheckpointError("a registered model holds something that is no plain file", where=path)
        if path.suffix not in PLAIN:
            raise CheckpointError(
                "a registered model holds a file that no export has",
                where=path,
                why=f"exports are {', '.join(PLAIN)} alone: nothing that runs code when it is read",
            )
        if path.suffix != ".safetensors" and path.stat().st_size > MOST:
            raise CheckpointError(
                "a table of a registered model is too large", where=path, why=f"more than {MOST} bytes"
            )
    verify(folder, error=CheckpointError)
    found = sha256(folder / SEAL)
    if seal is not None and found != seal:
        raise CheckpointError(
            "this is not the model that was registered",
            where=folder,
            why=f"its seal has the sha256 {found[:12]}..., that of the registered one was {seal[:12]}...",
            do="register it again if you trust it",
        )
    return found
