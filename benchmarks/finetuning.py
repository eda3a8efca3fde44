"""What pretraining is worth: the strategies of fine-tuning over fractions of the labels, beside a classical baseline.

    python benchmarks/finetuning.py recipes/perov5-finetune.toml --out runs/finetuning --jobs 2
    python benchmarks/finetuning.py recipes/molecules-finetune.toml --out runs/finetuning --set data=shards/freesolv ...

Five seeds; a fit that is done is kept in ``--out``, so that the same command goes on after it was stopped;
`benchmarks/learning_curves.py` prints and draws what is there. The model of the recipe must be in the registry, or be a
folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig, load_finetune_recipe
from pretrain.export import write_json

FRACTIONS = (1.0, 0.5, 0.1, 0.05, 0.01)
SEEDS = (0, 1, 2, 3, 4)
# what takes longest stands first, so that processes end together
KINDS = ("full", "scratch", "frozen", "random_forest", "linear_probe", "mean")


@dataclass(frozen=True)
class Part:
    """One fit."""

    kind: str
    fraction: float
    seed: int

    def file(self, recipe: FinetuneRecipe, out: Path) -> Path:
        """Return where its result is kept."""
        return out / f"{recipe.name}-{self.kind}-{self.fraction:g}-{self.seed}.json"

    def row(self, modality: str) -> RowConfig:
        """Return the row that is fitted; the classical baseline looks at descriptors, not at the model."""
        if self.kind == "mean":
            return RowConfig(strategy="mean", modalities=(), label_fraction=self.fraction)
        if self.kind == "random_forest":
            descriptors = "ecfp" if modality == "graph" else "magpie"
            return RowConfig(strategy=self.kind, modalities=(), descriptors=descriptors, label_fraction=self.fraction)
        return RowConfig(strategy=self.kind, modalities=(modality,), label_fraction=self.fraction)


@cache
def comparison(recipe: str, overrides: tuple[str, ...], out: Path) -> Comparison:
    """Return what a process fits with: the data and the model, read once."""
    return Comparison(load_finetune_recipe(Path(recipe), overrides), out)


def measure(recipe: str, overrides: tuple[str, ...], out: Path, part: Part) -> str:
    """Fit one part, keep its test metrics and return a line about it."""
    fitted = comparison(recipe, overrides, out)
    row = part.row(modality_of(fitted.recipe))
    outcome = fitted.fitter.fit(row, part.seed)
    metrics = outcome.test
    write_json(part.file(fitted.recipe, out), {"row": row.model_dump(mode="json"), "seed": part.seed, **metrics})
    return f"{fitted.recipe.name}  {row.label}  seed {part.seed}  " + "  ".join(
        f"{k} {v:.4g}" for k, v in metrics.items()
    )


def modality_of(recipe: FinetuneRecipe) -> str:
    """Return the modality that all rows look at: the first one that the recipe names."""
    return next(row.modalities[0] for row in recipe.rows if row.modalities)


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that fit side by side")
    options = parser.parse_args()
    overrides = tuple(options.set)
    recipe = load_finetune_recipe(Path(options.recipe), overrides)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [Part(kind, fraction, seed) for fraction in options.fractions for kind in KINDS for seed in SEEDS]
    todo = [part for part in parts if part.kind in options.rows and not part.file(recipe, options.out).exists()]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for fit in as_completed([pool.submit(measure, options.recipe, overrides, options.out, p) for p in todo]):
            print(fit.exception() or fit.result(), flush=True)


if __name__ == "__main__":
    main()
