"""Gates: how much of each input enters the joint vector, decided row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.fusion.base import FUSIONS, Fusion, FusionOptions, Width, any_present
from shards.errors import ConfigError, suggest

EPSILON = 1e-6


@FUSIONS.register("gated")
class Gated(Fusion):
    r"""A sum of the inputs, mapped to one width, each times its gate (IBM's dynamic fusion, AI4Mat at ICLR 2025).

    With ``u_m = P_m h_m`` and the inputs m that are present in a row:

    ``scalar``
        :math:`z = \sum_m \alpha_m u_m`, :math:`\alpha_m = \sigma(q^T (W_m h_m + b_m))`. The query q is learned, or the
        map of one input's vector (a text that says what is asked, AMCI); where that input is absent, it is learned.
    ``feature``
        :math:`z = \sum_m g_m \odot u_m`, :math:`g_m = \sigma(W_m h_m + b_m)` as wide as z.
    ``attention``
        :math:`z = \sum_m w_m g_m \odot u_m` with g as above and w the softmax over the present inputs of
        :math:`v^T \tanh(V (g_m \odot u_m))`. ``entropy`` holds the mean of :math:`H(w) / \log(\mathrm{present})` of
        the last call; `mean_entropy` of `weights` is the same with gradient, for a loss that rewards it.

    The gates of the first two are independent of each other: their sum grows with the number of inputs that are
    present, therefore ``norm``. The weights of the third sum to one.
    """

    class Config(FusionOptions):
        """Options of `Gated`.

        Attributes
        ----------
        form : str
            ``scalar``, ``feature`` or ``attention``.
        dim : int
            Width of the joint vector.
        norm : str
            ``none``; ``sum``: divide by the sum of the gates; ``layernorm``.
        query : str, optional
            The input whose vector is the query of scalar gates; by default a learned vector is.
        query_dim : int
            Width of the query.
        """

        kind: Literal["gated"] = "gated"
        form: Literal["scalar", "feature", "attention"] = "scalar"
        dim: int = Field(256, gt=0)
        norm: Literal["none", "sum", "layernorm"] = "layernorm"
        query: str | None = None
        query_dim: int = Field(64, gt=0)

        @model_validator(mode="after")
        def _options_of_the_form(self) -> Gated.Config:
            if self.query is not None and self.form != "scalar":
                raise ValueError(f"gates of the form '{self.form}' have no query")
            if self.norm == "sum" and self.form == "attention":
                raise ValueError("the weights of the form 'attention' sum to one already, norm = 'sum' does nothing")
            return self

    entropy: Tensor
    reads_tokens: ClassVar[bool] = False

    def __init__(self, config: Config, inputs: Mapping[str, Width]) -> None:
        super().__init__(config, inputs)
        self.dim, self.form = config.dim, config.form
        self.maps = nn.ModuleDict({name: nn.Linear(width.dim, config.dim) for name, width in inputs.items()})
        gate_dim = config.query_dim if config.form == "scalar" else config.dim
        self.gates = nn.ModuleDict({name: nn.Linear(width.dim, gate_dim) for name, width in inputs.items()})
        self.nothing = nn.Parameter(0.02 * torch.randn(config.dim))
        self.norm = nn.LayerNorm(config.dim) if config.norm == "layernorm" else nn.Identity()
        if config.form == "scalar":
            self._build_query(config)
        if config.form == "attention":
            self.score = nn.Sequential(
                nn.Linear(config.dim, config.dim), nn.Tanh(), nn.Linear(config.dim, 1, bias=False)
            )
            self.register_buffer("entropy", torch.zeros(1), persistent=False)

    def _build_query(self, config: Config) -> None:
        # of length one: the logits start as spread as those of a linear map
        self.query = nn.Parameter(torch.randn(config.query_dim) / config.query_dim**0.5)
        if config.query is None:
            return
        if config.query not in self.inputs:
            raise ConfigError(
                f"the query '{config.query}' is no input of the fusion",
                where="fusions.*.query",
                why=suggest(config.query, self.inputs),
            )
        self.ask = nn.Linear(self.inputs[config.query].dim, config.query_dim)

    def fuse(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Encoded:
        """Sum the gated vectors."""
        gates, parts = self.gated(encoded, present)
        if self.form == "attention":
            weights = self._attended(parts, present)
            self.entropy = mean_entropy(weights.detach().float(), present).reshape(1)
            total = (weights[..., None] * parts).sum(dim=1)
        else:
            total = parts.sum(dim=1)
            if self.config.norm == "sum":
                total = total / (gates.sum(dim=1) + EPSILON)
        return Encoded(torch.where(any_present(present)[:, None], self.norm(total), self.nothing))

    def gated(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the gates (b, M, 1 or dim), zero where absent, and the inputs' vectors times them (b, M, dim)."""
        vectors = {name: part.vector for name, part in encoded.items()}
        raw = torch.stack([self.gates[name](vectors[name]) for name in self.inputs], dim=1)
        if self.form == "scalar":
            raw = (raw * self._query(vectors, present)).sum(dim=2, keepdim=True)
        there = torch.stack([present[name] for name in self.inputs], dim=1)
        gates = raw.sigmoid().masked_fill(~there[..., None], 0.0)
        return gates, gates * torch.stack([self.maps[name](vectors[name]) for name in self.inputs], dim=1)

    def weights(self, encoded: Mapping[str, Encoded], present: Mapping[str, Tensor]) -> Tensor:
        """Return the attention (b, M) over the present inputs of the form ``attention``."""
        return self._attended(self.gated(encoded, present)[1], present)

    def _attended(self, parts: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        there = torch.stack([present[name] for name in self.inputs], dim=1)
        scores = self.score(parts)[..., 0].float()
        # the smallest finite score: a row of which nothing is present stays finite
        return scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(dim=1).masked_fill(~there, 0.0)

    def _query(self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return the query, (1, 1, query_dim) or (b, 1, query_dim)."""
        name = self.config.query
        if name is None:
            return self.query[None, None]
        return torch.where(present[name][:, None], self.ask(vectors[name]), self.query)[:, None]


def mean_entropy(weights: Tensor, present: Mapping[str, Tensor]) -> Tensor:
    """Mean of H(w) / log(present inputs) over the rows with two inputs or more, 0-dim; 1 = even, 0 = one input alone.

    Parameters
    ----------
    weights : Tensor
        (b, M), rows sum to one over the present inputs.
    present : mapping of str to Tensor
        (b,) bool by input.
    """
    count = torch.stack(list(present.values())).sum(dim=0)
    several = count > 1
    entropy = -torch.special.xlogy(weights, weights.clamp_min(EPSILON)).sum(dim=1)
    normalised = entropy / count.clamp_min(2).log()
    return normalised.masked_fill(~several, 0.0).sum() / several.sum().clamp_min(1)
