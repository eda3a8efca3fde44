"""What was measured of a recipe on one rank, and what follows from it about others."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist

from pydantic import Field, NonNegativeFloat

from pretrain.memory import FLOAT, Buffers, states
from shards.errors import ConfigError
from shards.schema import Strict


class Spent(Strict):
    """Seconds of a step on one rank alone, the mean over the batches of an optimizer step.

    Attributes
    ----------
    data : float
        Waiting for the batch.
    forward, backward : float
        Of the encoders; the gradient of the loss is part of ``backward``.
    loss : float
        A rank's rows against its own rows as columns.
    optimizer : float
        AdamW.
    rest : float
        What is left of the step: logging, clipping, the engine's own work.
    """

    data: NonNegativeFloat
    forward: NonNegativeFloat
    backward: NonNegativeFloat
    loss: NonNegativeFloat
    optimizer: NonNegativeFloat
    rest: NonNegativeFloat

    @property
    def total(self) -> float:
        """Sum of all: the step."""
        return self.data + self.forward + self.backward + self.loss + self.optimizer + self.rest


class Work(Strict):
    """One rank's work in a step, as it was measured, or as somebody else published it.

    Attributes
    ----------
    name, device : str
        Recipe, and what it was measured on.
    steps : int
        Optimizer steps that were measured.
    rows : int
        Samples of a rank.
    pieces, accumulate : int
        Micro-batches of a batch, batches of an optimizer step.
    embeddings, dim : int
        Embeddings a sample, and their width.
    trained : int
        Parameters that learn.
    weights, activations, sample : float
        Bytes: parameters and buffers; what the graph of a micro-batch keeps; a sample's in the shards, on average.
    average : bool
        Whether a moving average of the weights is kept.
    stage : int
        Of ZeRO.
    bucket : int
        Gradients that are exchanged at once; 0: the exchange does not begin before the backward pass ends.
    buffers : Buffers
        What DeepSpeed's settings say of memory, and how many gradients it sums at once.
    spent : Spent
        Seconds of a step, medians.
    spread : float
        Standard deviation of a step's seconds, from the quartiles: what makes ranks wait for the slowest.
    loss_per_column : float
        Seconds of the loss and its gradient for one more column, all rows of the rank and all pairs.
    operations : float
        Of a step's forward and backward pass; 0: not counted.
    busy : float
        Cores that a rank keeps busy; 0: it has an accelerator.
    start, save, evaluate : float
        Seconds until the first step, of a checkpoint, and of evaluating one sample, as measured here.
    samples, validation : int
        Training and validation samples of the recipe.
    total_steps, epochs, checkpoint_every, evaluations : int
        Of the recipe.
    """

    name: str
    device: str
    steps: int = 0
    rows: int = Field(gt=0)
    pieces: int = Field(1, gt=0)
    accumulate: int = Field(1, gt=0)
    embeddings: int = Field(gt=0)
    dim: int = Field(gt=0)
    trained: int = Field(gt=0)
    weights: NonNegativeFloat = 0.0
    activations: NonNegativeFloat = 0.0
    sample: NonNegativeFloat = 0.0
    average: bool = False
    stage: int = Field(0, ge=0, le=3)
    bucket: int = Field(0, ge=0)
    buffers: Buffers = Buffers()
    spent: Spent
    spread: NonNegativeFloat = 0.0
    loss_per_column: NonNegativeFloat = 0.0
    operations: NonNegativeFloat = 0.0
    busy: NonNegativeFloat = 0.0
    start: NonNegativeFloat = 0.0
    save: NonNegativeFloat = 0.0
    evaluate: NonNegativeFloat = 0.0
    samples: int = 0
    validation: int = 0
    evaluations: int = 0
    total_steps: int = 0
    epochs: int = Field(1, gt=0)
    checkpoint_every: int = Field(200, gt=0)

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint, all ranks together: as `pretrain.plan` has it."""
        return self.weights * (2 if self.average else 1) + (12 if self.stage else 8) * self.trained

    def on(self, name: str, operations: float) -> Work:
        """Return the work on an accelerator called ``name`` that does so many operations a second.

        Where it was measured on that one already, it is as measured. Else what is computed takes the time of its
        operations, loss, optimizer, the rest and the spread are taken to be quicker by the same factor, and the data
        to be there in time.

        Raises
        ------
        ConfigError
            Where it was measured on another one and its operations, or the seconds that they took, are not known.
        """
        if name in self.device:
            return self
        passes = self.spent.forward + self.spent.backward
        if not self.operations or not passes:
            raise ConfigError(
                f"what '{self.name}' would take on {name} cannot be said from {self.device}",
                why=f"{self.operations:g} operations and {passes:g} s of forward and backward pass are given",
                do=f"name a cluster by --cluster whose accelerators are called so, or measure the recipe on {name}",
            )
        quicker = self.operations / operations / passes
        spent = {part: seconds * quicker for part, seconds in self.spent.model_dump().items()}
        return self.model_copy(
            update={
                "spent": Spent(**{**spent, "data": 0.0}),
                "spread": self.spread * quicker,
                "loss_per_column": self.loss_per_column * quicker,
                "device": f"{name}, from operations",
                "busy": 0.0,
            }
        )


def slowest(ranks: int) -> float:
    """Return by how many standard deviations the slowest of W ranks is above the mean, if they are normal.

    Blom 1958, Statistical Estimates and Transformed Beta-Variables: about the (W - 3/8) / (W + 1/4) quantile.
    """
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0


def read_work(path: Path) -> Work:
    """Read what `matloom launch estimate` stored."""
    from shards.recipes import parse, read_tables

    return parse(Work, read_tables(path), where=str(path))


def rank_memory(work: Work, ranks: int, *, stage: int | None = None) -> float:
    """Return the bytes on a rank's accelerator: states, activations, the global batch's embeddings and gradients."""
    held = _states(work, ranks, stage)
    everybody = 2 * ranks * work.rows * work.embeddings * (work.dim + 1) * FLOAT if ranks > 1 else 0
    return sum(held.values()) - held["host"] + work.activations + everybody


def host_memory(work: Work, ranks: int) -> float:
    """Return the bytes of a rank's states that lie in the host's memory."""
    return _states(work, ranks, None)["host"]


def _states(work: Work, ranks: int, stage: int | None) -> dict[str, int]:
    stage = work.stage if stage is None else stage
    return states(work.weights, work.trained, world=ranks, stage=stage, ema=work.average, buffers=work.buffers)
