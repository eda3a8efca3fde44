"""The scale of the loss in half precision: gradients of a scaled loss do not vanish below float16's smallest number."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 1.0


@dataclass
class LossScale:
    """Halved where a gradient overflows, doubled after ``window`` steps without; every rank keeps the same one.

    Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2. Parameters stay in float32, so the scale is needed for the
    activations' gradients only.

    Attributes
    ----------
    value : float
        Factor of the loss.
    good : int
        Steps since the last overflow or doubling.
    window : int
        Steps after which the scale is tried at twice its value.
    """

    value: float = 2.0**16
    good: int = 0
    window: int = 1000

    @property
    def exhausted(self) -> bool:
        """Whether an overflow can no longer be the scale's fault."""
        return self.value <= SMALLEST

    def update(self, *, overflow: bool) -> None:
        """Take note of a step."""
        if overflow:
            self.value, self.good = max(SMALLEST, self.value / 2), 0
            return
        self.good += 1
        if self.good == self.window:
            self.value, self.good = self.value * 2, 0
