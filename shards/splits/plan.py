"""What a division goes by, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, model_validator

from shards.schema import Strict

HELD_OUT = "test"
UNASSIGNED = "unassigned"
# parameters that belong to one kind of division alone
PARAMETERS = {
    "top_quantile": {"label", "quantile"},
    "chronological": {"key"},
    "cluster": {"features", "clusters", "held_out"},
}
REQUIRED = {"top_quantile": "label", "chronological": "key"}


class Division(Strict):
    """What samples are divided by, into the parts of a split or into folds.

    Attributes
    ----------
    by : str
        See `SplitPlan` and `finetune.folds.FoldPlan`.
    seed : int
        Seed of what is drawn at random.
    missing : str
        What becomes of samples without the tag, label or vector that the division goes by: ``error``, or
        ``unassigned``: in a part of its own, or in no fold.
    label, quantile : str, float
        ``top_quantile``: the label, and the share of the samples that are held out. Samples with a value
        equal to the lowest of these are held out too.
    key : str
        ``chronological``: a tag that holds a year (``2019``), a month (``2019-07``) or an ISO 8601 date, or a
        label. Samples of equal time stay together, so the test part is later than the others.
    features : str
        ``cluster``: ``composition`` (of the tag ``formula``) or the name of a vector modality.
    """

    by: str = Field(min_length=1)
    seed: int = Field(0, ge=0)
    missing: Literal["error", "unassigned"] = "error"
    label: str | None = None
    quantile: float = Field(0.05, gt=0.0, lt=1.0)
    key: str | None = None
    features: str = Field("composition", min_length=1)


class SplitPlan(Division):
    """How to divide a data set; see `Division` for what it shares with folds.

    Attributes
    ----------
    by : str
        ``id`` or ``group``: at random. ``formula`` (reduced), ``chemical_system``, ``prototype``,
        ``scaffold`` or any other tag: at random, samples of equal tag together. ``top_quantile``: the
        highest values of a label are the test part (extrapolation). ``chronological``: train is the
        oldest, test the newest. ``cluster``: one of several clusters is the test part
        (leave-one-cluster-out; Meredig et al., Mol. Syst. Des. Eng. 3, 819 (2018)).
    fractions : dict of str to float
        Part to its share; they add up to 1. Where the test part is held out by ``top_quantile`` or
        ``cluster``, the others share the rest in the ratio of their fractions.
    clusters, held_out : int, int
        ``cluster``: the number of clusters; which of them is the test part, from 0, the largest.
    """

    fractions: dict[str, float] = {"train": 0.7, "val": 0.1, HELD_OUT: 0.2}
    clusters: int = Field(10, ge=2)
    held_out: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> SplitPlan:
        """Refuse shares that are none, and parameters of another kind of division."""
        # written so that NaN is refused
        if not (abs(sum(self.fractions.values()) - 1) <= 1e-9 and min(self.fractions.values()) > 0):
            raise ValueError(f"the fractions must be positive and add up to 1, they are {self.fractions}")
        if UNASSIGNED in self.fractions:
            raise ValueError(f"'{UNASSIGNED}' is the part of samples that cannot be divided; it has no share")
        if self.by in ("top_quantile", "cluster") and set(self.fractions) <= {HELD_OUT}:
            raise ValueError(f"a part other than '{HELD_OUT}' must take the samples that are not held out")
        for kind, names in PARAMETERS.items():
            foreign = sorted(names & self.model_fields_set) if kind != self.by else []
            if foreign:
                raise ValueError(f"'{foreign[0]}' is a parameter of by = '{kind}', not of by = '{self.by}'")
        required = REQUIRED.get(self.by)
        if required and getattr(self, required) is None:
            raise ValueError(f"by = '{self.by}' needs '{required}'")
        if self.held_out >= self.clusters:
            raise ValueError(f"held_out must be less than clusters, {self.clusters}")
        return self

    @property
    def modality(self) -> str | None:
        """The vector modality that the division needs, or None."""
        return self.features if self.by == "cluster" and self.features != "composition" else None

    def parameters(self) -> dict[str, Any]:
        """Return what the manifest keeps of the plan, beside ``by`` and ``seed``."""
        return {
            "fractions": dict(self.fractions),
            **self.model_dump(mode="json", include={"missing"} | PARAMETERS.get(self.by, set())),
        }


@dataclass(frozen=True, kw_only=True)
class SampleInfo:
    """What divisions look at: a sample without its modalities.

    Attributes
    ----------
    id, group : str
        Its id, and the physical sample that it belongs to (empty = the id).
    tags : dict of str to str
        Formula, chemical system, ...
    labels : dict of str to float
        The labels that are known.
    """

    id: str
    group: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> str:
        """Name of what must not be torn apart."""
        return self.group or self.id
