"""What a registered model may be made of: the plain files of an export, sealed, and nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from finetune.files import ADDED
from pretrain.export_files import EXPORTED, WEIGHTS
from shards.errors import CheckpointError
from shards.quoting import printable
from shards.sealed import SEAL, sha256, verify

# all files that pretraining, fine-tuning and `matloom export` write: what is not here is refused by every registry
FILES = EXPORTED | ADDED | {SEAL}
# recipes, schemas and cards are kilobytes; a parser that is given gigabytes takes the machine with it
MOST = 64 << 20


def check_contents(folder: Path, *, seal: str | None = None, hashed: bool = True) -> str:
    """Verify a model's folder before anything of it is read.

    Parameters
    ----------
    folder : Path
        What the registry gave.
    seal : str, optional
        sha256 of the seal when the model was registered.
    hashed : bool
        Hash every file; otherwise the seal alone, for who reads the files by it next, and hashes them then.

    Returns
    -------
    str
        sha256 of the seal.

    Raises
    ------
    CheckpointError
        Where a file is none that an export has, is no plain file, or is not what was sealed; or where the seal is not
        that which was registered.
    """
    check_listing(_listing(folder), folder)
    verify(folder, error=CheckpointError, only=None if hashed else ())
    found = sha256(folder / SEAL)
    if seal is not None and found != seal:
        raise CheckpointError(
            "this is not the model that was registered",
            where=folder,
            why=f"its seal has the sha256 {found[:12]}..., that of the registered one was {printable(seal[:12])}...",
            do="register it again if you trust it",
        )
    return found


def check_listing(listing: Iterable[tuple[str, bool, int]], where: object) -> list[str]:
    """Refuse what no export has, before anything is read or fetched; return the names.

    Parameters
    ----------
    listing : iterable of (str, bool, int)
        Name of each thing in the folder, whether it is a plain file, and its bytes.
    where : object
        Of the folder, for errors.
    """
    names = []
    for name, plain, size in listing:
        place = f"{where}/{printable(name)}"
        if not plain:
            raise CheckpointError("a registered model holds something that is no plain file", where=place)
        if name not in FILES:
            raise CheckpointError(
                "a registered model holds a file that no export has",
                where=place,
                why=f"exports are made of {', '.join(sorted(FILES))}: nothing that runs code when it is read",
            )
        if name != WEIGHTS and size > MOST:
            raise CheckpointError(
                "a table of a registered model is too large", where=place, why=f"more than {MOST} bytes"
            )
        names.append(name)
    return names


def _listing(folder: Path) -> Iterable[tuple[str, bool, int]]:
    """Yield what is directly in a folder: nothing is walked through that a name alone refuses."""
    try:
        with os.scandir(folder) as found:
            for entry in found:
                told = entry.stat(follow_symlinks=False)
                yield entry.name, stat.S_ISREG(told.st_mode), told.st_size
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise CheckpointError("no folder of a model can be read here", where=printable(folder), why=why) from None
