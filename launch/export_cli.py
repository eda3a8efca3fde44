"""`matloom export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Uri


def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="Folder to write; an earlier export there is replaced.")],
) -> None:
    """Write a model as safetensors, config and model card, ready for the Hugging Face hub."""
    from finetune.hub import HubModel
    from finetune.registry import resolve

    HubModel(str(resolve(uri))).save_pretrained(folder)
    typer.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
