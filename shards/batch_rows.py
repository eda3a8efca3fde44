"""Any rows of a batch as a batch of their own, where `shards.batch.rows_of` takes those that stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from shards.batch import Batch, Inputs
from shards.schema import ModalitySpec


def pick_rows(batch: Batch, specs: Mapping[str, ModalitySpec], rows: Tensor) -> Batch:
    """Return the rows of a batch at (k,) ascending positions, equal to having collated them alone.

    Parameters
    ----------
    batch : Batch
        Collated over the modalities of ``specs``, and perhaps others, which are left out.
    specs : mapping of str to ModalitySpec
        Say which axes are ragged and which fields are indices.
    rows : Tensor
        (k,) int64, ascending, on the device of the batch.
    """
    inputs = {}
    for name, spec in specs.items():
        present = batch.present[name]
        # the place of each row among the present ones
        place = (present.cumsum(0) - 1)[rows][present[rows]]
        if len(place):
            inputs[name] = _picked(batch.inputs[name], spec, place)
    return Batch(
        ids=[batch.ids[row] for row in rows.tolist()],
        present={name: batch.present[name][rows] for name in specs},
        inputs=inputs,
        labels=batch.labels[rows],
        label_names=batch.label_names,
        groups=batch.groups[rows],
        twin=None if batch.twin is None else pick_rows(batch.twin, specs, rows),
    )


def _picked(inputs: Inputs, spec: ModalitySpec, place: Tensor) -> Inputs:
    if spec.kind == "text":
        texts = cast(list[str], inputs["text"])
        return {"text": [texts[i] for i in place.tolist()]}
    found: Inputs = {}
    elements: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    for name in inputs:
        if name.endswith("_ptr"):
            axis = name.removesuffix("_ptr")
            pointer = cast(Tensor, inputs[name])
            start, length = pointer[:-1][place], pointer.diff()[place]
            ends = torch.cat([length.new_zeros(1), length.cumsum(0)])
            found[name] = ends
            found[f"{axis}_row"] = torch.arange(len(place), device=place.device).repeat_interleave(length)
            shifts[axis] = start - ends[:-1]
            elements[axis] = torch.arange(int(ends[-1]), device=place.device) + shifts[axis].repeat_interleave(length)
    for name, field in spec.fields.items():
        value, at = cast(Tensor, inputs[name]), field.ragged_axis
        if at is None:
            found[name] = value[place]
            continue
        axis = str(field.shape[at])
        picked = value.index_select(at, elements[axis])
        if field.index_of is not None:
            shape = [-1 if i == at else 1 for i in range(picked.ndim)]
            row = cast(Tensor, found[f"{axis}_row"])
            picked = picked - shifts[field.index_of][row].reshape(shape)
        found[name] = picked
    return found
