"""Pretraining, as `deepspeed`, `torchrun` and `srun` start it.

deepspeed --num_accelerators 2 launch/pretrain.py --config recipes/demo.toml
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# a script's own folder, not the project's, is what Python puts on the path
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.arguments import recipe_parser
from launch.guard import guarded


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--local_rank`` is what DeepSpeed's launcher adds."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="continue from the newest good checkpoint")
    parser.add_argument("--deepspeed_config", type=Path, help="DeepSpeed JSON that wins over the recipe's [deepspeed]")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def train(options: argparse.Namespace) -> None:
    """Train the recipe to its end."""
    from pretrain.config import load_recipe
    from pretrain.train import Trainer
    from shards.recipes import read_tables

    recipe = load_recipe(options.config, options.set)
    settings = read_tables(options.deepspeed_config) if options.deepspeed_config else {}
    out = options.out or Path("runs") / recipe.name
    trainer = Trainer(recipe, out, resume=options.resume, settings=settings, report=lambda s: print(s, flush=True))
    best = trainer.run()
    trainer.report(json.dumps({"best": str(best), "val_mrr": trainer.best, "steps": trainer.step}))


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    options = arguments(argv)
    if options.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    return guarded(lambda: train(options), debug=options.debug)


if __name__ == "__main__":
    sys.exit(main())
