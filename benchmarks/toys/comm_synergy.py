"""CoMM learns what only two modalities together tell (synergy); contrast between modalities does not.

python -m benchmarks.toys.comm_synergy

A vector version of the trifeature set (FactorCL, CoMM). Each modality shows a shared factor s, and t and c of its own,
six values each: x = E_s[s] + E_t[t] + E_c[c] + noise, 48 wide. In training c of the second modality is a fixed
permutation of t of the first; the question S is whether a pair obeys it. The two augmented views of a pair have noise
of their own and each lacks half of the entries, drawn anew. Linear probes are trained and tested without the bias and
without augmentation: R = which s (chance 0.167), S by balanced accuracy (chance 0.5), on the fused vector of CoMM, and
on the modalities' vectors side by side for the baselines. Side by side, a linear probe cannot express "these two
match", whatever the vectors hold, so the baselines are also probed by a perceptron; the CoMM network is also probed
untrained. R tells nothing here: untrained networks have it.
"""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.toys.report import report
from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Width
from pretrain.names import parsed
from pretrain.objectives.base import OBJECTIVES, GlobalBatch

NAMES = ("first", "second")
VALUES, SEEN, NOISE, MASKED, DIM, BATCH = 6, 48, 0.3, 0.5, 64, 256
FACTORS = ("s", "t", "c")
View = dict[str, Tensor]


class World:
    """Factors and what the modalities show of them."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.shown = {
            name: {factor: torch.randn(VALUES, SEEN, generator=self.rng) for factor in FACTORS} for name in NAMES
        }
        self.rule = torch.randperm(VALUES, generator=self.rng)

    def factors(self, count: int, *, biased: bool) -> dict[str, dict[str, Tensor]]:
        """Draw factors by modality; biased: all obey the rule, else half do and the others do not."""
        s, t1, c1, t2, shift = torch.randint(0, VALUES, (5, count), generator=self.rng)
        shift = 1 + shift % (VALUES - 1)
        obeys = torch.ones(count, dtype=torch.bool) if biased else torch.rand(count, generator=self.rng) < 0.5
        c2 = (self.rule[t1] + torch.where(obeys, 0, shift)) % VALUES
        return {"first": {"s": s, "t": t1, "c": c1}, "second": {"s": s, "t": t2, "c": c2}}

    def view(self, factors: dict[str, dict[str, Tensor]]) -> View:
        """See both modalities with new noise, (n, SEEN) each."""
        found = {}
        for name, values in factors.items():
            x = sum(self.shown[name][factor][values[factor]] for factor in FACTORS)
            found[name] = x + NOISE * torch.randn(x.shape, generator=self.rng)
        return found

    def augmented(self, factors: dict[str, dict[str, Tensor]]) -> View:
        """See both modalities with new noise and without a share of their entries."""
        seen = self.view(factors)
        return {name: x * (torch.rand(x.shape, generator=self.rng) >= MASKED) for name, x in seen.items()}

    def obeys(self, factors: dict[str, dict[str, Tensor]]) -> Tensor:
        """Say which pairs obey the rule (n,)."""
        return self.rule[factors["first"]["t"]] == factors["second"]["c"]


class Network(nn.Module):
    """Encoders, a fusion where the objective reads one, and heads that are for the loss only."""

    def __init__(self, objective: dict[str, object]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(SEEN, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM)) for name in NAMES}
        )
        fusions: dict[str, tuple[str, ...]] = {}
        if objective["kind"] == "comm":
            table = FUSIONS.options({"kind": "token_transformer", "dim": DIM})
            self.fusion = FUSIONS.get(table.kind)(table, {name: Width(DIM) for name in NAMES})
            fusions = {"joint": NAMES}
        options = OBJECTIVES.options(objective)
        self.objective = OBJECTIVES.get(options.kind)(options, NAMES, fusions)
        # CoMM's is a perceptron, those of the baselines are linear
        self.heads = nn.ModuleDict(
            {
                base: nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
                if fusions
                else nn.Linear(DIM, DIM)
                for base in dict.fromkeys(parsed(name).base for name in self.objective.names)
            }
        )

    def represent(self, view: View, name: str) -> Tensor:
        """Return the vector (n, DIM) of a modality, of the fusion, or of the fusion of one modality alone."""
        base, only, _ = parsed(name)
        vectors = {m: self.encoders[m](view[m]) for m in NAMES}
        if base in NAMES:
            return vectors[base]
        present = {m: torch.full((len(view[m]),), only in ("", m)) for m in NAMES}
        return self.fusion({m: Encoded(x) for m, x in vectors.items()}, present).vector

    def loss(self, views: tuple[View, View]) -> Tensor:
        """Compare two views."""
        z = {
            name: self.heads[parsed(name).base](self.represent(views[parsed(name).view], name))
            for name in self.objective.names
        }
        rows = len(views[0]["first"])
        present = {name: torch.ones(rows, dtype=torch.bool) for name in z}
        return self.objective(GlobalBatch(z=z, present=present, local=slice(0, rows)))[0]

    def probed(self, view: View) -> Tensor:
        """Return what the probes see."""
        names = ["joint"] if hasattr(self, "fusion") else list(NAMES)
        return torch.cat([self.represent(view, name) for name in names], dim=1)


def train(network: Network, world: World, steps: int) -> Network:
    """Train on pairs that obey the rule, augmented twice."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(steps):
        factors = world.factors(BATCH, biased=True)
        loss = network.loss((world.augmented(factors), world.augmented(factors)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def probes(network: Network, world: World, *, perceptron: bool) -> dict[str, float]:
    """Train probes on 4,000 unbiased rows and test them on others."""
    parts = []
    for _ in range(2):
        factors = world.factors(4000, biased=False)
        with torch.no_grad():
            seen = network.eval().probed(world.view(factors)).numpy()
        parts.append((seen, factors["first"]["s"].numpy(), world.obeys(factors).numpy()))
    (x, s, y), (x_test, s_test, y_test) = parts

    def accuracy(probe: object, target: object, expected: object) -> float:
        model = make_pipeline(StandardScaler(), probe).fit(x, target)
        return float(balanced_accuracy_score(expected, model.predict(x_test)))

    found = {
        "R": accuracy(LogisticRegression(max_iter=500), s, s_test),
        "S": accuracy(LogisticRegression(max_iter=500), y, y_test),
    }
    if perceptron:
        found["S by a perceptron"] = accuracy(MLPClassifier((128,), max_iter=20, random_state=0), y, y_test)
    return found


METHODS = {
    "Cross": {"kind": "all_pairs"},
    "Cross+Self": {"kind": "cross_self"},
    "CoMM": {"kind": "comm"},
}


def measure(seed: int, steps: int = 600) -> dict[str, dict[str, float]]:
    """Return the probes' accuracies of every method."""
    found = {}
    for name, table in METHODS.items():
        torch.manual_seed(seed)
        world = World(seed)
        found[name] = probes(train(Network(table), world, steps), world, perceptron=name != "CoMM")
    torch.manual_seed(seed)
    world = World(seed)
    found["CoMM, untrained"] = probes(Network(METHODS["CoMM"]), world, perceptron=True)
    return found


if __name__ == "__main__":
    report(
        measure,
        bars={
            "CoMM, S": "> 0.80",
            "Cross, S": "< 0.55",
            "Cross+Self, S": "< 0.55",
            "CoMM, untrained, S": "far below CoMM",
        },
    )
