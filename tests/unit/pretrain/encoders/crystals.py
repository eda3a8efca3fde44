"""Crystals for tests of encoders: real polymorphs, and one without any symmetry."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from pymatgen.core import Lattice, Structure

from pretrain.encoders.base import ENCODERS, Encoder
from shards.batch import Inputs, collate_modality
from shards.embedded import load
from shards.features.crystal import CrystalFeature
from shards.schema import ModalitySpec
from shards.sources.base import Record

FEATURE = CrystalFeature(cutoff_a=4.5, primitive=False, potentials=False)
SPEC = FEATURE.spec("crystal")


def low_symmetry() -> Structure:
    """Five atoms in a triclinic cell: space group P1, so no vector and no handedness vanishes by symmetry."""
    lattice = Lattice.from_parameters(4.1, 4.9, 5.7, 82, 97, 105)
    sites = [[0.02, 0.05, 0.01], [0.47, 0.12, 0.55], [0.18, 0.61, 0.28], [0.71, 0.83, 0.77], [0.66, 0.43, 0.09]]
    return Structure(lattice, ["Li", "Fe", "P", "O", "O"], sites)


def turn(seed: int = 0) -> np.ndarray:
    """Return a proper rotation (3, 3)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def turned(structure: Structure, matrix: np.ndarray) -> Structure:
    """Apply an orthogonal matrix (3, 3) to every position."""
    return Structure(Lattice(structure.lattice.matrix @ matrix.T), structure.species, structure.frac_coords)


def value(structure: Structure) -> dict[str, np.ndarray]:
    return FEATURE(Record(id="x", structure=structure))


def inputs(*structures: Structure) -> Inputs:
    return collate_modality(SPEC, [value(structure) for structure in structures])


def build(kind: str, *, spec: ModalitySpec = SPEC, seed: int = 0, **options: object) -> Encoder:
    config = ENCODERS.options({"kind": kind, **options})
    torch.manual_seed(seed)
    encoder = ENCODERS.get(kind)(spec, config, {}).eval()
    # as after training: biases that begin at zero hide what does not fade, quiet vectors what is wrong with them
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if kind == "visnet":
            encoder.neighbourhood.distance.weight.mul_(30)
            for layer in encoder.layers:
                layer.vec_proj.weight.mul_(3)
    return encoder


def vectors(encoder: Encoder, *structures: Structure) -> torch.Tensor:
    with torch.no_grad():
        return encoder(inputs(*structures)).vector


@cache
def embedded(*formulas: str) -> list[tuple[Structure, float]]:
    """Return every polymorph of some formulas in the embedded set, with its volume in cubic Angstrom an atom."""
    return [
        (Structure(raw.lattice, list(raw.species), raw.frac_coords), raw.labels["volume_per_atom_a3"])
        for raw in load("dft_crystals")
        if raw.formula in formulas
    ]


def overfit(encoder: Encoder, batch: Inputs, targets: list[float], steps: int) -> float:
    """Train with a linear head on standardised targets, and return the last loss in units of their variance."""
    y = torch.tensor(targets)
    y = (y - y.mean()) / y.std(correction=0)
    torch.manual_seed(0)
    head = torch.nn.Linear(encoder.dim, 1)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3, weight_decay=0)
    encoder.train()
    loss = torch.tensor(torch.inf)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (head(encoder(batch).vector).squeeze(1) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss)
