"""How well does the plainest alignment do? Perceptrons over hand-made descriptors, the anchored loss, full batches.

Any pretrained model of this project has to beat it on the same split. Run it with
``python benchmarks/descriptor_baseline.py --seeds 0 1 2``.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.elements import element_features
from shards.schema import Arrays, Sample

ANCHOR = "crystal"
WORD = re.compile(r"[A-Za-z]+|\d+(?:\.\d+)?")


def crystal_descriptor(value: Arrays) -> np.ndarray:
    """Composition fractions, element statistics (mean, deviation, extremes), cell lengths, volume and mass density."""
    numbers = value["atomic_numbers"].astype(int)
    features = np.nan_to_num(np.asarray(element_features(), dtype=np.float64))
    elements = features[numbers]
    fractions = np.bincount(numbers, minlength=119) / len(numbers)
    volume = abs(np.linalg.det(value["lattice"].astype(np.float64))) / len(numbers)
    lengths = np.sort(np.linalg.norm(value["lattice"], axis=1))
    statistics = [elements.mean(0), elements.std(0), elements.min(0), elements.max(0)]
    return np.concatenate(
        [fractions, *statistics, lengths, [volume, np.log(volume), numbers.mean() / volume, len(numbers)]]
    )


def density_descriptor(value: Arrays) -> np.ndarray:
    """Logarithm of the density averaged to 8^3."""
    grid = value["density"].astype(np.float64)
    size = grid.shape[0] // 8
    return np.log(grid.reshape(8, size, 8, size, 8, size).mean((1, 3, 5)) + 1e-3).ravel()


def descriptors(samples: Sequence[Sample], train: Sequence[bool]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Standardised descriptors by modality.

    Parameters
    ----------
    samples : sequence of Sample
        With any of the modalities crystal, dos, charge_density, xrd and text.
    train : sequence of bool
        Which samples may set the words and the scales.

    Returns
    -------
    dict
        Modality to ((R, D) descriptors of the samples that have it, (R,) positions of those samples).
    """
    words = Counter(
        w for s, t in zip(samples, train, strict=True) if t for w in set(WORD.findall(s.text.get("text", "")))
    )
    known = sorted(word for word, count in words.items() if count >= 2)

    def bag(text: str) -> np.ndarray:
        counts = Counter(WORD.findall(text))
        return np.log1p([counts[word] for word in known])

    makers: dict[str, Callable] = {
        "crystal": crystal_descriptor,
        "dos": lambda value: np.log(value["intensity"].astype(np.float64) + 1e-2),
        "charge_density": density_descriptor,
        "xrd": lambda value: np.sqrt(value["intensity"].astype(np.float64)),
        "text": bag,
    }
    result = {}
    for name, make in makers.items():
        at = np.array([i for i, sample in enumerate(samples) if name in sample.modalities], dtype=int)
        if len(at) == 0:
            continue
        table = np.stack([make(samples[i].value(name)) for i in at])
        fitted = table[np.asarray(train)[at]]
        scale = np.where(fitted.std(0) > 1e-9, fitted.std(0), np.inf)  # a constant column says nothing: it becomes 0
        result[name] = (np.clip((table - fitted.mean(0)) / scale, -8, 8).astype(np.float32), at)
    return result


