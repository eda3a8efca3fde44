"""A mixture of experts over several frozen checkpoints: a gate says how much of each, and the others do not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from finetune.featurizer import Encodings
from finetune.freeze import freeze
from finetune.gates import InputGate, NoisyTopKGate, StaticGate
from pretrain.encoders.base import Encoded
from shards.batch import Batch
from shards.batch_rows import pick_rows
from shards.errors import ConfigError
from shards.schema import ModalitySpec, Strict

# expert number and the rows (k,) that want it, or None for all of them: its vectors (k, F)
Read = Callable[[int, Tensor | None], Tensor]


class ExpertsConfig(Strict):
    """How experts are mixed.

    Attributes
    ----------
    gate : str
        ``static``: a free vector, the same for every row (Chang et al., npj Comput. Mater. 8, 242 (2022)). ``input``:
        linear in the row's features. ``noisy_top_k``: the same with noise and a loss that balances (Shazeer et
        al., arXiv:1701.06538), as IBM's MoL-MoE has it.
    k : int
        Experts whose score is not zero, and which are evaluated.
    heads : int
        Independent static gates; their mixtures stand side by side.
    aggregation : str
        ``add``: the weighted sum. ``concat``: the weighted vectors side by side, zeros for those not selected.
    width : int, optional
        Experts are mapped to this many features, linearly; default: that of the widest, where the widths differ.
    regulariser : float
        Weight of the static gate's ||S^T S - I||^2, which SHARPENS the gate of one head and parts those of several.
    balance : float
        Weight of the noisy gate's CV^2 of importance and load, which BALANCES the experts.
    router : int
        The expert whose vector an ``input`` or ``noisy_top_k`` gate looks at; it runs on all rows. Looked past where
        `Experts` is given a router of its own.
    """

    gate: Literal["static", "input", "noisy_top_k"] = "static"
    k: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    aggregation: Literal["add", "concat"] = "add"
    width: int | None = Field(None, ge=1)
    regulariser: float = Field(0.01, ge=0)
    balance: float = Field(0.01, ge=0)
    router: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsConfig:
        if self.gate != "static" and self.heads > 1:
            raise ValueError("several heads are for gate = 'static'")
        return self


class Experts(nn.Module):
    """Features of several frozen experts, mixed by a gate; stands where a featurizer of one checkpoint does.

    Parameters
    ----------
    featurizers : sequence of Module
        m experts, for example `finetune.predictor.Featurizer` of m checkpoints: each has a ``width``, maps a `Batch` to
        (B, width), and has ``specs`` of the modalities that it reads (needed where a gate looks at its input).
    config : ExpertsConfig
        Gate, aggregation.
    router : Module, optional
        With a ``width``; maps a `Batch` to (B, width), what an input-dependent gate looks at. Default: an expert.
    frozen : bool
        Freeze the experts in place, statistics of normalisations included; else they are trained with the rest.

    Attributes
    ----------
    width : int
        Of the features.
    auxiliary : Tensor
        What the last forward pass adds to the loss; 0 before the first.
    sources : list of dict
        What is stored of the experts beside their weights; see `finetune.expert_sources.Source.table`.
    """

    auxiliary: Tensor
    reads_tokens: ClassVar[bool] = False

    def __init__(
        self,
        featurizers: Sequence[nn.Module],
        config: ExpertsConfig,
        *,
        router: nn.Module | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        count = len(featurizers)
        check_gate(count, config, router)
        self.config = config
        self.experts = nn.ModuleList([freeze(expert) if frozen else expert for expert in featurizers])
        self.specs = _joined_specs(featurizers)
        self.widths = [cast(int, expert.width) for expert in featurizers]
        each = config.width or max(self.widths)
        self.projections = nn.ModuleList(
            [nn.Identity() if width == each else nn.Linear(width, each) for width in self.widths]
        )
        self.router = freeze(router) if router is not None and frozen else router
        seen = cast(int, router.width) if router is not None else self.widths[min(config.router, count - 1)]
        self.gate: nn.Module = {
            "static": lambda: StaticGate(count, k=config.k, heads=config.heads, weight=config.regulariser),
            "input": lambda: InputGate(seen, count, k=config.k),
            "noisy_top_k": lambda: NoisyTopKGate(seen, count, k=config.k, weight=config.balance),
        }[config.gate]()
        self.width = each * config.heads * (count if config.aggregation == "concat" else 1)
        self.auxiliary = torch.zeros(())
        self.sources: list[dict[str, Any]] = []

    def __getstate__(self) -> dict[str, object]:
        """Leave the graph of the last forward pass out of copies, which could not be made with it."""
        return {**self.__dict__, "auxiliary": self.auxiliary.detach().clone()}

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The experts, by the names under which `encode` gives their vectors."""
        return {f"expert {number}": expert for number, expert in enumerate(self.experts)}

    def encode(self, batch: Batch) -> Encodings:
        """Return what EVERY expert makes of a batch: done once, a frozen mixture is trained in seconds."""
        vectors = [expert(batch) for expert in self.experts]
        there = torch.ones(len(batch.ids), dtype=torch.bool, device=vectors[0].device)
        encoded = {name: Encoded(vector) for name, vector in zip(self.encoders, vectors, strict=True)}
        return Encodings(encoded, dict.fromkeys(encoded, there))

    def explained(self, batch: Batch) -> tuple[Tensor, None]:
        """Return features, and nothing of modalities: experts are weighed, not these."""
        return self(batch), None

    def forward(self, batch: Batch | Encodings) -> Tensor:
        """Return features (B, width); an expert runs on the rows alone that want it.

        Of what `encode` gave, no expert runs.
        """
        if isinstance(batch, Encodings):
            return self.combine([part.vector for part in batch.encoded.values()])
        rows = len(batch.ids)
        routed: dict[int, Tensor] = {}

        def read(number: int, wanted: Tensor | None) -> Tensor:
            if number in routed:
                return routed[number] if wanted is None else routed[number][wanted]
            expert = self.experts[number]
            if wanted is None or len(wanted) == rows:
                return expert(batch)
            return expert(pick_rows(batch, cast(dict[str, ModalitySpec], expert.specs), wanted))

        if self.config.gate == "static":
            return self._static(read, rows)
        if self.router is None:
            # it runs for the gate already: what it gives is read again where it is selected
            routed[self.config.router] = self.experts[self.config.router](batch)
        seen = routed[self.config.router] if self.router is None else self.router(batch)
        return self._routed(read, seen)

    def combine(self, vectors: Sequence[Tensor], seen: Tensor | None = None) -> Tensor:
        """Mix vectors that are already there: what frozen experts gave for B rows, computed once.

        Parameters
        ----------
        vectors : sequence of Tensor
            (B, F) of every expert, from `vectors`.
        seen : Tensor, optional
            (B, R) that an input-dependent gate with a router of its own looks at.
        """

        def read(number: int, wanted: Tensor | None) -> Tensor:
            return vectors[number] if wanted is None else vectors[number][wanted]

        if self.config.gate == "static":
            return self._static(read, len(vectors[0]))
        return self._routed(read, vectors[self.config.router] if seen is None else seen)

    @torch.no_grad()
    def vectors(self, batch: Batch) -> list[Tensor]:
        """Return (B, F) of EVERY expert, for `combine`: worth it where a frozen mixture is trained for many epochs."""
        return [expert(batch) for expert in self.experts]

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return the (heads, m) scores of a static gate: how useful it found each expert."""
        if not isinstance(self.gate, StaticGate):
            raise ConfigError(f"a gate '{self.config.gate}' has scores of each row, none of its own")
        return self.gate.scores()

    def _static(self, read: Read, rows: int) -> Tensor:
        scores, self.auxiliary = self.gate()
        mixed = []
        # selected by any head; read once
        projected = {
            number: self.projections[number](read(number, None))
            for number in range(len(self.experts))
            if bool((scores[:, number] != 0).any())
        }
        like = next(iter(projected.values()))
        for head in scores:
            parts = [
                projected[number] * score if number in projected else like.new_zeros(rows, like.shape[1])
                for number, score in enumerate(head)
            ]
            mixed.append(self._aggregated(parts))
        return torch.cat(mixed, dim=1) + self._idle()

    def _routed(self, read: Read, seen: Tensor) -> Tensor:
        scores, self.auxiliary = self.gate(seen)
        parts: list[Tensor] = []
        each = self.width // (len(self.experts) if self.config.aggregation == "concat" else 1)
        for number in range(len(self.experts)):
            wanted = (scores[:, number] != 0).nonzero()[:, 0]
            part = scores.new_zeros(len(scores), each)
            if len(wanted):
                vectors = self.projections[number](read(number, wanted))
                part = part.index_copy(0, wanted, (vectors * scores[wanted, number, None]).to(part.dtype))
            parts.append(part)
        return self._aggregated(parts) + self._idle()

    def _aggregated(self, parts: Sequence[Tensor]) -> Tensor:
        if self.config.aggregation == "concat":
            return torch.cat(list(parts), dim=1)
        return torch.stack(list(parts)).sum(0)

    def _idle(self) -> Tensor:
        """Return 0 with a graph to every projection: ranks whose rows want other experts have the same parameters."""
        idle = self.auxiliary.new_zeros(())
        for parameter in self.projections.parameters():
            idle = idle + 0.0 * parameter.sum()
        return idle


def _joined_specs(experts: Sequence[nn.Module]) -> dict[str, ModalitySpec]:
    joined: dict[str, ModalitySpec] = {}
    for number, expert in enumerate(experts):
        for name, spec in cast(dict[str, ModalitySpec], getattr(expert, "specs", {})).items():
            difference = joined.setdefault(name, spec).difference(spec)
            if difference:
                raise ConfigError(f"expert {number} reads another '{name}' than those before it", why=difference)
    return joined


def check_gate(count: int, config: ExpertsConfig, router: nn.Module | None = None) -> None:
    """Raise `ConfigError` where a gate cannot select among so many experts."""
    if count < 1:
        raise ConfigError("a mixture needs at least one expert")
    if config.k > count:
        raise ConfigError(f"k = {config.k} of {count} experts cannot be selected", do=f"k = {count} takes them all")
    if config.k == 1 and count > 1:
        raise ConfigError(
            "with k = 1 the gate cannot learn to route",
            why="the softmax over one logit is 1 whatever the logit is: its gradient is zero, the first choice stays",
            do="take k = 2 or more, or the one expert alone",
        )
    if config.gate != "static" and router is None and config.router >= count:
        raise ConfigError(f"router = {config.router}, but the experts are 0 to {count - 1}")
