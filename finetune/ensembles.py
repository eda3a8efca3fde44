"""Several predictions of the same rows made one: ensembles, dropout that stays on, several records of one sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune.prediction import Prediction
from shards.batch import Batch
from shards.errors import ConfigError
from shards.schema import Sample, Strict

if TYPE_CHECKING:
    from finetune.featurizer import Featurizer
    from finetune.heads.base import Head
    from finetune.loading import PropertyModel
    from finetune.predictor import Predictor

How = Literal["mean", "median"]
# of the row by which non-negative least squares learns that weights sum to one
SUM_WEIGHT = 1e4
# before the names of the first member's weights
FIRST = "members.0."


class EnsembleConfig(Strict):
    """The ``[ensemble]`` of a recipe: all seeds (of all folds) of the best row are registered, as one predictor.

    Attributes
    ----------
    how : str
        ``mean`` or ``median`` of the members; see `combine`.
    """

    how: How = "mean"


class Spread(NamedTuple):
    """Where the uncertainty of B predictions of T targets comes from, (B, T) each, in the targets' units.

    Attributes
    ----------
    aleatoric : Tensor
        Root of the mean of the members' variances: noise that no further member removes; 0 where they give none.
    epistemic : Tensor
        Standard deviation between the members: what they do not know.
    total : Tensor
        Root of the sum of the squares (Lakshminarayanan et al., NeurIPS 2017).
    """

    aleatoric: Tensor
    epistemic: Tensor
    total: Tensor


def combine(members: Sequence[Prediction], how: How = "mean", weights: Tensor | None = None) -> Prediction:
    """Return the prediction of an ensemble with its total standard deviation.

    Parameters
    ----------
    members : sequence of Prediction
        K of the same rows, not calibrated. Of classes the probabilities are combined.
    how : str
        Mean (which minimises the squared error) or median of the members.
    weights : Tensor, optional
        (K, T) that sum to one over K, see `fit_weights`; for the mean only.
    """
    if not members:
        raise ConfigError("an ensemble has no members", do="give at least one")
    if weights is not None and how == "median":
        raise ConfigError("a median takes no weights", do="how='mean'")
    shares = _shares(members, weights)
    values = torch.stack([member.value for member in members])
    probabilities = None
    if members[0].probabilities is not None:
        stacked = torch.stack([member.probabilities for member in members if member.probabilities is not None])
        probabilities = stacked.median(0).values if how == "median" else (shares[:, :, :1] * stacked).sum(0)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
        value = probabilities.argmax(1, keepdim=True).to(values.dtype)
        return Prediction(value, probabilities=probabilities)
    # the mean of the two in the middle where K is even
    value = values.quantile(0.5, dim=0) if how == "median" else (shares * values).sum(0)
    return Prediction(value, std=spread(members, weights).total)


def spread(members: Sequence[Prediction], weights: Tensor | None = None) -> Spread:
    """Return the standard deviations of an ensemble of numbers, about its (weighted) mean."""
    shares = _shares(members, weights)
    values = torch.stack([member.value for member in members])
    noise = [torch.zeros_like(member.value) if member.std is None else member.std.square() for member in members]
    aleatoric = (shares * torch.stack(noise)).sum(0)
    mean = (shares * values).sum(0)
    epistemic = (shares * (values - mean).square()).sum(0)
    return Spread(aleatoric.sqrt(), epistemic.sqrt(), (aleatoric + epistemic).sqrt())


def fit_weights(out_of_fold: Tensor, targets: Tensor) -> Tensor:
    """Return the weights (K, T), non-negative and of sum one, of least squared error.

    Breiman, Mach. Learn. 24 (1996) 49.

    Parameters
    ----------
    out_of_fold : Tensor
        (K, N, T) predictions of rows that the member was not trained on; on training rows the most overfitted wins.
    targets : Tensor
        (N, T), NaN where unknown.
    """
    from scipy.optimize import nnls

    columns = []
    for t, truth in enumerate(targets.T.double()):
        known = ~truth.isnan()
        members = out_of_fold[:, known, t].double().numpy().T
        if not len(members):
            columns.append(np.full(len(out_of_fold), 1 / len(out_of_fold)))
            continue
        # shifting both by the target changes nothing under weights of sum one, and keeps the numbers small
        shifted = members - truth[known].numpy()[:, None]
        scale = SUM_WEIGHT * max(float(np.abs(shifted).max()), np.finfo(float).tiny)
        found, _ = nnls(
            np.vstack([shifted, np.full(members.shape[1], scale)]), np.append(np.zeros(len(members)), scale)
        )
        columns.append(found / found.sum())
    return torch.from_numpy(np.stack(columns, axis=1)).to(out_of_fold.dtype)


def error_parts(values: Tensor, targets: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Return what an ensemble gains: its squared error is the mean of the members' minus their ambiguity, exactly.

    Krogh and Vedelsby, NeurIPS 1994. Over all known entries.

    Parameters
    ----------
    values : Tensor
        (K, N, T) of the members.
    targets : Tensor
        (N, T), NaN where unknown.
    weights : Tensor, optional
        (K, T) of sum one.
    """
    known = ~targets.isnan()
    values, truth = values.double(), targets.double()
    if weights is None:
        weights = values.new_full((values.shape[0], values.shape[2]), 1 / values.shape[0])
    shares = weights.double()[:, None]
    mean = (shares * values).sum(0)
    return {
        "mse_ensemble": float((mean - truth).square()[known].mean()),
        "mse_mean_member": float((shares * (values - truth).square()).sum(0)[known].mean()),
        "ambiguity": float((shares * (values - mean).square()).sum(0)[known].mean()),
    }


