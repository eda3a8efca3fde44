"""Two modalities that are never paired meet through a frozen anchor (ImageBind's emergent alignment).

python -m benchmarks.toys.imagebind_emergent

A linear world: anchor, a and b are noisy linear views of one cause. Half of the training rows pair the anchor with a,
the others with b; none has both a and b. The anchor's encoder is frozen at its start. Held out, b is retrieved for a
among 256. The control pairs the same rows with anchors of other rows, so that nothing ties a to b.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.toys.report import report
from pretrain.objectives.base import OBJECTIVES, GlobalBatch

NAMES = ("anchor", "a", "b")
CAUSE, SEEN, DIM, NOISE = 8, 24, 16, 0.3
ROWS, BATCH, GALLERY = 4096, 256, 256


class World:
    """A cause (n, CAUSE) and its linear views (n, SEEN)."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.views = {name: torch.randn(CAUSE, SEEN, generator=self.rng) for name in NAMES}

    def draw(self, count: int) -> dict[str, Tensor]:
        """Return rows of all three."""
        cause = torch.randn(count, CAUSE, generator=self.rng)
        return {
            name: cause @ view + NOISE * torch.randn(count, SEEN, generator=self.rng)
            for name, view in self.views.items()
        }


def recall(queries: Tensor, targets: Tensor) -> float:
    """Return recall at 1 among GALLERY, over several galleries; chance is 1 / GALLERY."""
    q, t = (F.normalize(z, dim=1).unflatten(0, (-1, GALLERY)) for z in (queries, targets))
    return ((q @ t.mT).argmax(dim=2) == torch.arange(GALLERY)).float().mean().item()


def train(seed: int, *, paired: bool, steps: int = 400, kind: str = "frozen_anchor") -> dict[str, float]:
    """Train a and b towards the frozen anchor and return recalls, and whether the anchor is as it was, bit for bit."""
    torch.manual_seed(seed)
    world, encoders = World(seed), nn.ModuleDict({name: nn.Linear(SEEN, DIM) for name in NAMES})
    options = OBJECTIVES.options({"kind": kind, "anchor": "anchor"})
    objective = OBJECTIVES.get(options.kind)(options, NAMES)
    x = world.draw(ROWS)
    if not paired:
        x["anchor"] = x["anchor"].roll(1, dims=0)
    with_a = torch.arange(ROWS) % 2 == 0
    # no weight decay: the objective stops the gradient, and nothing else may move the anchor
    optimizer = torch.optim.Adam([*encoders.parameters(), *objective.parameters()], lr=1e-2)
    before = copy.deepcopy(encoders["anchor"].state_dict())
    for _ in range(steps):
        rows = torch.randint(0, ROWS, (BATCH,), generator=world.rng)
        z = {name: encoders[name](x[name][rows]) for name in NAMES}
        present = {"anchor": torch.ones(BATCH, dtype=torch.bool), "a": with_a[rows], "b": ~with_a[rows]}
        loss, _ = objective(GlobalBatch(z=z, present=present, local=slice(0, BATCH)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = encoders["anchor"].state_dict()
    with torch.no_grad():
        held = world.draw(8 * GALLERY)
        z = {name: encoders[name](held[name]) for name in NAMES}
    return {
        "a -> b, never paired": recall(z["a"], z["b"]),
        "b -> a, never paired": recall(z["b"], z["a"]),
        "a -> anchor": recall(z["a"], z["anchor"]),
        "anchor unchanged": float(all(torch.equal(after[name], value) for name, value in before.items())),
    }


def measure(seed: int) -> dict[str, dict[str, float]]:
    """Return the recalls with and without the anchor's pairing."""
    return {"anchor paired": train(seed, paired=True), "anchor shuffled": train(seed, paired=False)}


if __name__ == "__main__":
    chance = f"chance {1 / GALLERY:.4f}"
    report(
        measure,
        digits=4,
        bars={
            "anchor paired, a -> b, never paired": f"far above {chance}",
            "anchor paired, b -> a, never paired": f"far above {chance}",
            "anchor shuffled, a -> b, never paired": chance,
            "anchor shuffled, b -> a, never paired": chance,
            "anchor paired, anchor unchanged": "1",
            "anchor shuffled, anchor unchanged": "1",
        },
    )
