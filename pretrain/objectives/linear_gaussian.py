"""A linear-Gaussian model of several vectors with one hidden cause, fitted by expectation maximisation.

The generative model of CalMRL (arXiv 2511.12034): it says what an absent modality's embedding would have been.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

LEAST_VARIANCE = 1e-8
# keeps matrices invertible where embeddings have collapsed
RIDGE = 1e-10
# size of the random part of the loadings at the start, in units of the vectors' coordinates
START = 0.01
# sums over fewer rows than this are forgotten; loadings below it, in units of the noise, are none
NOTHING = 1e-12


class LinearGaussian(nn.Module):
    r"""Model of M vectors of width D as noisy views of one cause; everything is a buffer in float64.

    .. math:: z^m = W^m b + \mu^m + e^m,\quad b \sim N(0, I_q),\quad e^m \sim N(0, (s^m)^2 I)

    Rows may lack any of their vectors. The E step is in closed form given those observed; the M step solves for W and
    mu jointly, from sums over the rows (Dempster 1977), and frees mean and covariance of b as well, which W and mu then
    take over (parameter-expanded EM, Liu, Rubin and Wu 1998): plain EM needs hundreds of sweeps to find the scale of W
    where noise is low. The sums decay by ``momentum`` with every batch, so that the model follows a stream whose
    distribution drifts (online EM, Cappé and Moulines 2009).

    W is identified up to a rotation of b: compare W W^T.

    Parameters
    ----------
    modalities, dim, latent : int
        M, D and q.
    momentum : float
        Factor of the earlier sums in `update`.

    Attributes
    ----------
    weight : Tensor
        (M, D, q).
    mean : Tensor
        (M, D).
    variance : Tensor
        (M,), of the noise of one coordinate.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor
    second: Tensor
    cross: Tensor
    square: Tensor
    rows: Tensor
    chance: Tensor

    def __init__(self, modalities: int, dim: int, latent: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        zeros = partial(torch.zeros, dtype=torch.float64)
        # the same start on every rank
        start = torch.randn(modalities, dim, latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("chance", start, persistent=False)
        self.register_buffer("weight", start.clone())
        self.register_buffer("mean", zeros(modalities, dim))
        self.register_buffer("variance", zeros(modalities) + 1.0)
        # sums over observed rows, with b1 = (b, 1): E[b1 b1^T], z E[b1]^T, |z|^2
        self.register_buffer("second", zeros(modalities, latent + 1, latent + 1))
        self.register_buffer("cross", zeros(modalities, dim, latent + 1))
        self.register_buffer("square", zeros(modalities))
        self.register_buffer("rows", zeros(1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model, but stay in float64: sums in half precision would be of no use."""

        def moved(tensor: Tensor) -> Tensor:
            after = fn(tensor)
            return after if after.dtype == tensor.dtype else tensor.to(after.device)

        return super()._apply(moved, recurse)

    @torch.no_grad()
    def posterior(self, z_NMD: Tensor, present_NM: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (N, q) and covariance (N, q, q) of the cause, given what is observed (equation of the E step)."""
        seen = present_NM.double()
        evidence = self._evidence(self._residual(z_NMD, present_NM))
        precision = self.weight.mT @ self.weight / self.variance[:, None, None]
        # the covariance depends on the set of observed vectors alone
        sets, which = torch.unique(seen, dim=0, return_inverse=True)
        identity = torch.eye(self.weight.shape[2], dtype=torch.float64, device=seen.device)
        covariance = torch.linalg.inv(identity + torch.einsum("sm,mij->sij", sets, precision))[which]
        return (covariance @ evidence[:, :, None])[:, :, 0], covariance

    @torch.no_grad()
    def impute(self, z_NMD: Tensor, present_NM: Tensor) -> Tensor:
        """Return the vectors (N, M, D) with what is expected, given those observed, in place of the absent ones."""
        cause, _ = self.posterior(z_NMD, present_NM)
        expected = torch.einsum("mdi,ni->nmd", self.weight, cause) + self.mean
        return torch.where(present_NM[:, :, None], z_NMD.double(), expected)

    @torch.no_grad()
    def log_likelihood(self, z_NMD: Tensor, present_NM: Tensor) -> Tensor:
        """Return the log-density (N,) of what is observed."""
        seen, dim = present_NM.double(), self.weight.shape[1]
        residual = self._residual(z_NMD, present_NM)
        cause, covariance = self.posterior(z_NMD, present_NM)
        # Woodbury: the cause explains a part of the residuals
        squares = seen * residual.square().sum(dim=2) / self.variance
        explained = (self._evidence(residual) * cause).sum(dim=1)
        logs = dim * (seen * (2 * torch.pi * self.variance).log()).sum(dim=1) - torch.logdet(covariance)
        return -0.5 * (squares.sum(dim=1) - explained + logs)

    @torch.no_grad()
    def update(self, z_NMD: Tensor, present_NM: Tensor) -> None:
        """Take in one batch of a stream, by a sweep with sums that forget; a modality starts where it is first seen.

        What is not finite is left out: the step that made it will be skipped, but the sums would never recover.
        """
        present_NM = present_NM & z_NMD.isfinite().all(dim=2)
        self._start(z_NMD, present_NM)
        self._sweep(z_NMD, present_NM, self.momentum)

    @torch.no_grad()
    def fit(self, z_NMD: Tensor, present_NM: Tensor, sweeps: int) -> list[float]:
        """Fit all rows at once, from a new start; returns the mean log-likelihood before each sweep and at the end."""
        for sums in (self.second, self.cross, self.square, self.rows):
            sums.zero_()
        self._start(z_NMD, present_NM)
        history = []
        for _ in range(sweeps):
            history.append(self.log_likelihood(z_NMD, present_NM).mean().item())
            self._sweep(z_NMD, present_NM, 0.0)
        return [*history, self.log_likelihood(z_NMD, present_NM).mean().item()]

    def _residual(self, z_NMD: Tensor, present_NM: Tensor) -> Tensor:
        """Return z - mu where observed, 0 elsewhere, whatever is there."""
        return torch.where(present_NM[:, :, None], z_NMD.double() - self.mean, 0.0)

    def _evidence(self, residual_NMD: Tensor) -> Tensor:
        """Return sum over m of W^T (z - mu) / s^2, (N, q)."""
        return torch.einsum("mdi,nmd->ni", self.weight / self.variance[:, None, None], residual_NMD)

    def _start(self, z_NMD: Tensor, present_NM: Tensor) -> None:
        """Start the modalities that are observed for the first time.

        Those of the first batch start together, from the principal components of all: EM that starts each by chance
        may end where two see the cause in mirror image. One that comes later starts without loadings: the first sweep
        finds them from the cause that the others tell.
        """
        seen = present_NM.double()
        count, dim = seen.sum(dim=0), z_NMD.shape[2]
        new = ~self._known() & (count > 0)
        if not new.any():
            return
        z = torch.where(present_NM[:, :, None], z_NMD.double(), 0.0)
        mean = z.sum(dim=0) / count.clamp(min=1)[:, None]
        variance = (z.square().sum(dim=(0, 2)) / (count.clamp(min=1) * dim)).clamp(min=LEAST_VARIANCE)
        self.mean.copy_(torch.where(new[:, None], mean, self.mean))
        self.variance.copy_(torch.where(new, variance, self.variance))
        loadings = torch.zeros_like(self.weight)
        if self.rows == 0:
            _, values, axes = torch.linalg.svd(self._residual(z, present_NM).flatten(1), full_matrices=False)
            kept = min(self.weight.shape[2], len(values))
            principal = (axes[:kept] * values[:kept, None] / len(z) ** 0.5).T.unflatten(0, self.mean.shape)
            # a column of zeros would stay one
            loadings = START * self.chance * variance.sqrt()[:, None, None]
            loadings[:, :, :kept] += principal
        self.weight.copy_(torch.where(new[:, None, None], loadings, self.weight))

    def _known(self) -> Tensor:
        """Say which modalities the sums know, (M,): not those never seen, or so long ago that nothing is left."""
        return self.second[:, -1, -1] > NOTHING

    def _sweep(self, z_NMD: Tensor, present_NM: Tensor, momentum: float) -> None:
        """Make an E step on the rows, add their sums to the decayed ones, and make the M step."""
        seen = present_NM.double()
        z = torch.where(present_NM[:, :, None], z_NMD.double(), 0.0)
        cause, covariance = self.posterior(z_NMD, present_NM)
        one = torch.cat([cause, torch.ones_like(cause[:, :1])], dim=1)
        second = one[:, :, None] * one[:, None, :] + nn.functional.pad(covariance, (0, 1, 0, 1))
        self.second.mul_(momentum).add_(torch.einsum("nm,nij->mij", seen, second))
        self.cross.mul_(momentum).add_(torch.einsum("nmd,ni->mdi", z, one))
        self.square.mul_(momentum).add_(z.square().sum(dim=(0, 2)))
        known = seen.any(dim=1).double()
        # in the coordinates of the cause that `_standardise` chose, the earlier rows have mean 0 and covariance 1
        earlier = momentum * self.rows * torch.eye(second.shape[1], dtype=torch.float64, device=z.device)
        self.rows.mul_(momentum).add_(known.sum())
        if self.rows > 0:
            self._standardise((earlier + torch.einsum("n,nij->ij", known, second)) / self.rows, self._maximise())
            self._revive()

    def _maximise(self) -> Tensor:
        """Solve for the noise, and return W and mu side by side, (M, D, q + 1)."""
        count, dim = self.second[:, -1, -1], self.mean.shape[1]
        known = self._known()
        identity = torch.eye(self.second.shape[1], dtype=torch.float64, device=count.device)
        second = torch.where(known[:, None, None], self.second, identity) + RIDGE * count[:, None, None] * identity
        solved = torch.linalg.solve(second, self.cross.mT).mT
        variance = (self.square - (solved * self.cross).sum(dim=(1, 2))) / (count.clamp(min=NOTHING) * dim)
        self.variance.copy_(torch.where(known, variance.clamp(min=LEAST_VARIANCE), self.variance))
        now = torch.cat([self.weight, self.mean[:, :, None]], dim=2)
        return torch.where(known[:, None, None], solved, now)

    def _standardise(self, moments: Tensor, solved: Tensor) -> None:
        """Take W and mu over into coordinates b = L b' + alpha in which the cause has mean 0 and covariance 1.

        Parameters
        ----------
        moments : Tensor
            (q + 1, q + 1) mean of E[b1 b1^T] over the rows.
        solved : Tensor
            (M, D, q + 1) W and mu in the coordinates of b.
        """
        change, alpha = torch.zeros_like(moments), moments[:-1, -1]
        # any root will do; unlike Cholesky's, this one exists where rounding leaves a negative eigenvalue
        values, axes = torch.linalg.eigh(moments[:-1, :-1] - alpha[:, None] * alpha)
        change[:-1, :-1] = (axes * values.clamp(min=RIDGE).sqrt()) @ axes.T
        change[:, -1] = moments[:, -1]
        back = torch.linalg.inv(change)
        self.second.copy_(back @ self.second @ back.T)
        self.cross.copy_(self.cross @ back.T)
        solved = solved @ change
        self.weight.copy_(solved[:, :, :-1])
        self.mean.copy_(solved[:, :, -1])

    def _revive(self) -> None:
        """Give loadings of chance to a model that has none: zeros would stay, whatever comes after a collapse."""
        noise = self.variance.sqrt()[:, None, None]
        none = self.weight.abs().amax() < NOTHING * noise.amax()
        self.weight.copy_(torch.where(none, START * self.chance * noise, self.weight))