def group_mean(prediction: Prediction, groups: Sequence[str]) -> tuple[Prediction, list[str]]:
    """Return one prediction for each group of rows, as several images of one sample, and the groups in their order.

    The standard deviation is that of `combine`: the mean variance of the records and the variance between them.
    """
    names = list(dict.fromkeys(groups))
    place = {name: i for i, name in enumerate(names)}
    index = torch.tensor([place[name] for name in groups])
    counts = torch.bincount(index, minlength=len(names)).to(prediction.value.dtype)[:, None]

    def mean(rows: Tensor) -> Tensor:
        return rows.new_zeros(len(names), rows.shape[1]).index_add_(0, index, rows) / counts.to(rows.dtype)

    if prediction.probabilities is not None:
        probabilities = mean(prediction.probabilities)
        value = probabilities.argmax(1, keepdim=True).to(prediction.value.dtype)
        return Prediction(value, probabilities=probabilities), names
    value = mean(prediction.value)
    variance = mean((prediction.value - value[index]).square())
    if prediction.std is not None:
        variance = variance + mean(prediction.std.square())
    return Prediction(value, std=variance.sqrt()), names


class PredictorEnsemble(nn.Module):
    """Predictors of one row, of other seeds or folds, used as one: stands where a `finetune.predictor.Predictor` does.

    Parameters
    ----------
    members : sequence of Predictor
        K of them, alike but for their weights.
    how : str
        See `combine`.
    """

    def __init__(self, members: Sequence[Predictor], how: How = "mean") -> None:
        super().__init__()
        self.members, self.how = nn.ModuleList(members), how

    @property
    def featurizer(self) -> Featurizer:
        """That of the first member: with frozen encoders side by side, of every member."""
        return cast("Predictor", self.members[0]).featurizer

    @property
    def head(self) -> Head:
        """That of the first member."""
        return cast("Predictor", self.members[0]).head

    def forward(self, batch: Batch) -> Tensor:
        """Return the raw outputs (K, B, ...) of the members' heads."""
        return torch.stack([member(batch) for member in self.members])

    def predict(self, batch: Batch) -> Prediction:
        """Return predictions for B rows with the total standard deviation of the members."""
        found = [cast("Predictor", member).predict(batch) for member in self.members]
        importance = [member.importance for member in found if member.importance is not None]
        combined = combine(found, self.how)
        return combined._replace(importance=torch.stack(importance).mean(0)) if importance else combined


