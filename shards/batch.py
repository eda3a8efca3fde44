"""Ragged collation: samples become tensors that hold the PRESENT rows of each modality only.

Inputs of a modality are a dict. A field without a ragged axis is stacked to ``(R, ...)`` over the R
present rows. Fields with a ragged axis are concatenated along it; beside them stand
``<axis>_row`` (row of every element, int64) and ``<axis>_ptr`` (R + 1 offsets, int64). Fields with
``index_of`` are int64 and shifted. A text modality is ``{"text": [str, ...]}``. Floats keep the
precision in which they are stored (charge densities stay float16) until an encoder casts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import xxhash
from torch import Tensor

from shards.schema import ModalitySpec, Sample, Value

Inputs = dict[str, Tensor | list[str]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B samples of which every modality may be missing in any row.

    Attributes
    ----------
    ids : list of str
        Length B.
    present : dict of str to Tensor
        ``present[modality]`` (B,) bool.
    inputs : dict of str to Inputs
        The present rows of each modality, in row order. A modality without any row has no entry.
    labels : Tensor
        (B, L) float32, NaN where unknown.
    label_names : tuple of str
        Length L.
    groups : Tensor
        (B,) int64, equal for records of one physical sample (its group, else its id), hashed.
    twin : Batch, optional
        The same samples augmented a second time, where an objective compares two views.
    """

    ids: list[str]
    present: dict[str, Tensor]
    inputs: dict[str, Inputs]
    labels: Tensor
    label_names: tuple[str, ...] = ()
    groups: Tensor
    twin: Batch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return replace(
            self,
            present={name: mask.to(device) for name, mask in self.present.items()},
            inputs={name: move(inputs, device) for name, inputs in self.inputs.items()},
            labels=self.labels.to(device),
            groups=self.groups.to(device),
            twin=self.twin.to(device) if self.twin is not None else None,
        )


def move(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Return a modality's inputs on ``device``."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def collate_modality(spec: ModalitySpec, values: Sequence[Value]) -> Inputs:
    """Collate the present values of one modality.

    Parameters
    ----------
    spec : ModalitySpec
        Says which fields there are, and which of their axes are ragged.
    values : sequence
        R values that satisfy ``spec``: dicts of arrays, or strings for a text modality.

    Returns
    -------
    Inputs
        See the module's docstring.
    """
    if spec.kind == "text":
        return {"text": [str(value) for value in values]}
    inputs: Inputs = {}
    pointers: dict[str, np.ndarray] = {}
    for name, field in spec.fields.items():
        axis = field.ragged_axis
        if axis is not None and field.shape[axis] not in pointers:
            lengths = [value[name].shape[axis] for value in values]  # type: ignore[index, union-attr]
            pointers[str(field.shape[axis])] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for axis_name, pointer in pointers.items():
        inputs[f"{axis_name}_ptr"] = torch.from_numpy(pointer)
        inputs[f"{axis_name}_row"] = torch.from_numpy(np.repeat(np.arange(len(values)), np.diff(pointer)))
    for name, field in spec.fields.items():
        arrays = [value[name] for value in values]  # type: ignore[index, union-attr]
        if field.index_of is not None:
            offsets = pointers[field.index_of][:-1]
            arrays = [np.asarray(array, np.int64) + offset for array, offset in zip(arrays, offsets, strict=True)]
        axis = field.ragged_axis
        joined = np.stack(arrays) if axis is None else np.concatenate(arrays, axis=axis)
        inputs[name] = torch.from_numpy(joined)
    return inputs


def collate(samples: Sequence[Sample], specs: Mapping[str, ModalitySpec], label_names: Sequence[str] = ()) -> Batch:
    """Collate samples into a `Batch` over the modalities of ``specs``."""
    present: dict[str, Tensor] = {}
    inputs: dict[str, Inputs] = {}
    for name, spec in specs.items():
        values = [sample.value(name) for sample in samples]
        present[name] = torch.tensor([value is not None for value in values], dtype=torch.bool)
        rows = [value for value in values if value is not None]
        if rows:
            inputs[name] = collate_modality(spec, rows)
    labels = [[sample.labels.get(name, float("nan")) for name in label_names] for sample in samples]
    return Batch(
        ids=[sample.id for sample in samples],
        present=present,
        inputs=inputs,
        labels=torch.tensor(labels, dtype=torch.float32).reshape(len(samples), len(label_names)),
        label_names=tuple(label_names),
        groups=torch.tensor([_group(sample) for sample in samples], dtype=torch.int64),
    )


def _group(sample: Sample) -> int:
    """Hash what a sample belongs to; an id can never collide with the name of a group."""
    key = f"group\0{sample.group}" if sample.group else f"id\0{sample.id}"
    return xxhash.xxh64_intdigest(key.encode()) - 2**63


def rows_of(batch: Batch, specs: Mapping[str, ModalitySpec], start: int, stop: int) -> Batch:
    """Return the rows ``start`` to ``stop`` of a batch as a batch of their own, equal to having collated them alone.

    Parameters
    ----------
    batch : Batch
        Collated over the modalities of ``specs``.
    specs : mapping of str to ModalitySpec
        Say which axes are ragged and which fields are indices.
    start, stop : int
        Rows, as in a slice.
    """
    part = slice(start, stop)
    inputs = {}
    for name, spec in specs.items():
        if name not in batch.inputs:
            continue
        first, last = (int(batch.present[name][:end].sum()) for end in (part.start, part.stop))
        if first < last:
            inputs[name] = _rows_of_modality(batch.inputs[name], spec, first, last)
    return Batch(
        ids=batch.ids[part],
        present={name: batch.present[name][part] for name in specs},
        inputs=inputs,
        labels=batch.labels[part],
        label_names=batch.label_names,
        groups=batch.groups[part],
        twin=None if batch.twin is None else rows_of(batch.twin, specs, start, stop),
    )


def _rows_of_modality(inputs: Inputs, spec: ModalitySpec, first: int, last: int) -> Inputs:
    if spec.kind == "text":
        return {"text": inputs["text"][first:last]}
    found: Inputs = {}
    bounds: dict[str, tuple[int, int]] = {}
    for name, value in inputs.items():
        if name.endswith("_ptr"):
            pointer = cast(Tensor, value)[first : last + 1]
            axis = name.removesuffix("_ptr")
            bounds[axis] = int(pointer[0]), int(pointer[-1])
            found[name] = pointer - pointer[0]
            found[f"{axis}_row"] = cast(Tensor, inputs[f"{axis}_row"])[slice(*bounds[axis])] - first
    for name, field in spec.fields.items():
        value, axis_at = cast(Tensor, inputs[name]), field.ragged_axis
        if axis_at is None:
            found[name] = value[first:last]
        else:
            begin, end = bounds[str(field.shape[axis_at])]
            found[name] = value.narrow(axis_at, begin, end - begin)
        if field.index_of is not None:
            found[name] = cast(Tensor, found[name]) - bounds[field.index_of][0]
    return found


def placeholder(spec: ModalitySpec) -> Inputs:
    """Return inputs of one dummy row: ragged axes of length 1, ones everywhere, indices 0.

    An encoder runs on it when a rank holds no row of the modality, so that all ranks build the same
    graph; its output is multiplied by zero.
    """
    if spec.kind == "text":
        return collate_modality(spec, ["."])
    arrays = {
        name: (np.zeros if field.index_of else np.ones)(
            [1 if isinstance(axis, str) else axis for axis in field.shape], dtype=field.dtype
        )
        for name, field in spec.fields.items()
    }
    return collate_modality(spec, [arrays])
