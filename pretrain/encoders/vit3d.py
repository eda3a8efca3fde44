"""Vision transformer over the patches of a periodic grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.base import ENCODERS
from pretrain.encoders.grid import GridEncoder, GridOptions
from pretrain.encoders.layers import Block
from shards.errors import ConfigError
from shards.schema import ModalitySpec


@ENCODERS.register("vit3d")
class ViT3D(GridEncoder):
    """Density on a (n, n, n) grid of fractional coordinates -> vector by a transformer over its patches.

    A vision transformer (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929) with cubes instead of squares: a convolution
    of size and stride ``patch`` makes a token of each cube, a code of its place is added, pre-norm blocks follow, and
    the mean over the tokens. ``position = "sincos"``: a linear map of sines and cosines of whole turns along the
    three axes, so that opposite faces of the cell are neighbours; ``"learned"``: one vector a place.

    The published ViT-S of 16 x 16 patches has ``{ kind = "vit3d", depth = 12, heads = 6, head_dim = 64,
    mlp_dim = 1536, dim = 384, position = "learned", summary = false }`` and reads out a class token.
    """

    class Config(GridOptions):
        """Options of `ViT3D`."""

        kind: Literal["vit3d"] = "vit3d"
        coarsen: int = Field(1, ge=1, description="average the grid by this factor first")
        patch: int = Field(8, ge=1, description="points along each axis of a patch, after coarsening")
        depth: int = Field(2, ge=0)
        heads: int = Field(4, ge=1)
        head_dim: int = Field(32, ge=1)
        mlp_dim: int = Field(256, ge=1)
        position: Literal["sincos", "learned"] = "sincos"

    turns: Tensor

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.side = side = patches_along(spec, self.field, config)
        self.embed = nn.Conv3d(1, config.dim, config.patch, config.patch)
        self.place: nn.Module
        if config.position == "sincos":
            self.register_buffer("turns", turns(side), persistent=False)
            self.place = nn.Linear(self.turns.shape[1], config.dim, bias=False)
        else:
            self.place = nn.Embedding(side**3, config.dim)
            nn.init.trunc_normal_(self.place.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.head_dim, config.mlp_dim, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.summary = self.build_summary(fitted)

    def places(self) -> Tensor:
        """Return the code of every patch's place (T, dim), the last axis fastest."""
        if self.config.position == "learned":
            return self.place(torch.arange(self.side**3, device=self.embed.weight.device))
        return self.place(self.turns.to(self.embed.weight.dtype))

    def tokens(self, grid: Tensor) -> Tensor:
        """Scaled grids (R, n, n, n) -> one token a patch (R, T, dim)."""
        x = self.embed(grid[:, None].to(self.embed.weight.dtype)).flatten(2).transpose(1, 2) + self.places()
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def patches_along(spec: ModalitySpec, field: str, config: ViT3D.Config) -> int:
    """Return the patches along each axis, or raise `ConfigError` where they do not fill the grid."""
    sides = {int(axis) for axis in spec.fields[field].shape}
    points = min(sides) // config.coarsen
    if len(sides) > 1 or points % config.patch or min(sides) % config.coarsen:
        raise ConfigError(
            f"patches of {config.patch}^3 do not fill the grid of modality '{spec.name}'",
            why=f"it has {spec.fields[field].shape} points, averaged by {config.coarsen}",
            do="choose a patch that divides them",
        )
    return points // config.patch


def turns(side: int) -> Tensor:
    """Sines and cosines of 1, 2, ... whole turns along each axis at the centres of side^3 patches: (side^3, F)."""
    angle = 2 * torch.pi * (torch.arange(side) + 0.5)[:, None] / side * torch.arange(1, max(side // 2, 1) + 1)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    along = torch.cartesian_prod(*[torch.arange(side)] * 3)
    return wave[along].flatten(1)
