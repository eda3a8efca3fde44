"""From a batch to features: pretrained encoders, and what joins their outputs over the modalities that a row has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from pretrain.encoders.base import Encoded, Encoder
from pretrain.fusion.base import FUSIONS, Fusion, FusionOptions, Width, masked
from pretrain.model import at_least_one_row, spread_rows
from shards.batch import Batch, move, placeholder
from shards.errors import ConfigError

Widths = Mapping[str, Width]
MakeJoin = Callable[[Widths], Fusion]


class Encodings(NamedTuple):
    """What the encoders made of the same b rows.

    Attributes
    ----------
    encoded : dict of str to Encoded
        vector (b, D), tokens (b, T, D) and their mask (b, T) where the join reads tokens, by modality.
    present : dict of str to Tensor
        (b,) bool; where False, what ``encoded`` holds there has no meaning.
    """

    encoded: dict[str, Encoded]
    present: dict[str, Tensor]


class SideBySide(Fusion):
    """The vectors of all inputs side by side, without any map; a learned vector stands in for an absent one."""

    reads_tokens: ClassVar[bool] = False

    def __init__(self, inputs: Widths) -> None:
        super().__init__(FusionOptions(kind="side_by_side"), inputs)
        self.missing = nn.ParameterDict({name: nn.Parameter(torch.zeros(width.dim)) for name, width in inputs.items()})
        self.dim = sum(width.dim for width in inputs.values())

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Join the vectors."""
        parts = [
            torch.where(present[name][:, None], encoded[name].vector, self.missing[name].to(encoded[name].vector))
            for name in self.inputs
        ]
        return Encoded(torch.cat(parts, dim=1))


class Featurizer(nn.Module):
    """Encoders and a join.

    Parameters
    ----------
    encoders : mapping of str to Encoder
        Modality to its encoder.
    join : callable, optional
        From the encoders' widths to the fusion over them; by default `SideBySide`.
    """

    def __init__(self, encoders: Mapping[str, Encoder], join: MakeJoin = SideBySide) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.specs = {name: encoder.spec for name, encoder in encoders.items()}
        self.join = join({name: Width(encoder.dim, encoder.gives_tokens) for name, encoder in encoders.items()})
        self.width = self.join.dim
        for encoder in encoders.values():
            encoder.tokens_wanted = self.join.reads_tokens

    def encode(self, batch: Batch) -> Encodings:
        """Encode the present rows and place them among all, at least one.

        A modality without any row is encoded from a placeholder: all ranks must build the same graph; see
        `pretrain.model`.
        """
        encoded, present = {}, {}
        for name, encoder in self.encoders.items():
            inputs = batch.inputs.get(name) or move(placeholder(self.specs[name]), batch.present[name].device)
            outputs = cast(Encoder, encoder)(inputs)
            encoded[name] = spread_rows(outputs if self.join.reads_tokens else Encoded(outputs.vector), batch, name)
            present[name] = at_least_one_row(batch.present[name])
        return Encodings(encoded, present)

    def forward(self, inputs: Batch | Encodings) -> Tensor:
        """Return features (B, F) of a batch, or of what the encoders made of it before."""
        if isinstance(inputs, Batch):
            return self.join(*self.encode(inputs)).vector[: len(inputs.ids)]
        return self.join(*inputs).vector

    @property
    def reads_tokens(self) -> bool:
        """Whether the join looks at tokens, beside vectors."""
        return self.join.reads_tokens

    def explained(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return features (B, F) and what `importance` says of the same rows."""
        encodings, rows = self.encode(batch), len(batch.ids)
        shares = self.importance(encodings)
        return self(encodings)[:rows], None if shares is None else shares[:rows]

    def importance(self, encodings: Encodings) -> Tensor | None:
        """Return the share (b, M) of every modality in the join, None where it has no weights.

        The rows sum to one over the modalities that are present.
        """
        clean = {name: masked(part, encodings.present[name]) for name, part in encodings.encoded.items()}
        return importance(self.join, clean, encodings.present)


def fusion_join(table: Mapping[str, Any]) -> MakeJoin:
    """Return the maker of a fusion of `pretrain.fusion` from its table, ``{kind = "gated", dim = 64}``."""
    options = FUSIONS.options(table)

    def make(widths: Widths) -> Fusion:
        if options.inputs and set(options.inputs) != set(widths):
            raise ConfigError(
                f"the fusion joins {list(options.inputs)}, the row has {list(widths)}",
                where="rows.*.fusion.inputs",
                do="leave 'inputs' out: it joins all modalities of the row",
            )
        return FUSIONS.get(options.kind)(options, widths)

    return make


def importance(join: Fusion, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Tensor | None:
    """Return how a join weighs its inputs (b, M), None where it has no weights.

    A gated fusion's attention, or its gates, of which the mean over the entries of a vector counts, as shares.
    """
    from pretrain.fusion.gated import Gated

    if isinstance(join, Gated):
        if join.form == "attention":
            return join.weights(encoded, present)
        weights = join.gated(encoded, present)[0].mean(dim=2)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return join.importance(encoded, present) if isinstance(join, Weighing) else None


class Weighing(Fusion):
    """Base of the joins of this package that say how they weigh their inputs."""

    def importance(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Tensor | None:
        """Return (b, M)."""
        raise NotImplementedError
