"""Tensor-valued properties: elastic and second-rank tensors, with their symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from finetune.heads.base import HEADS, Head, MlpOptions, mlp
from finetune.heads.symmetry import PointGroup, mandel_weights, point_group, symmetrise
from finetune.prediction import Prediction
from shards.errors import ConfigError

# rows and columns of the symmetric matrix that the targets are: C11, C12, .., C16, C22, .., C66
FOURTH = torch.triu_indices(6, 6)
# of a second-rank tensor in Voigt's order xx, yy, zz, yz, xz, xy
SECOND = torch.tensor([[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
# smallest diagonal element of a Cholesky factor, of tensors of a mean square of one
LEAST = 1e-3


@HEADS.register("tensor")
class TensorHead(Head):
    r"""A symmetric tensor from T = 21 targets (an elastic tensor) or T = 6 (a second-rank tensor).

    The 21 are the upper triangle of Voigt's 6 x 6 stiffness, C11, C12, .., C16, C22, .., C66: the minor and the major
    symmetry hold by construction. The 6 are xx, yy, zz, yz, xz, xy. One scale serves all components, so that ``norm =
    "mandel"`` makes the loss that of the tensor's own Frobenius norm, which does not depend on how the crystal lies;
    the plain sum over Voigt's components (``voigt``) does.
    """

    start: Tensor
    scale: Tensor
    weights: Tensor
    rotations: Tensor

    class Config(MlpOptions):
        """Options of `TensorHead`."""

        kind: Literal["tensor"] = "tensor"
        positive_definite: bool = Field(False, description="L L^T: a crystal that is mechanically stable")
        norm: Literal["mandel", "voigt"] = "mandel"
        point_group: PointGroup = Field(
            "1", description="rotations of the crystal class of ALL materials, in the standard setting: '432' for m-3m"
        )

    task = "regression"

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        if len(targets) not in (21, 6):
            raise ConfigError(
                f"a tensor head has 21 targets (C11, C12, .., C66) or 6 (xx, yy, zz, yz, xz, xy), not {len(targets)}",
                where="head",
                do="name a label of shape (6, 6) or (3, 3), or list every component as a target, in this order",
            )
        self.fourth = len(targets) == 21
        self.row, self.column = FOURTH if self.fourth else SECOND
        self.size = 6 if self.fourth else 3
        self.layers = mlp(width, config, len(targets))
        weights = mandel_weights(4)[tuple(FOURTH)] if self.fourth else mandel_weights(2)
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("rotations", point_group(config.point_group).float(), persistent=False)
        self.register_buffer("start", torch.zeros(len(targets)))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def parts_of(cls, shape: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Return the upper triangle of (6, 6), of (3, 3) in Voigt's order, or what is listed already."""
        if shape in ((6, 6), (3, 3)):
            rows, columns = FOURTH if shape == (6, 6) else SECOND
            return list(zip(rows.tolist(), columns.tolist(), strict=True))
        if shape not in ((21,), (6,)):
            raise ConfigError(
                f"a label of shape {shape} is no tensor that this head predicts",
                where="target",
                do="give (6, 6) or the 21 components of its upper triangle, (3, 3) or 6",
            )
        return super().parts_of(shape)

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Start from the mean tensor, in units of the root mean square deviation from it (``scale``).

        For a ``positive_definite`` head both are those of the tensors themselves.
        """
        known = targets[~targets.isnan().any(dim=1)].double()
        if not len(known):
            return
        mean = known.mean(dim=0)
        spread = known if self.config.positive_definite else known - mean
        rms = (spread * self.weights).square().mean().sqrt()
        self.scale.copy_(rms if rms > 0 else torch.ones(()))
        if not self.config.positive_definite:
            self.start.copy_(mean / self.scale)
            return
        factor, info = torch.linalg.cholesky_ex(self.matrix(mean / self.scale))
        # a mean that is not positive definite is no place to start from
        if not info:
            corner = self._lower(factor)
            diagonal = (corner - LEAST).clamp_min(LEAST)
            # the inverse of softplus
            inverse = diagonal + torch.log(-torch.expm1(-diagonal))
            self.start.copy_(torch.where(self.row == self.column, inverse, corner))

    def forward(self, features: Tensor) -> Tensor:
        """Return the components (B, T), Voigt's, divided by ``scale``."""
        free = self.layers(features) + self.start
        if self.config.positive_definite:
            diagonal = (self.row == self.column).to(free.device)
            factor = torch.where(diagonal, F.softplus(free) + LEAST, free)
            lower = free.new_zeros(len(free), self.size, self.size)
            lower[:, self.column, self.row] = factor
            free = self.components(lower @ lower.mT)
        return free if len(self.rotations) == 1 else self._symmetric(free)

    def matrix(self, components: Tensor) -> Tensor:
        """Return the symmetric matrix (..., 6, 6), or (..., 3, 3), of which (..., T) are the components."""
        matrix = components.new_zeros(*components.shape[:-1], self.size, self.size)
        matrix[..., self.row, self.column] = components
        matrix[..., self.column, self.row] = components
        return matrix

    def components(self, matrix: Tensor) -> Tensor:
        """Return the components (..., T) of a symmetric matrix."""
        return matrix[..., self.row, self.column]

    def _lower(self, factor: Tensor) -> Tensor:
        return factor[..., self.column, self.row]

    def _symmetric(self, components: Tensor) -> Tensor:
        """Project onto what the crystal class leaves unchanged; a mean over rotations keeps a tensor definite."""
        if not self.fourth:
            return symmetrise(components * self.weights, self.rotations, rank=2) / self.weights
        weights = self.matrix(self.weights)
        return self.components(symmetrise(self.matrix(components) * weights, self.rotations) / weights)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the squared norm of the error in units of ``scale``, a component."""
        error = raw - targets / self.scale
        if self.config.norm == "mandel":
            error = error * self.weights
        if self.fourth:
            # a component off the diagonal stands for two of the matrix
            error = error * torch.where(self.row == self.column, 1.0, 2**0.5).to(error)
        return error[known].square().mean()

    def predict(self, raw: Tensor) -> Prediction:
        """Return the components in the targets' unit."""
        return Prediction(raw * self.scale)
