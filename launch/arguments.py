"""Command-line arguments that the scripts of the launchers share."""

from __future__ import annotations

import argparse
from pathlib import Path


def recipe_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows a recipe, its overrides, the folder of the run, and ``--debug``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe, TOML")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a value of the recipe")
    parser.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--env_file",
        "--env-file",
        type=Path,
        help="NAME=VALUE lines for this process, secrets for example (mode 600); default: $MATLOOM_ENV_FILE",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
