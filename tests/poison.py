"""Bytes of every kind of file whose usual reader executes what is inside."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.system, (f"touch {self.canary}",)


def poisons(canary: Path) -> dict[str, bytes]:
    """Return poisoned bytes by the ending of the file that usually holds them; each also compressed."""

    def written(write: Callable[[io.BytesIO], Any]) -> bytes:
        buffer = io.BytesIO()
        write(buffer)
        return buffer.getvalue()

    def zipped(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(bomb))

    bomb = Bomb(canary)
    objects = np.array([bomb], dtype=object)
    kinds = {
        **dict.fromkeys(("pkl", "pickle", "pyd"), pickle.dumps(bomb)),
        "pth": written(lambda buffer: torch.save(bomb, buffer)),
        "pt": written(lambda buffer: torch.save({"x": bomb}, buffer)),
        "joblib": written(lambda buffer: joblib.dump(bomb, buffer)),
        "npy": written(lambda buffer: np.save(buffer, objects, allow_pickle=True)),
        "npz": written(lambda buffer: np.savez(buffer, x=objects)),
        "zip": written(zipped),
    }
    return kinds | {f"{name}.gz": gzip.compress(data) for name, data in kinds.items()}