def infonce(a: Tensor, b: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors (n, d)."""
    logits = a @ b.T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def recall_at_1(z: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """Share of rows whose nearest neighbour in the other modality is their own, for each ordered pair."""
    return {
        (a, b): float(((z[a] @ z[b].T).argmax(1) == torch.arange(len(z[a]))).float().mean())
        for a, b in permutations(z, 2)
    }


def baseline(
    samples: Sequence[Sample], train: Sequence[bool], test: Sequence[bool], *, seed: int = 0, steps: int = 300
) -> dict[tuple[str, str], float]:
    """Train one perceptron a modality and return recall@1 on the complete test materials.

    Parameters
    ----------
    samples, train, test : sequences
        All samples, and masks of those to train on and to test on.
    seed : int
        Of the weights.
    steps : int
        Full-batch steps of AdamW.
    """
    torch.manual_seed(seed)
    tables = descriptors(samples, train)
    train, test = np.asarray(train), np.asarray(test)
    width = 256
    towers = nn.ModuleDict(
        {name: nn.Sequential(nn.Linear(x.shape[1], width), nn.GELU(), nn.Dropout(0.2), nn.Linear(width, 128))
         for name, (x, _) in tables.items()}
    )  # fmt: skip
    log_temperature = nn.Parameter(torch.tensor(np.log(0.1), dtype=torch.float32))
    optimizer = torch.optim.AdamW([*towers.parameters(), log_temperature], lr=1e-3, weight_decay=0.05)
    pairs = {}
    for name, (_, at) in tables.items():
        if name != ANCHOR:
            both = np.intersect1d(at[train[at]], tables[ANCHOR][1])
            rows = {m: torch.from_numpy(np.searchsorted(tables[m][1], both)) for m in (name, ANCHOR)}
            pairs[name] = (rows[ANCHOR], rows[name])
    inputs = {name: torch.from_numpy(x) for name, (x, _) in tables.items()}
    for _ in range(steps):
        z = {name: F.normalize(towers[name](x), dim=1) for name, x in inputs.items()}
        temperature = log_temperature.exp().clamp(0.01, 1)
        loss = torch.stack([infonce(z[ANCHOR][i], z[m][j], temperature) for m, (i, j) in pairs.items()]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    towers.eval()
    complete = np.flatnonzero(
        test & np.all([np.isin(np.arange(len(samples)), at) for _, at in tables.values()], axis=0)
    )
    with torch.no_grad():
        z = {
            name: F.normalize(towers[name](inputs[name][np.searchsorted(at, complete)]), dim=1)
            for name, (_, at) in tables.items()
        }
    return recall_at_1(z)


def chemical_split(samples: Sequence[Sample], *, seed: int, test: float = 0.2) -> np.ndarray:
    """Mask of test samples: ``test`` of the chemical systems, drawn by ``seed``."""
    systems = [sample.tags.get("chemical_system", sample.id) for sample in samples]
    order = np.random.default_rng(seed).permutation(sorted(set(systems)))
    return np.isin(systems, order[: round(test * len(order))])


def load() -> list[Sample]:
    """All materials of the embedded DFT set with the demo's features."""
    from pymatgen.core import Lattice, Structure

    from shards import embedded
    from shards.features.charge_density import ChargeDensityFeature
    from shards.features.crystal import CrystalFeature
    from shards.features.dos import DosFeature
    from shards.features.xrd import XrdFeature
    from shards.sources.base import RawDos, Record

    steps = {
        "crystal": CrystalFeature(),
        "dos": DosFeature(),
        "xrd": XrdFeature(),
        "charge_density": ChargeDensityFeature(),
    }
    samples = []
    for raw in embedded.load("dft_crystals"):
        structure = Structure(Lattice(raw.lattice), raw.species, raw.frac_coords)
        dos = RawDos(energy_ev=raw.dos[0], states_per_ev=raw.dos[1], atoms=len(structure)) if raw.dos else None
        record = Record(id=raw.id, structure=structure, dos=dos, charge_density=raw.charge_density, text=raw.text)
        arrays = {name: dict(value) for name, step in steps.items() if (value := step(record)) is not None}
        text = {"text": raw.text} if raw.text else {}
        samples.append(Sample(id=raw.id, arrays=arrays, text=text, tags=raw.tags))
    return samples


def main() -> None:
    """Print recall@1 of every ordered pair for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    samples = load()
    results = []
    for seed in arguments.seeds:
        test = chemical_split(samples, seed=seed)
        results.append(baseline(samples, ~test, test, seed=seed))
    print("query -> gallery".ljust(34), *(f"seed {seed}" for seed in arguments.seeds), " mean", sep="  ")
    for a, b in results[0]:
        row = [result[a, b] for result in results]
        print(f"{a} -> {b}".ljust(34), *(f"{value:6.3f}" for value in [*row, float(np.mean(row))]), sep="  ")


if __name__ == "__main__":
    main()
