"""A gate that sees both sides learns a product of two inputs (XOR), one that sees its own input alone cannot.

python -m benchmarks.toys.gmca_gating

y = sign(x1 x2), one number a modality, a linear head on the fused vector. Gates on their own input give a sum of
functions of one input each, and no such sum has the signs of a product. A norm after that sum is no sum any more, so it
is given too. The other fusions are there for comparison: low-rank tensor fusion multiplies, the token transformer is
nonlinear in all tokens, concatenation is linear.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.toys.report import report
from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Width

NAMES = ("first", "second")
DIM, BATCH = 32, 256


def draw(count: int, rng: torch.Generator) -> tuple[dict[str, Encoded], Tensor]:
    """Return two inputs (n, 1) and whether their signs agree (n,)."""
    x = torch.randn(count, 2, generator=rng)
    return {name: Encoded(x[:, i : i + 1]) for i, name in enumerate(NAMES)}, x.prod(dim=1) > 0


def train(table: Mapping[str, object], *, seed: int, steps: int = 800) -> float:
    """Train a fusion with a linear head and return its accuracy on new rows."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    options = FUSIONS.options({"dim": DIM, **table})
    fusion, head = FUSIONS.get(options.kind)(options, dict.fromkeys(NAMES, Width(1))), nn.Linear(DIM, 1)
    optimizer = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=5e-3)

    def logits(encoded: dict[str, Encoded]) -> Tensor:
        present = {name: torch.ones(len(part.vector), dtype=torch.bool) for name, part in encoded.items()}
        return head(fusion(encoded, present).vector)[:, 0]

    for _ in range(steps):
        encoded, agree = draw(BATCH, rng)
        loss = F.binary_cross_entropy_with_logits(logits(encoded), agree.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fusion.eval()
    with torch.no_grad():
        encoded, agree = draw(10_000, rng)
        return ((logits(encoded) > 0) == agree).float().mean().item()


METHODS = {
    "GMCA": {"kind": "gmca", "heads": 4, "dropout": 0.0},
    "scalar gates": {"kind": "gated", "norm": "none"},
    "scalar gates, LayerNorm after the sum": {"kind": "gated"},
    "feature-wise gates": {"kind": "gated", "form": "feature", "norm": "none"},
    "concatenation": {"kind": "concat"},
    "low-rank tensor": {"kind": "low_rank_tensor"},
    "token transformer": {"kind": "token_transformer"},
}


def measure(seed: int) -> dict[str, dict[str, float]]:
    """Return the accuracy of every fusion."""
    return {name: {"accuracy": train(table, seed=seed)} for name, table in METHODS.items()}


if __name__ == "__main__":
    report(
        measure,
        bars={
            "GMCA, accuracy": "> 0.95",
            "scalar gates, accuracy": "about 0.5",
            "feature-wise gates, accuracy": "about 0.5",
            "concatenation, accuracy": "about 0.5",
        },
    )
