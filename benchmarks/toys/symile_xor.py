"""Symile against pairwise contrast on c = a XOR b, where no pair of the three says anything about the third.

python -m benchmarks.toys.symile_xor

Each bit is seen as a noisy vector. After training, b is told from (a, c) among two held-out candidates, one of each
value: by the multilinear product, or by the sum of the pairs' cosines. Such a sum can be right in three of the four
cells by construction, so 0.75 is its bar, not 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.toys.report import report
from pretrain.objectives.base import OBJECTIVES, GlobalBatch

NAMES = ("a", "b", "c")
SEEN, DIM, BATCH, NOISE = 8, 16, 64, 0.3


class World:
    """Bits as noisy vectors."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.means = {name: torch.randn(2, SEEN, generator=self.rng) for name in NAMES}

    def see(self, name: str, bits: Tensor) -> Tensor:
        """Return vectors (n, SEEN) of bits (n,)."""
        return self.means[name][bits] + NOISE * torch.randn(len(bits), SEEN, generator=self.rng)

    def draw(self, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return rows of all three, and the bits of b."""
        a, b = torch.randint(0, 2, (2, count), generator=self.rng)
        return {"a": self.see("a", a), "b": self.see("b", b), "c": self.see("c", a ^ b)}, b


def encoder() -> nn.Module:
    """Return a small perceptron from what is seen to the shared space."""
    return nn.Sequential(nn.Linear(SEEN, 32), nn.GELU(), nn.Linear(32, DIM))


def train(table: Mapping[str, object], *, seed: int, steps: int = 600) -> float:
    """Train three encoders with an objective and return the share of held-out rows whose b is told rightly."""
    torch.manual_seed(seed)
    world, encoders = World(seed), nn.ModuleDict({name: encoder() for name in NAMES})
    options = OBJECTIVES.options(table)
    objective = OBJECTIVES.get(options.kind)(options, NAMES)
    optimizer = torch.optim.Adam([*encoders.parameters(), *objective.parameters()], lr=5e-3)
    present = {name: torch.ones(BATCH, dtype=torch.bool) for name in NAMES}
    for _ in range(steps):
        x, _ = world.draw(BATCH)
        z = {name: encoders[name](x[name]) for name in NAMES}
        loss, _ = objective(GlobalBatch(z=z, present=present, local=slice(0, BATCH)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x, bits = world.draw(4000)
        other = world.see("b", 1 - bits)
        a, b, c, wrong = (
            F.normalize(encoders[name](rows), dim=1)
            for name, rows in [("a", x["a"]), ("b", x["b"]), ("c", x["c"]), ("b", other)]
        )
        query = a * c if options.kind == "symile" else a + c
        return ((query * b).sum(1) > (query * wrong).sum(1)).float().mean().item()


METHODS = {
    "Symile, all combinations": {"kind": "symile", "chunk": BATCH},
    "Symile, shuffled": {"kind": "symile", "negatives": "shuffled", "chunk": BATCH},
    "pairwise (all pairs, InfoNCE)": {"kind": "all_pairs"},
}


def measure(seed: int) -> dict[str, dict[str, float]]:
    """Return the accuracy of every method."""
    return {name: {"accuracy": train(table, seed=seed)} for name, table in METHODS.items()}


if __name__ == "__main__":
    report(
        measure,
        bars={
            "Symile, all combinations, accuracy": "> 0.95",
            "Symile, shuffled, accuracy": "> 0.95",
            "pairwise (all pairs, InfoNCE), accuracy": "<= 0.77",
        },
    )
