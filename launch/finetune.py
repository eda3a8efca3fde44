"""Fine-tuning, as `python`, `torchrun` and `accelerate launch` start it.

accelerate launch launch/finetune.py --config recipes/demo-finetune.toml
accelerate launch --multi_gpu --num_processes 2 launch/finetune.py --config recipes/demo-finetune.toml   (on a CPU too)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# a script's own folder, not the project's, is what Python puts on the path
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.arguments import recipe_parser
from launch.guard import guarded, leave
from launch.hosts.environment import adopt_env_file
from launch.ranks import adopt_rank, meet


def compare(options: argparse.Namespace) -> None:
    """Fit and measure every row of the recipe."""
    adopt_env_file(options.env_file)
    adopt_rank()

    from finetune.compare import Comparison
    from finetune.config import load_finetune_recipe

    recipe = load_finetune_recipe(options.config, options.set)
    out = options.out or Path("runs") / recipe.name
    meet(out)
    Comparison(recipe, out, report=lambda line: print(line, flush=True)).run()


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    options = recipe_parser(__doc__).parse_args(argv)
    return guarded(lambda: compare(options), debug=options.debug)


if __name__ == "__main__":
    leave(main())
