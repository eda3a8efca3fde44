"""The fusion contract: several encoded modalities of the same rows in, one out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from shards.plugins import Options, Registry


class FusionOptions(Options):
    """Base of a fusion's ``Config``.

    Attributes
    ----------
    inputs : tuple of str
        Modalities and other fusions that it joins; empty: all modalities. Fusions of fusions make a tree.
    """

    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Width:
    """What a fusion knows of an input before it sees any: its width D, and whether it has tokens or a vector only."""

    dim: int
    tokens: bool = False


class Fusion(nn.Module):
    """Base of the fusion plug-ins.

    A subclass sets ``self.dim`` and implements `fuse`. Called with encoded inputs over the SAME b rows, it returns
    one `Encoded` over these rows. What holds for every fusion (tested on each): what an absent row holds, NaN
    included, changes nothing; a row of which everything is absent gives a finite vector; rows are independent of
    each other; the order of the inputs does not matter beyond their own parameters.

    Parameters
    ----------
    config : FusionOptions
        The fusion's own ``Config``.
    inputs : mapping of str to Width
        Width of every input, by name.

    Attributes
    ----------
    reads_tokens : bool
        False where it looks at the vectors alone.
    """

    Config: ClassVar[type[FusionOptions]] = FusionOptions
    gives_tokens: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = True
    dim: int

    def __init__(self, config: Any, inputs: Mapping[str, Width]) -> None:
        super().__init__()
        self.config, self.inputs = config, dict(inputs)

    def forward(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Fuse b rows.

        Parameters
        ----------
        encoded : mapping of str to Encoded
            vector (b, D), tokens (b, T, D) and mask (b, T) or None, by input.
        present : mapping of str to Tensor
            (b,) bool; where False, the input's row is treated as zeros without any real token.
        """
        clean = {name: masked(encoded[name], present[name]) for name in self.inputs}
        return self.fuse(clean, {name: present[name] for name in self.inputs})

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Fuse inputs whose absent rows are zero and whose masks are False there."""
        raise NotImplementedError


def masked(encoded: Encoded, present: Tensor) -> Encoded:
    """Return ``encoded`` with zeros, and without real tokens, where ``present`` (b,) is False."""
    vector = encoded.vector.masked_fill(~present[:, None], 0.0)
    if encoded.tokens is None:
        return Encoded(vector)
    real = present[:, None].expand(encoded.tokens.shape[:2])
    if encoded.mask is not None:
        real = real & encoded.mask
    return Encoded(vector, encoded.tokens.masked_fill(~real[..., None], 0.0), real)


def token_view(encoded: Encoded, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return what fusions attend to, (b, 1 + T, D), and its mask (b, 1 + T): the vector, then the tokens if any.

    The vector may hold what no token does (a summary, a fusion's own join); left out, its part of an encoder or fusion
    would never learn.
    """
    vector, there = encoded.vector[:, None], present[:, None]
    if encoded.tokens is None:
        return vector, there
    real = there.expand(encoded.tokens.shape[:2]) if encoded.mask is None else encoded.mask
    return torch.cat([vector, encoded.tokens], dim=1), torch.cat([there, real], dim=1)


def any_present(present: Mapping[str, Tensor]) -> Tensor:
    """Say for each of b rows whether any input is there."""
    return torch.stack(list(present.values())).any(dim=0)


FUSIONS: Registry[type[Fusion]] = Registry(
    "fusion",
    {
        "concat": "pretrain.fusion.concat",
        "gated": "pretrain.fusion.gated",
        "cross_attention": "pretrain.fusion.cross_attention",
        "gmca": "pretrain.fusion.gmca",
        "attention_bottleneck": "pretrain.fusion.bottleneck",
        "token_transformer": "pretrain.fusion.token_transformer",
        "low_rank_tensor": "pretrain.fusion.tensor",
    },
)
