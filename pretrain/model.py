"""The pretraining model: encoders, fusions and projections, and the objective over the global batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.config import Recipe
from pretrain.encoders.base import Encoded, Encoder
from pretrain.fusion.base import Fusion, any_present
from pretrain.names import parsed
from pretrain.parts import build_encoder, build_fusions, build_projections, refuse_unread
from pretrain.spans import span
from shards.batch import Batch, Inputs, move, placeholder
from shards.schema import ModalitySpec


class MultimodalModel(nn.Module):
    """Encoders, fusions, projections, and the objective that says which embeddings it wants.

    Parameters
    ----------
    recipe : Recipe
        Says which encoder reads which modality, the fusions, and the objective.
    specs : mapping of str to ModalitySpec
        The modalities' specs as stored, from the data set or from an export.
    fitted : mapping
        What the encoders' `fit` returned, by modality.
    autocast : torch.dtype, optional
        Encoders, fusions and projections run under autocast to this type; the objective stays in float32.

    Attributes
    ----------
    frozen : tuple of Module
        Parts that stay in evaluation mode (`pretrain.freezing`).
    checkpointed : bool
        Keep no activations within an encoder, compute them again in the backward pass.
    lr_scales : mapping of Parameter to float
        Factors of the learning rate where they are not 1.
    """

    frozen: tuple[nn.Module, ...] = ()
    checkpointed: bool = False
    lr_scales: Mapping[nn.Parameter, float] = {}

    def __init__(
        self,
        recipe: Recipe,
        specs: Mapping[str, ModalitySpec],
        fitted: Mapping[str, Mapping[str, Any]],
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.specs = {name: specs[name] for name in recipe.modalities}
        self.autocast = autocast
        self.joined = recipe.joined()
        encoders = {name: build_encoder(recipe, spec, fitted.get(name, {})) for name, spec in self.specs.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.fusions = nn.ModuleDict(build_fusions(recipe, encoders))
        self.objective = recipe.build_objective()
        self.names = self.objective.names
        bases = list(dict.fromkeys(parsed(name).base for name in self.names))
        refuse_unread(recipe, bases)
        widths = {
            base: cast(Any, self.encoders[base] if base in encoders else self.fusions[base]).dim for base in bases
        }
        self.projections = nn.ModuleDict(build_projections(widths, recipe.projection))

    @property
    def views(self) -> int:
        """How many augmented views of each sample the objective compares, 1 or 2."""
        return 1 + max(parsed(name).view for name in self.names)

    def train(self, mode: bool = True) -> MultimodalModel:
        """Set training or evaluation mode; frozen parts stay in the latter."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def embed(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the projected embeddings (R, D) of R present rows of one modality, not normalised.

        Where the objective reads a modality through a fusion only, what the fusion makes of it alone.
        """
        with self._autocast():
            encoded = self.encoders[modality](inputs)
            if modality in self.projections:
                return self.projections[modality](encoded.vector)
            rows, device = len(encoded.vector), encoded.vector.device
            present = {name: torch.full((rows,), name == modality, device=device) for name in self.specs}
            others = {name: self._nothing(name, rows, encoded.vector) for name in self.specs if name != modality}
            fusion = self.fusion_of(modality)
            joint = self._fused(fusion, {modality: encoded, **others}, present, {})
            return self.projections[fusion](joint.vector)

    def fusion_of(self, modality: str) -> str:
        """Return the fusion through which the objective reads a modality: one that sees it alone, else the first."""
        names = [name for name in map(parsed, self.names) if modality in self.joined.get(name.base, ())]
        return next((name.base for name in names if name.only == modality), names[0].base)

    def encode(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the embeddings (b, D) of the first view, and their presence (b,), by name."""
        return self._view(batch, [name for name in self.names if not parsed(name).view])

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what the objective wants of this rank's part of a batch: embeddings (b, D) and presence (b,).

        Rows where an embedding is absent are zero. Every encoder and fusion runs, in the same order on every rank, on
        at least one row: where the local batch has none, on a placeholder whose result is multiplied by zero.
        Otherwise a rank would miss a part of the graph and ZeRO would hang or silently mix up gradients.
        """
        z, present = self.encode(batch)
        if self.views == 2:
            assert batch.twin is not None, "the objective compares two views, the batch has one"
            more = [name for name in self.names if parsed(name).view]
            again, also = self._view(batch.twin, more)
            z, present = {**z, **again}, {**present, **also}
        return {name: z[name] for name in self.names}, {name: present[name] for name in self.names}

    def _view(self, batch: Batch, names: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rows = len(batch.ids)
        encoded: dict[str, Encoded] = {}
        spread: dict[str, Encoded] = {}
        fused: dict[str, dict[str, Encoded]] = {}
        with self._autocast():
            for name in self.specs:
                with span(f"encode/{name}"):
                    encoded[name] = self._encoded(name, batch)
            z, presence = {}, {}
            for name in names:
                base, only, _ = parsed(name)
                if base in self.specs:
                    presence[name] = batch.present[base]
                    z[name] = _placed(self.projections[base](encoded[base].vector).float(), batch, base)
                    continue
                # one row at least, as for the encoders
                present = {m: at_least_one_row(mask & (only in ("", m))) for m, mask in batch.present.items()}
                spread = spread or {m: spread_rows(encoded[m], batch, m) for m in self.specs}
                with span(f"fuse/{base}"):
                    joint = self._fused(base, spread, present, fused.setdefault(only, {}))
                whole = self.projections[base](joint.vector).float()
                presence[name] = self._seen(base, present)[:rows]
                z[name] = whole[:rows].masked_fill(~presence[name][:, None], 0.0)
        return z, presence

    def _encoded(self, name: str, batch: Batch) -> Encoded:
        """Encode the present rows, or a placeholder where there are none."""
        encoder = cast(Encoder, self.encoders[name])
        if name in batch.inputs:
            inputs = batch.inputs[name]
        else:
            inputs = move(placeholder(encoder.spec), batch.present[name].device)
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(encoder, inputs, use_reentrant=False)
        return encoder(inputs)

    def _fused(
        self, name: str, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor], done: dict[str, Encoded]
    ) -> Encoded:
        """Run a fusion after the fusions that it joins; each runs once."""
        if name not in done:
            parts = cast(Fusion, self.fusions[name]).inputs
            inputs = {
                part: encoded[part] if part in self.specs else self._fused(part, encoded, present, done)
                for part in parts
            }
            done[name] = self.fusions[name](inputs, {part: self._seen(part, present) for part in parts})
        return done[name]

    def _seen(self, name: str, present: Mapping[str, Tensor]) -> Tensor:
        """Say where a modality, or anything that a fusion joins, is present."""
        if name in self.specs:
            return present[name]
        return any_present({part: self._seen(part, present) for part in cast(Fusion, self.fusions[name]).inputs})

    def _nothing(self, name: str, rows: int, like: Tensor) -> Encoded:
        encoder = cast(Encoder, self.encoders[name])
        vector = like.new_zeros(rows, encoder.dim)
        return (
            Encoded(vector, vector[:, None], vector.new_zeros(rows, 1).bool())
            if encoder.gives_tokens
            else Encoded(vector)
        )

    def _autocast(self) -> torch.autocast:
        device_type = next(self.parameters()).device.type
        return torch.autocast(device_type, dtype=self.autocast, enabled=self.autocast is not None)


def _placed(vectors: Tensor, batch: Batch, name: str) -> Tensor:
    """Place the vectors of the present rows in (b, D); those of a placeholder nowhere."""
    mask = batch.present[name]
    empty = vectors.new_zeros(len(mask), *vectors.shape[1:])
    if name not in batch.inputs:
        return empty + 0.0 * vectors.sum()
    return empty.index_copy(0, mask.nonzero().squeeze(1), vectors)


def at_least_one_row(mask: Tensor) -> Tensor:
    """Return a mask (b,), or one row that is absent where b is 0: every rank must build the same graph."""
    return mask if len(mask) else mask.new_zeros(1)


def spread_rows(encoded: Encoded, batch: Batch, name: str) -> Encoded:
    """Place the encoded present rows among all rows of the batch, at least one; those of a placeholder nowhere.

    A placeholder has tokens where the encoder gives any, none of them real: whether a fusion reads vectors or tokens,
    it reaches the same parameters on every rank.
    """
    present = at_least_one_row(batch.present[name])
    index = present.nonzero().squeeze(1)

    def placed(values: Tensor) -> Tensor:
        empty = values.new_zeros(len(present), *values.shape[1:])
        if name in batch.inputs:
            return empty.index_copy(0, index, values)
        return empty if values.dtype == torch.bool else empty + 0.0 * values.sum()

    if encoded.tokens is None:
        return Encoded(placed(encoded.vector))
    real = encoded.mask if encoded.mask is not None else encoded.tokens.new_ones(encoded.tokens.shape[:2]).bool()
    return Encoded(placed(encoded.vector), placed(encoded.tokens), placed(real))
