"""Bilinear transduction: values beyond the training range, from an anchor and the difference to it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from finetune.heads.base import HEADS
from finetune.heads.memory import RememberingHead, spread
from finetune.heads.scaling import Standardiser
from finetune.prediction import Prediction
from shards.plugins import Options

# how many distances between differences are held at a time, about 64 MB in float32
CHUNK = 1 << 24


@HEADS.register("bilinear_transduction")
class BilinearTransductionHead(RememberingHead):
    r"""Regression beyond the training range by :math:`h(x_a, x - x_a) = \langle f(x_a), g(x - x_a) \rangle`.

    After Netanyahu et al. (arXiv 2304.14329) and, for materials, Segal, Netanyahu et al. (MatEx). Training takes all
    pairs (a, b) of a batch and compares :math:`h(x_a, x_b - x_a)` with :math:`y_b`; ``ordered`` keeps those with
    :math:`y_b \ge y_a`, so that the model learns to go up. The anchor of a query is the training row a for which
    :math:`x - x_a` is nearest to a difference that was seen in training: both factors then stay within their training
    range where the query does not. The anchor's own label is not used.

    Notes
    -----
    The search costs anchors x differences x F multiplications a query. ``anchors`` and ``differences`` bound it; the
    published code keeps all n rows and 30 n differences.
    """

    class Config(Options):
        """Options of `BilinearTransductionHead`."""

        kind: Literal["bilinear_transduction"] = "bilinear_transduction"
        hidden: int = Field(256, gt=0, description="width of f and g")
        layers: int = Field(2, ge=0, description="hidden layers of f and g; 0: both are linear")
        dim: int = Field(32, gt=0, description="length of f(x_a) and g(x - x_a)")
        ordered: bool = Field(True, description="learn from pairs with y_b >= y_a only")
        anchors: int = Field(128, gt=0, description="training rows at most among which the anchor is sought")
        differences: int = Field(2048, gt=0, description="training differences at most (and 30 a row) that are kept")

    task = "regression"
    kept = ("anchors", "differences")
    anchors: Tensor
    differences: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, config: Config, width: int, targets: tuple[str, ...]) -> None:
        super().__init__(config, width, targets)
        outputs = config.dim * len(targets)
        self.of_anchor, self.of_difference = (_relu_mlp(width, config, outputs) for _ in range(2))
        self.scale = Standardiser(len(targets))
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("stretch", torch.ones(width))
        self.register_buffer("anchors", torch.zeros(0, width))
        self.register_buffer("differences", torch.zeros(0, width))

    def fit(self, targets: Tensor, features: Tensor | None = None) -> None:
        """Standardise, and keep anchors and differences of training rows; the same ones whenever it is called."""
        targets, features = self.known_rows(targets, features)
        self.scale.fit(targets)
        self.shift, self.stretch = spread(features)
        rows = self._standardised(features)
        generator = torch.Generator().manual_seed(0)
        count = min(30 * len(rows), self.config.differences)
        self.differences = self._differences(rows, self.scale(targets), count, generator)
        self.anchors = rows[torch.randperm(len(rows), generator=generator)[: self.config.anchors]].clone()

    def _differences(self, rows: Tensor, targets: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return differences (count, F) of random pairs of different rows, upwards if ``ordered``.

        Which way is up may differ between targets: it is that of their mean.
        """
        first = torch.randint(len(rows), (count,), generator=generator)
        second = (first + torch.randint(1, len(rows), (count,), generator=generator)) % len(rows)
        if self.config.ordered:
            level = targets.nanmean(dim=1)
            down = level[second] < level[first]
            first, second = torch.where(down, second, first), torch.where(down, first, second)
        return rows[second] - rows[first]

    def forward(self, features: Tensor) -> Tensor:
        """Return standardised predictions: in training (B, B, T), of row b (second) from anchor a; else (B, T)."""
        rows = self._standardised(features)
        if self.training:
            return self.between(rows[:, None], rows[None] - rows[:, None])
        anchors = self.anchors[self.anchor_of(features)]
        return self.between(anchors, rows - anchors)

    def between(self, anchors: Tensor, differences: Tensor) -> Tensor:
        """Return h (..., T) of anchors and differences (..., F), which broadcast."""
        factors = (self.of_anchor(anchors), self.of_difference(differences))
        f, g = (part.unflatten(-1, (len(self.targets), self.config.dim)) for part in factors)
        return (f * g).sum(-1)

    @torch.no_grad()
    def anchor_of(self, features: Tensor) -> Tensor:
        """Return the number of the anchor of each row of features (B, F)."""
        self.check_fitted(self.anchors)
        rows = self._standardised(features)
        # |x - a - d|^2 = |x - a|^2 - 2 (x - a) d + |d|^2, of which the largest part is a matrix product
        squares = self.differences.square().sum(-1)
        found = []
        for part in rows.split(max(1, CHUNK // (len(self.anchors) * len(self.differences)))):
            gaps = part[:, None] - self.anchors
            distances = squares - 2 * gaps @ self.differences.T
            found.append((distances.amin(-1) + gaps.square().sum(-1)).argmin(dim=1))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=rows.device)

    def compare(self, raw: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Return the mean absolute error: over the pairs of (B, B, T) that count, or over the rows of (B, T)."""
        targets = self.scale(targets)
        if raw.dim() == 2:
            return (raw - targets)[known].abs().mean()
        counts = known[:, None] & known[None]
        if self.config.ordered:
            counts = counts & (targets[None] >= targets[:, None])
        return (raw - targets[None])[counts].abs().mean()

    def predict(self, raw: Tensor) -> Prediction:
        """Return the predictions in the targets' units, from the raw outputs (B, T) of evaluation mode."""
        return Prediction(self.scale.inverse(raw))

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.shift) / self.stretch


def _relu_mlp(width: int, config: BilinearTransductionHead.Config, outputs: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(config.layers):
        modules += [nn.Linear(width, config.hidden), nn.ReLU()]
        width = config.hidden
    return nn.Sequential(*modules, nn.Linear(width, outputs))
