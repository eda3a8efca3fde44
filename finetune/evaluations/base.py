"""The evaluation contract: a model and a data set in, findings out, which one writer turns into files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from matplotlib.axes import Axes

from finetune.loading import Foundation, PropertyModel
from pretrain.plots import Row
from shards.plugins import Options, Registry
from shards.reader import Dataset

Draw = Callable[[Axes], Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated, and on what.

    Attributes
    ----------
    model : Foundation or PropertyModel
        Loaded and frozen.
    dataset : Dataset
        With the modalities of the model.
    split, part : str
        What is reported; anything that must be fitted is fitted on the part ``train`` of the split, anything chosen
        or calibrated on ``val``.
    seed : int
        Of everything random.
    """

    model: Foundation | PropertyModel
    dataset: Dataset
    split: str
    part: str = "test"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an evaluation found.

    Attributes
    ----------
    title, text : str
        One line, and what a reader must know to read the figures rightly.
    values : dict of str to float
        Headline figures, logged as metrics.
    tables : dict of str to list of Row
        Every table by its file name without suffix; written as CSV and JSON, shown in the page.
    plots : dict of str to callable
        Every plot by its file name without suffix; draws into the given axes, written as PNG.
    """

    title: str
    text: str
    values: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    plots: dict[str, Draw] = field(default_factory=dict)


class Evaluation(Options):
    """Base of the evaluation plug-ins: a typed table of options that can be called.

    Attributes
    ----------
    wants : type
        ``Foundation`` or ``PropertyModel``: what it can evaluate.
    """

    wants: ClassVar[type]

    @abstractmethod
    def __call__(self, subject: Subject) -> Findings:
        """Evaluate."""


EVALUATIONS: Registry[type[Evaluation]] = Registry(
    "evaluation",
    {
        "retrieval": "finetune.evaluations.retrieval",
        "missing": "finetune.evaluations.missing",
        "noise": "finetune.evaluations.noise",
        "ood": "finetune.evaluations.ood",
        "probes": "finetune.evaluations.probes",
        "latent_map": "finetune.evaluations.latent_map",
        "interpretability": "finetune.evaluations.interpretability",
        "discovery": "finetune.evaluations.discovery",
        "uncertainty": "finetune.evaluations.uncertainty",
        "coverage": "finetune.evaluations.coverage",
        "metrics": "finetune.evaluations.accuracy",
    },
)
