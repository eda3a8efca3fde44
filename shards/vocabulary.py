"""The token ids that every modality of kind ``sequence`` reserves: its own tokens start at ``FIRST``."""

from __future__ import annotations

PADDING, UNKNOWN, MASK = 0, 1, 2
FIRST = 3
