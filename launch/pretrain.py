"""Pretraining, as `deepspeed`, `torchrun` and `srun` start it.

deepspeed --num_accelerators 2 launch/pretrain.py --config recipes/demo.toml
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# a script's own folder, not the project's, is what Python puts on the path
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.arguments import recipe_parser
from launch.guard import guarded, leave
from launch.hosts.environment import adopt_env_file
from launch.launchers import refuse_missing_hostfile
from launch.output import outlive_readers
from launch.ranks import adopt_rank, meet
from pretrain.signals import Signals
from pretrain.sole import sole_writer


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--local_rank`` is what DeepSpeed's launcher adds."""
    parser = recipe_parser(__doc__)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="always",
        choices=["always", "auto"],
        help="continue from the newest good checkpoint; auto: start where there has never been one, for requeued jobs",
    )
    parser.add_argument(
        "--deepspeed_config", help="DeepSpeed JSON, or a profile such as zero2, that wins over the recipe's [deepspeed]"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def report(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def train(options: argparse.Namespace) -> None:
    """Train the recipe to its end."""
    adopt_env_file(options.env_file)
    adopt_rank(local_rank=options.local_rank)
    # before the imports of the run, which take seconds
    signals = Signals().install()
    outlive_readers(lambda: signals.request("nobody reads any more what this rank prints"))
    refuse_missing_hostfile(Path(__file__))

    from launch.profiles import deepspeed_settings
    from pretrain.config import load_recipe
    from pretrain.settings import read_settings
    from pretrain.train import Trainer

    recipe = load_recipe(options.config, options.set)
    out = options.out or Path("runs") / recipe.name
    meet(out)
    with sole_writer(out, signals, report):
        trainer = Trainer(
            recipe,
            out,
            resume="auto" if options.resume == "auto" else options.resume is not None,
            settings=read_settings(deepspeed_settings(options.deepspeed_config)) if options.deepspeed_config else {},
            report=report,
            signals=signals,
        )
        best = trainer.run()
    trainer.report(json.dumps({"best": str(best), "val_mrr": trainer.best, "steps": trainer.step}))


def main(argv: list[str] | None = None) -> int:
    """Run and return the exit code."""
    options = arguments(argv)
    return guarded(lambda: train(options), debug=options.debug)


if __name__ == "__main__":
    leave(main())
