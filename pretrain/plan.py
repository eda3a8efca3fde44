"""What a run will be, before it is one: world, batches, steps, coverage, parameters and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.accumulate import contrast
from pretrain.automatic import settings_for
from pretrain.config import Recipe
from pretrain.data import as_evaluated, batches_of
from pretrain.memory import Buffers, Memory, buffers_of, states
from pretrain.model import MultimodalModel
from pretrain.prepare import prepare
from pretrain.settings import zero_stage
from shards.batch import Batch, rows_of
from shards.mixture import Mixture
from shards.reader import Dataset

# rows of the real batch on which the activations are measured
PROBE_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper.

    Attributes
    ----------
    world, batch_size, rank_rows : int
        Ranks, global batch, and most rows of it on a rank.
    micro_batch, accumulate : int
        Rows that are encoded at once, and batches an optimizer step.
    samples, epochs, epoch_steps, total_steps, warmup_steps : int
        Training samples, and what follows from them.
    coverage : dict of str to float
        Share of the training samples that have a modality.
    pairs : dict of str to int
        Training samples that have both modalities.
    parameters : dict of str to int
        Numbers of parameters by part, ``encoder/crystal`` and so on.
    trained : int
        Parameters that learn.
    weights : int
        Bytes of all parameters and buffers.
    memory : Memory
        Of the fullest rank.
    checkpoint : int
        Bytes of a checkpoint, all ranks together.
    notes : list of str
        What the user should know.
    """

    world: int
    batch_size: int
    rank_rows: int
    micro_batch: int
    accumulate: int
    samples: int
    epochs: int
    epoch_steps: int
    total_steps: int
    warmup_steps: int
    coverage: dict[str, float]
    pairs: dict[str, int]
    parameters: dict[str, int]
    trained: int
    weights: int
    memory: Memory
    checkpoint: int
    notes: list[str] = field(default_factory=list)

    def as_table(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "memory": {**asdict(self.memory), "total": self.memory.total}}


def make_plan(
    recipe: Recipe,
    dataset: Dataset | Mixture,
    model: MultimodalModel,
    *,
    world: int,
    settings: Mapping[str, Any],
) -> Plan:
    """Work out a run without a process group and without a step.

    Parameters
    ----------
    recipe : Recipe
        What is to be trained.
    dataset : Dataset or Mixture
        Its data, with the recipe's modalities selected.
    model : MultimodalModel
        Built from the recipe, on the CPU; it is prepared (`pretrain.prepare`) here.
    world : int
        Number of ranks.
    settings : mapping
        DeepSpeed's keys that win over the recipe's.
    """
    notes = prepare(model, recipe)
    # what the encoders read: pictures of the size of the crop
    seen = as_evaluated(recipe, dataset.modalities)
    stream = batches_of(recipe, dataset, "train", seen, rank=0, world=world, workers=0, views=model.views)
    first = next(stream.epoch(0))
    rows = len(first.ids)
    micro = min(recipe.optim.micro_batch or rows, rows)
    there = {name: dataset.presence(name)[stream.positions] for name in recipe.modalities}
    warmup_steps, total_steps = stream.total(recipe.optim.warmup_epochs), stream.total(recipe.optim.epochs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keys, lines = settings_for(
        recipe, settings, world=world, warmup_steps=warmup_steps, total_steps=total_steps, device=device
    )
    stage, trained, weights = zero_stage(keys), _trained(model), _bytes(model.state_dict().values())
    memory = estimate_memory(
        model, first, micro=micro, world=world, stage=stage, ema=recipe.optim.ema is not None, buffers=buffers_of(keys)
    )
    return Plan(
        world=world,
        batch_size=recipe.data.batch_size,
        rank_rows=rows,
        micro_batch=micro,
        accumulate=recipe.optim.accumulate,
        samples=len(stream.positions),
        epochs=recipe.optim.epochs,
        epoch_steps=stream.steps_in(0),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        coverage={name: float(mask.mean()) for name, mask in there.items()},
        pairs={f"{a}-{b}": int((there[a] & there[b]).sum()) for a, b in combinations(there, 2)},
        parameters=count_parameters(model),
        trained=trained,
        weights=weights,
        memory=memory,
        checkpoint=weights * (2 if recipe.optim.ema else 1) + (12 if stage else 8) * trained,
        notes=[*notes, *lines],
    )


def count_parameters(model: MultimodalModel) -> dict[str, int]:
    """Return the numbers of parameters by part; a projection that all share counts once."""
    parts: dict[str, nn.Module] = {f"encoder/{name}": module for name, module in model.encoders.items()}
    parts |= {f"fusion/{name}": module for name, module in model.fusions.items()}
    parts |= {"projections": model.projections, "objective": model.objective}
    return {name: sum(p.numel() for p in module.parameters()) for name, module in parts.items()}


def estimate_memory(
    model: MultimodalModel, batch: Batch, *, micro: int, world: int, stage: int, ema: bool, buffers: Buffers
) -> Memory:
    """Return the bytes on a rank: states by counting, activations by looking at the graph of a few real rows.

    Parameters
    ----------
    model : MultimodalModel
        On the CPU.
    batch : Batch
        A rank's part of a batch.
    micro : int
        Rows that are encoded at once.
    world, stage, ema, buffers
        As of `pretrain.memory.states`.
    """
    # with the mean number of rows that they will be: parts of a batch differ in what is present
    probe = max(1, min(PROBE_ROWS, micro))
    kept = saved_bytes(model, rows_of(batch, model.specs, 0, probe))
    inputs = sum(_bytes(v for v in values.values() if isinstance(v, Tensor)) for values in batch.inputs.values())
    weights = _bytes(model.state_dict().values())
    return Memory(
        **states(weights, _trained(model), world=world, stage=stage, ema=ema, buffers=buffers),
        activations=kept * micro // probe + inputs,
    )


def saved_bytes(model: MultimodalModel, batch: Batch) -> int:
    """Return the bytes that the graph of a batch's loss keeps, parameters and repeated storages left out."""
    seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with _measuring(seen) as found:
        contrast(model, model.objective, lambda loss: None, batch)
    return sum(found)


@contextmanager
def _measuring(seen: set[int]) -> Iterator[list[int]]:
    found: list[int] = []
    keep: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            # held, so that no later storage can have the same address
            keep.append(tensor)
            found.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _trained(model: MultimodalModel) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
