"""The fine-tuning recipe: which registered model, which target, which rows of the table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from finetune.heads.base import HEADS
from pretrain.config import Place
from shards.plugins import Options
from shards.recipes import apply_overrides, parse, read_tables
from shards.schema import Strict

Strategy = Literal["frozen", "full", "scratch", "probe", "mean"]


class RowConfig(Strict):
    """One row of the table.

    Attributes
    ----------
    strategy : str
        ``frozen``: pretrained encoders stay as they are, the head is trained on their cached
        vectors. ``full``: everything is trained, encoders at ``encoder_lr``. ``scratch``: the same
        architecture from random weights. ``probe``: ridge regression (or logistic regression) on the
        frozen vectors. ``mean``: the training mean (or the most frequent class).
    modalities : tuple of str
        What the row may look at.
    """

    strategy: Strategy
    modalities: tuple[str, ...] = ("crystal",)


class FinetuneOptim(Strict):
    """AdamW on the head (``lr``) and on encoders that are trained (``encoder_lr``; from scratch: ``lr``)."""

    lr: float = Field(1e-3, gt=0)
    encoder_lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    epochs: int = Field(100, gt=0)
    frozen_epochs: int = Field(300, gt=0)
    batch_size: int = Field(32, gt=0)
    grad_clip: float = Field(1.0, gt=0)


class FinetuneRecipe(Strict):
    """A whole comparison.

    Attributes
    ----------
    name : str
        Name of the run, and of the registered predictor unless ``register_as`` says otherwise.
    model : str
        URI of the pretrained model, ``models:/demo@champion``.
    data : str
        Data set, as in a pretraining recipe; its schema must be the model's.
    overlays : tuple of str
        Companion shards that add modalities to ``data``, as in a pretraining recipe.
    split : str
        The parts ``train`` (fitted on), ``val`` (chosen by) and ``test`` (reported, once).
    target : str or tuple of str
        A label, with its unit in the name; or several, which one network predicts together.
    seeds : tuple of int
        Every trained row is repeated with each.
    """

    name: str
    model: str
    data: Place
    overlays: tuple[Place, ...] = ()
    split: str = "chemical_system"
    target: str | tuple[str, ...]
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    head: dict[str, Any] = {"kind": "regression"}
    optim: FinetuneOptim = FinetuneOptim()
    experiment: str = "matloom"
    register_as: str | None = None

    @model_validator(mode="after")
    def _rows_differ(self) -> FinetuneRecipe:
        if len(set(self.rows)) < len(self.rows):
            raise ValueError("two rows are the same")
        if any(not row.modalities and row.strategy != "mean" for row in self.rows):
            raise ValueError("a row that is fitted needs at least one modality")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, one or several."""
        return (self.target,) if isinstance(self.target, str) else self.target

    def head_options(self) -> Options:
        """Return the typed options of the head."""
        return HEADS.options(self.head)


def load_finetune_recipe(path: Path, overrides: Iterable[str] = ()) -> FinetuneRecipe:
    """Read and validate a fine-tuning recipe; see `pretrain.config.load_recipe` for the overrides."""
    recipe = parse(FinetuneRecipe, apply_overrides(read_tables(path), overrides), where=str(path))
    recipe.head_options()
    return recipe
