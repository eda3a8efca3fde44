"""A model made ready for training as its recipe says."""

from __future__ import annotations

import torch

from pretrain.config import Recipe
from pretrain.freezing import freeze_parts
from pretrain.model import MultimodalModel
from pretrain.optimizer import encoder_scales
from pretrain.starting import load_starting_weights
from shards.errors import ConfigError


def prepare(model: MultimodalModel, recipe: Recipe, *, resumed: bool = False) -> list[str]:
    """Prepare a new model, on its device, before an engine takes it; returns what to tell the user.

    Parameters
    ----------
    model : MultimodalModel
        Built from ``recipe``; changed in place.
    recipe : Recipe
        ``modalities.*``: ``weights``, ``freeze``, ``lr_scale``, ``layer_decay``; ``optim``:
        ``checkpoint_activations``, ``compile``.
    resumed : bool
        Whether a checkpoint will be loaded: then no starting weights are read.
    """
    lines = [] if resumed else load_starting_weights(model, recipe)
    freeze_parts(model, recipe)
    model.lr_scales = encoder_scales(model.encoders, recipe.modalities)
    model.checkpointed = recipe.optim.checkpoint_activations
    if recipe.optim.compile:
        compile_encoders(model)
    return lines


def compile_encoders(model: MultimodalModel) -> None:
    """Compile every encoder in place, for any number of rows; the names of the parameters stay as they are.

    Raises
    ------
    ConfigError
        Where nothing can be compiled here; otherwise that would come out in the middle of the first step.
    """
    device = next(model.parameters()).device
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:
        raise ConfigError(
            "torch.compile does not work here",
            where="optim.compile",
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            do="optim.compile = false, or install what it asks for (on a CPU a C++ compiler)",
        ) from error
    for encoder in model.encoders.values():
        encoder.compile(dynamic=True)
