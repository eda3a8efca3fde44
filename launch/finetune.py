"""Fine-tuning, as `python`, `torchrun` and `accelerate launch` start it.

accelerate launch launch/finetune.py --config recipes/demo-finetune.toml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# a script's own folder, not the project's, is what Python puts on the path
sys.path[0] = str(Path(__file__).resolve().parents[1])

from shards.errors import MatloomError


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="fine-tuning recipe, TOML")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a value of the recipe")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    options = arguments(argv)
    try:
        from finetune.compare import Comparison
        from finetune.config import load_finetune_recipe

        recipe = load_finetune_recipe(options.config, options.set)
        out = options.out or Path("runs") / recipe.name
        Comparison(recipe, out, report=lambda line: print(line, flush=True)).run()
    except MatloomError as error:
        print(f"matloom: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
