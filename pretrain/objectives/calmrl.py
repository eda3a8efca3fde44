"""CalMRL: absent embeddings are completed by a calibrated model, then all are aligned by singular values (PMRL).

arXiv 2511.12034 (ICML 2026).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Logs
from pretrain.objectives.linear_gaussian import LinearGaussian
from pretrain.objectives.multiway import Multiway, MultiwayOptions, of_rank, positions, summed, touched
from pretrain.objectives.temperature import TemperatureConfig
from shards.errors import ConfigError

# of squared singular values: under their root, and where two are (nearly) equal
EPSILON = 1e-6


@OBJECTIVES.register("calmrl")
class CalMrl(Multiway):
    r"""Align the embeddings of a sample with their leading direction, absent ones completed.

    .. math:: L = \mathrm{mean}_i\big[ -\log\mathrm{softmax}(\lambda / \tau)_1 \big]
              + \beta\,\mathrm{mean}_i\big[ -\log\mathrm{softmax}_j(s\,u_i^T u_j)_i \big]

    with the singular values lambda of the D x M matrix of a sample's unit vectors, and its leading left singular
    vector u, on the side of the vectors' sum. The second term keeps the samples apart.

    A `LinearGaussian` model of the unit vectors is fitted to the stream of training batches by one sweep of online EM
    a step, in buffers, from the global batch. Once it has seen ``warmup_steps`` of them, it puts what it expects in
    place of absent embeddings: alignment over the observed ones alone would pull towards another direction than that
    of all (the anchor shift). What it expects is a constant: gradients reach the observed embeddings alone. A batch
    is completed by the model of the batches before it.

    Rows with a single observed embedding are left out, they hold nothing to align. The binary matching head of the
    paper (weight 0.1) is not part of this.
    """

    class Config(MultiwayOptions):
        """Options of `CalMrl`.

        Attributes
        ----------
        latent : int
            Width q of the model's hidden cause; at most that of the embeddings.
        momentum : float
            Factor by which the model's sums decay a step.
        warmup_steps : int
            Steps over observed embeddings alone, while the model is fitted.
        complete : bool
            False: never complete; this is PMRL on the observed embeddings.
        tau : float
            Temperature of the softmax over singular values.
        instance_weight : float
            Factor beta of the term that keeps samples apart.
        temperature : TemperatureConfig
            Of that term.
        """

        kind: Literal["calmrl"] = "calmrl"
        chunk: int = 512
        latent: int = Field(16, gt=0)
        momentum: float = Field(0.99, ge=0, lt=1)
        warmup_steps: int = Field(200, ge=0)
        complete: bool = True
        tau: float = Field(0.1, gt=0)
        instance_weight: float = Field(1.0, ge=0)
        temperature: TemperatureConfig = TemperatureConfig()

    steps: Tensor
    model: LinearGaussian

    def __init__(
        self, config: Config, modalities: Sequence[str], fusions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(config, modalities, fusions)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def sized(self, dim: int) -> None:
        """Make the model."""
        latent = self.config.latent
        if latent > dim:
            raise ConfigError(
                f"a hidden cause of width {latent} is wider than the embeddings, {dim}",
                where="objective.latent",
                do=f"--set objective.latent={dim}, or less",
            )
        if self.config.complete:
            self.model = LinearGaussian(len(self.inputs), dim, latent, self.config.momentum)

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, Logs]:
        """Return this rank's share of the loss, and the shares of its terms and the temperature to log."""
        scale = self.temperature()
        z, present = self._stacked(batch)
        rows = positions(present.sum(dim=1) >= 2)
        whole, there = self.completed(z[rows], present[rows])
        values, u = leading(whole, there)
        mine, share = of_rank(rows, batch.local), batch.world / max(1, len(rows))
        aligned = alignment(values, there, self.config.tau)[mine].sum() * share
        apart = summed(lambda chosen: instance(u, chosen, scale), mine, self.config.chunk) * share
        if self.config.complete and self.training:
            self.model.update(z.detach(), present)
            self.steps += 1
        logs = {"loss/alignment": aligned.detach(), "loss/instance": apart.detach()}
        if self.config.complete:
            logs["model/noise"] = self.model.variance.mean().sqrt().float()
        total = aligned + self.config.instance_weight * apart + touched(z, scale)
        return total, {**logs, "temperature": 1 / scale.detach()[0]}

    def completed(self, z_NMD: Tensor, present_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (N, M, D) with absent ones completed if it is time to, and which ones count (N, M)."""
        if not self.config.complete or int(self.steps) < max(1, self.config.warmup_steps):
            return z_NMD, present_NM
        expected = F.normalize(self.model.impute(z_NMD.detach(), present_NM).float(), dim=2)
        return torch.where(present_NM[:, :, None], z_NMD, expected), torch.ones_like(present_NM)

    def _stacked(self, batch: GlobalBatch) -> tuple[Tensor, Tensor]:
        """Return the unit vectors (B, M, D), zero where absent, and presence (B, M)."""
        present = torch.stack([batch.present[name] for name in self.inputs], dim=1)
        z = torch.stack([batch.z[name] for name in self.inputs], dim=1).float()
        return F.normalize(z.masked_fill(~present[:, :, None], 0.0), dim=2), present


def leading(vectors_NMD: Tensor, there_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values (N, M), ascending, and the leading direction (N, D) of each set of vectors.

    Absent vectors are zero; they give the smallest values, as many as they are.

    They come from the M x M Gram matrix G = V L V^T. To first order in a change of G, an eigenvalue changes by
    v^T dG v, and the leading eigenvector by the sum of v_j (v_j^T dG v_1) / (l_1 - l_j): this is what is
    differentiated, with the quotient damped where the two values meet and the direction is not defined.

    The sign of a direction is that of its product with the sum of the vectors, of which every next one counts half:
    of two vectors that point apart, the plain sum is at right angles to the direction.
    """
    vectors = vectors_NMD * there_NM[:, :, None]
    gram = (vectors @ vectors.mT).double()
    with torch.no_grad():
        # what is not finite makes the loss so, which is for the guards to see; the decomposition would raise
        finite = gram.isfinite().all(dim=(1, 2), keepdim=True)
        counts = 0.5 ** torch.arange(gram.shape[1], dtype=gram.dtype, device=gram.device)
        fixed, basis = torch.linalg.eigh(torch.where(finite, gram, counts.diag()))
        sign = torch.where((basis[:, :, -1] * counts).sum(dim=1) < 0, -1.0, 1.0)
        basis = basis * sign[:, None, None]
        gap = fixed[:, -1:] - fixed
        damped = gap / (gap.square() + EPSILON)
    squares = torch.einsum("nki,nkl,nli->ni", basis, gram, basis)
    change = (basis.mT @ (gram - gram.detach()) @ basis[:, :, -1:])[:, :, 0]
    first = basis[:, :, -1] + (basis @ (damped * change)[:, :, None])[:, :, 0]
    direction = torch.einsum("nk,nkd->nd", first, vectors.double())
    values = (squares.clamp(min=0) + EPSILON).sqrt()
    return values.to(vectors.dtype), F.normalize(direction, dim=1).to(vectors.dtype)


def alignment(values_NM: Tensor, there_NM: Tensor, tau: float) -> Tensor:
    """Return minus the log of the leading singular value's share (N,); near 0 where the vectors are parallel."""
    absent = (~there_NM).sum(dim=1, keepdim=True)
    smallest = torch.arange(values_NM.shape[1], device=absent.device) < absent
    logits = (values_NM / tau).masked_fill(smallest, -torch.inf)
    return logits.logsumexp(dim=1) - logits[:, -1]


def instance(u_ND: Tensor, chosen: Tensor, scale: Tensor) -> Tensor:
    """Sum the cross entropies by which the chosen rows tell their own direction from those of all rows."""
    return F.cross_entropy(scale * (u_ND[chosen] @ u_ND.T), chosen, reduction="sum")
