"""`matloom launch stage`: the data of a recipe on this host's own disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Set


def stage(
    config: Config,
    folder: Annotated[Path, typer.Argument(help="On this host's own disk.")],
    set_: Set = [],  # noqa: B006  typer copies it
    env_file: Annotated[
        Path | None, typer.Option(help="NAME=VALUE lines, mode 600: credentials for the data; $MATLOOM_ENV_FILE.")
    ] = None,
) -> None:
    """Copy a recipe's data sets to this host and verify them; ranks read them where MATLOOM_STAGE names the folder.

    `matloom launch run --stage FOLDER` does this on all hosts.
    """
    from launch.hosts.environment import adopt_env_file
    from launch.hosts.staging import bring, places
    from pretrain.config import load_recipe
    from shards.staged import STAGE

    adopt_env_file(env_file)
    bring(places(load_recipe(config, set_).data), folder, lambda answer: typer.echo(answer["said"]))
    typer.echo(f"export {STAGE}={folder}")
