"""The model registry: looking models up, fetching them verified, and saying which one is in use."""

from __future__ import annotations

from finetune.registry.store import reachable
from finetune.registry.uris import SCHEMES, resolve

__all__ = ["SCHEMES", "reachable", "resolve"]
