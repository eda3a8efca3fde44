"""`matloom predict` and `matloom embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Json, Structures, Uri, show


def predict(
    uri: Uri,
    structures: Structures,
    as_json: Json = False,
) -> None:
    """Predict a property of crystal structures."""
    from finetune.loading import PropertyModel, load
    from finetune.units import describe
    from shards.errors import ConfigError

    model = load(uri)
    if not isinstance(model, PropertyModel):
        raise ConfigError(
            f"'{uri}' is a pretrained model without a head", do="matloom finetune, then predict with its result"
        )
    name, unit = describe(model.info.targets[0])
    rows = [{"file": str(path), "property": name, "value": model.predict(path), "unit": unit} for path in structures]
    show(rows, as_json, lambda row: f"{row['file']}: {row['property']} = {row['value']:.4f} {row['unit']}".rstrip())


def embed(
    uri: Uri,
    structures: Structures,
    out: Annotated[Path, typer.Option(help="Result, .npy with one row a file.")] = Path("embeddings.npy"),
) -> None:
    """Write the unit embedding vectors of crystal structures."""
    import numpy as np

    from finetune.loading import load_foundation
    from shards.errors import ConfigError

    vectors = load_foundation(uri).embed(list(structures))
    try:
        with out.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError("the result cannot be written", where=out, why=error.strerror) from None
    typer.echo(f"{out}: {vectors.shape[0]} x {vectors.shape[1]}")
