"""What pretraining is worth: the strategies of fine-tuning over fractions of the labels, beside a classical baseline.

    python benchmarks/finetuning.py recipes/perov5-finetune.toml --out runs/finetuning
    python benchmarks/finetuning.py recipes/molecules-finetune.toml --out runs/finetuning --set data=shards/freesolv ...

Five seeds; a part that is done is kept in ``--out``, so that the same command goes on after it was stopped, and
``--table`` prints what is there as Markdown. The model of the recipe must be in the registry.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.compare import Comparison
from finetune.config import FinetuneRecipe, RowConfig, load_finetune_recipe
from pretrain.export import write_json

FRACTIONS = (0.01, 0.05, 0.1, 0.5, 1.0)
SEEDS = (0, 1, 2, 3, 4)
KINDS = ("mean", "random_forest", "linear_probe", "frozen", "full", "scratch")


def rows_of(fraction: float, modality: str, descriptors: str) -> tuple[RowConfig, ...]:
    """Return the rows of the table at one fraction of the labels."""
    plain = [
        RowConfig(strategy="mean", modalities=(), label_fraction=fraction),
        RowConfig(strategy="random_forest", modalities=(), descriptors=descriptors, label_fraction=fraction),
    ]
    learned = [
        RowConfig(strategy=strategy, modalities=(modality,), label_fraction=fraction)
        for strategy in ("probe", "frozen", "full", "scratch")
    ]
    return (*plain, *learned)


def measure(recipe: FinetuneRecipe, out: Path, fractions: tuple[float, ...], kinds: tuple[str, ...]) -> None:
    """Fit the rows of these kinds at every fraction, one file a row."""
    modality = next(row.modalities[0] for row in recipe.rows if row.modalities)
    descriptors = "ecfp" if modality == "graph" else "magpie"
    for fraction in fractions:
        for row in rows_of(fraction, modality, descriptors):
            name = f"{recipe.name}-{row.table['kind']}-{fraction:g}"
            if row.table["kind"] not in kinds or (out / f"{name}.json").exists():
                continue
            one = recipe.model_copy(update={"rows": (row,), "seeds": SEEDS, "name": name, "register_as": recipe.name})
            (result,) = Comparison(one, out / name).run()
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / f"{name}.json", {"fraction": fraction, "target": recipe.target, **result.summary()})


def table(recipe: FinetuneRecipe, out: Path, metric: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: a strategy a row, a fraction of the labels a column."""
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for path in out.glob(f"{recipe.name}-*.json"):
        row = json.loads(path.read_text())
        found[path.stem.removeprefix(f"{recipe.name}-").rpartition("-")[0], row["fraction"]] = row
    fractions = sorted({fraction for _, fraction in found})
    yield "| strategy | " + " | ".join(f"{100 * fraction:g} %" for fraction in fractions) + " |"
    yield "|---" * (1 + len(fractions)) + "|"
    for kind in KINDS:
        cells = [found.get((kind, fraction)) for fraction in fractions]
        shown = [f"{c[f'test_{metric}']:.3f} +- {c[f'test_{metric}_std']:.3f}" if c else "" for c in cells]
        yield f"| {kind} | " + " | ".join(shown) + " |"


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=KINDS, help="several processes may share --out")
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--metric", default="mae")
    options = parser.parse_args()
    recipe = load_finetune_recipe(options.recipe, options.set)
    if not options.table:
        measure(recipe, options.out, tuple(options.fractions), tuple(options.rows))
    print("\n".join(table(recipe, options.out, options.metric)))


if __name__ == "__main__":
    main()