def kept_once(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a `PredictorEnsemble` in which what a member shares with the first is left out."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if name.startswith(FIRST) or not tensor.equal(weights[FIRST + name.split(".", 2)[2]])
    }


def of_every_member(weights: Mapping[str, Tensor], members: int) -> dict[str, Tensor]:
    """Undo `kept_once`."""
    first = {name.removeprefix(FIRST): tensor for name, tensor in weights.items() if name.startswith(FIRST)}
    return {f"members.{i}.{name}": tensor for i in range(members) for name, tensor in first.items()} | dict(weights)


@dataclass(frozen=True)
class Ensemble:
    """Predictors of the same targets, used as one.

    Attributes
    ----------
    members : tuple of PropertyModel
        Of other seeds, folds, modalities or heads.
    how : str
        See `combine`.
    weights : Tensor, optional
        (K, T); see `fit_weights`.
    """

    members: tuple[PropertyModel, ...]
    how: How = "mean"
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("an ensemble has no members", do="give at least one")
        first = self.members[0].info
        for other in (member.info for member in self.members[1:]):
            if (other.targets, other.task) != (first.targets, first.task):
                raise ConfigError(
                    f"the members predict different things: {list(first.targets)} ({first.task}) and "
                    f"{list(other.targets)} ({other.task})",
                    do="give predictors of the same targets",
                )

    @classmethod
    def load(cls, uris: Sequence[str], how: How = "mean") -> Ensemble:
        """Load predictors by their URIs."""
        from finetune.loading import PropertyModel, load

        members = [load(uri) for uri in uris]
        for uri, member in zip(uris, members, strict=True):
            if not isinstance(member, PropertyModel):
                raise ConfigError(f"'{uri}' is no predictor", do="give fine-tuned models")
        return cls(tuple(member for member in members if isinstance(member, PropertyModel)), how)

    def predictions(self, samples: Sequence[Sample], *, batch_size: int = 64) -> list[Prediction]:
        """Return what each member says, not calibrated."""
        return [member.estimate(samples, batch_size=batch_size, calibrated=False) for member in self.members]

    def estimate(self, samples: Sequence[Sample], *, batch_size: int = 64) -> Prediction:
        """Predict for N samples, with the total standard deviation; calibrate it as any other prediction."""
        return combine(self.predictions(samples, batch_size=batch_size), self.how, self.weights)


def mc_dropout(
    model: PropertyModel, samples: Sequence[Sample], *, draws: int = 20, seed: int = 0, batch_size: int = 64
) -> list[Prediction]:
    """Return ``draws`` predictions with dropout on (Gal and Ghahramani, ICML 2016); `combine` makes one of them."""
    with sampling_dropout(model.predictor), torch.random.fork_rng():
        torch.manual_seed(seed)
        return [model.estimate(samples, batch_size=batch_size, calibrated=False) for _ in range(draws)]


@contextmanager
def sampling_dropout(network: nn.Module) -> Iterator[None]:
    """Switch on the dropout of a network, and nothing else: batch statistics are neither used nor changed.

    Raises
    ------
    ConfigError
        Where it has none: all draws would be the same.
    """
    modes = {module: module.training for module in network.modules()}
    dropouts = [m for m in modes if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not dropouts:
        raise ConfigError("the network has no dropout to sample", do="head.dropout=0.1, or an ensemble")
    # the fused path of attention layers in evaluation mode runs past their dropout
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        network.eval()
        for dropout in dropouts:
            dropout.train()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


def _shares(members: Sequence[Prediction], weights: Tensor | None) -> Tensor:
    """Return the weights (K, 1, T) of the members."""
    value = members[0].value
    if weights is None:
        return value.new_full((len(members), 1, value.shape[1]), 1 / len(members))
    if weights.shape != (len(members), value.shape[1]):
        raise ConfigError(f"weights {tuple(weights.shape)} are not those of {len(members)} members")
    return weights.to(value)[:, None]
