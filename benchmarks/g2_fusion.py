"""What several views of a molecule predict together: the enthalpy of formation of the 162 molecules of ASE's G2 set.

``OMP_NUM_THREADS=1 python -m benchmarks.g2_fusion`` prints the table of docs/proofs.md (a minute on one core). The data
are part of ASE (Curtiss et al., J. Chem. Phys. 106, 1063 (1997)).
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import combinations

import numpy as np
from ase import Atoms
from ase.collections import g2
from ase.data import covalent_radii, g2_1, g2_2

from finetune.cross_validation import EstimatorModel, Model, cross_validate
from finetune.estimators.base import ESTIMATORS
from finetune.folds import Fold, FoldPlan, make_folds
from finetune.late_fusion import LateFused, LateFusionOptions
from shards.splits import SampleInfo

# two atoms are bonded within this many sums of their covalent radii
BONDED = 1.25


def composition(molecule: Atoms) -> Counter[str]:
    """Count the atoms of each element."""
    return Counter(molecule.symbols)


def bonds(molecule: Atoms) -> Counter[str]:
    """Count the bonds of each pair of elements."""
    found: Counter[str] = Counter()
    distances, radii = molecule.get_all_distances(), covalent_radii[molecule.numbers]
    for i, j in combinations(range(len(molecule)), 2):
        if distances[i, j] < BONDED * (radii[i] + radii[j]):
            found["-".join(sorted((molecule.symbols[i], molecule.symbols[j])))] += 1
    return found


def coulomb(molecule: Atoms, size: int) -> np.ndarray:
    """Return the absolute eigenvalues (size,) of the Coulomb matrix, descending (Rupp et al., PRL 108, 058301)."""
    z, distances = molecule.numbers.astype(float), molecule.get_all_distances()
    np.fill_diagonal(distances, 1)
    matrix = np.outer(z, z) / distances
    np.fill_diagonal(matrix, 0.5 * z**2.4)
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix)))[::-1]
    return np.pad(values, (0, size - len(values)))


def counted(counts: list[Counter[str]]) -> np.ndarray:
    """Return counts as rows of a table."""
    names = sorted(set().union(*counts))
    return np.array([[row[name] for name in names] for row in counts], dtype=float)


def views() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the views (162, F), and the enthalpies (162,) in kcal/mol."""
    known = {**g2_1.data, **g2_2.data}
    molecules = [g2[name] for name in g2.names]
    size = max(map(len, molecules))
    found = {
        "composition": counted([composition(m) for m in molecules]),
        "bonds": counted([bonds(m) for m in molecules]),
        "Coulomb eigenvalues": np.stack([coulomb(m, size) for m in molecules]),
    }
    return found, np.array([known[name]["enthalpy"] for name in g2.names])


def main() -> None:
    """Print the mean absolute error of all held-out rows, a column a draw of the folds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=3)
    draws = parser.parse_args().draws
    alone, y = views()
    infos = [SampleInfo(id=name) for name in g2.names]

    def estimator(kind: str) -> EstimatorModel:
        return EstimatorModel(ESTIMATORS.options({"kind": kind}), task="regression", seed=0)

    def late(fold: Fold) -> Model:
        branches = {name: lambda: estimator("linear_probe") for name in alone}
        return LateFused(branches, LateFusionOptions(), groups=[str(row) for row in fold.train])

    def score(make: object, features: object, seed: int) -> float:
        folds = make_folds(FoldPlan(folds=10, seed=seed), infos)
        # isomers have one composition
        found = cross_validate(make, features, y, folds, duplicates="allow")  # type: ignore[arg-type]
        return found.score("regression")["mae"]

    rows = {"mean": (lambda fold: estimator("mean"), alone["composition"])}
    rows |= {name: (lambda fold: estimator("linear_probe"), features) for name, features in alone.items()}
    rows |= {
        "side by side": (lambda fold: estimator("linear_probe"), np.hstack(list(alone.values()))),
        "late fusion, nnls": (late, alone),  # type: ignore[dict-item]
    }
    for name, (make, features) in rows.items():
        print(f"{name:20}" + "".join(f"{score(make, features, seed):8.1f}" for seed in range(draws)))


if __name__ == "__main__":
    main()
