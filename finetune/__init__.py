"""Fine-tuning, evaluation and use of frozen, registered models.

>>> from finetune import load
>>> load("models:/demo@champion").embed("some.cif")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import lazily: the command line must answer before torch is loaded."""
    if name == "load":
        from finetune.loading import load

        return load
    raise AttributeError(name)
