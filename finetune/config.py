"""The fine-tuning recipe: which registered model, which target, which rows of the table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from finetune.adapt.base import ADAPTATIONS, Adaptation
from finetune.consistency import Consistency
from finetune.ensembles import EnsembleConfig
from finetune.estimators.base import ESTIMATORS, Estimator
from finetune.fold_parts import RecipeFolds
from finetune.heads.base import HEADS
from finetune.late_rows import LateFusionRow
from finetune.pair_table import PairsConfig
from pretrain.config import Place
from pretrain.fusion.base import FUSIONS
from shards.augment import Augment
from shards.errors import ConfigError, suggest
from shards.plugins import Options
from shards.recipes import apply_overrides, parse, read_tables
from shards.schema import Strict

ALIASES, LATE_FUSION = {"probe": "linear_probe"}, "late_fusion"
Plan = Adaptation | Estimator | LateFusionRow


class RowConfig(Strict):
    """One row of the table.

    Attributes
    ----------
    strategy : str or table
        How the row is made: an adaptation of the pretrained model (``frozen``, ``full``, ``scratch``, ``last_n``,
        ``staged``, ``lora``, ``bitfit``, ``scale_shift``, ``attentive``), a mixture of frozen checkpoints
        (``{kind = "experts", models = [...]}``), an estimator on the frozen vectors (``mean``, ``linear_probe``,
        ``random_forest``, ...) or one a modality, weighted (``late_fusion``); ``{kind = "lora", rank = 4}`` gives
        options.
    modalities : tuple of str
        What the row may look at.
    fusion : table, optional
        What joins the encoders' outputs, as in a pretraining recipe: ``{kind = "gated", dim = 64}``; by default the
        vectors are put side by side.
    label_fraction : float
        Share of the training labels that the row may see; the subsets of a seed are nested.
    start : str, optional
        URI of a predictor of another property of the same pretrained model: encoders, join and what fits of the head
        start from its weights.
    descriptors : str, optional
        What an estimator looks at in place of frozen vectors, the classical baseline: ``magpie`` (the composition), or
        the values of a modality of one shape, such as a fingerprint; see `finetune.descriptors.descriptors_of`.
    """

    strategy: str | dict[str, Any]
    modalities: tuple[str, ...] = ("crystal",)
    fusion: dict[str, Any] | None = None
    label_fraction: float = Field(1.0, gt=0, le=1)
    start: str | None = None
    descriptors: str | None = None

    @property
    def table(self) -> dict[str, Any]:
        """The strategy as a table."""
        table = {"kind": self.strategy} if isinstance(self.strategy, str) else self.strategy
        return {**table, "kind": ALIASES.get(table.get("kind", ""), table.get("kind"))}

    @property
    def label(self) -> str:
        """The strategy in a word: its kind, the options that were given, and what else sets the row apart."""
        if isinstance(self.strategy, str):
            text = self.strategy
        else:
            options = ", ".join(f"{name}={value}" for name, value in self.strategy.items() if name != "kind")
            text = f"{self.strategy.get('kind')}({options})" if options else str(self.strategy.get("kind"))
        if self.fusion is not None:
            text += f"+{self.fusion.get('kind')}"
        if self.start is not None:
            text += " transferred"
        if self.descriptors is not None:
            text += f" of {self.descriptors}"
        return text if self.label_fraction == 1 else f"{text} {100 * self.label_fraction:g}%"

    def plan(self) -> Plan:
        """Return the typed options of the strategy."""
        table = self.table
        if table["kind"] in ESTIMATORS.kinds():
            return ESTIMATORS.options(table)
        if table["kind"] in ADAPTATIONS.kinds():
            return ADAPTATIONS.options(table)
        if table["kind"] == LATE_FUSION:
            return parse(LateFusionRow, table, where="rows.*.strategy")
        known = sorted({*ADAPTATIONS.kinds(), *ESTIMATORS.kinds(), *ALIASES, LATE_FUSION})
        raise ConfigError(
            f"there is no strategy '{table['kind']}'",
            where="rows.*.strategy",
            why=suggest(str(table["kind"]), known),
            do=f"known: {', '.join(known)}",
        )

    def check(self) -> None:
        """Raise `ConfigError` where the strategy or the fusion is none, or the two do not go together."""
        plan = self.plan()
        if self.fusion is not None:
            FUSIONS.options(self.fusion)
        for name in ("fusion", "start"):
            takes = isinstance(plan, Adaptation) and plan.pretrained and not plan.own_encoders
            if getattr(self, name) is not None and not takes:
                raise ConfigError(f"the strategy '{self.label}' takes no '{name}'", where=f"rows.*.{name}")
        if self.descriptors is not None and (self.modalities or not isinstance(plan, Estimator)):
            raise ConfigError(
                f"the strategy '{self.label}' cannot look at descriptors",
                where="rows.*.descriptors",
                why="they stand in place of the vectors of modalities, for an estimator",
                do='{ strategy = "random_forest", modalities = [], descriptors = "magpie" }',
            )
        if isinstance(plan, LateFusionRow):
            plan.check(self.modalities)
        if isinstance(plan, Adaptation):
            plan.check()
        if getattr(plan, "head", None) == "frozen" and self.start is None:
            raise ConfigError(
                "a head that is frozen must come from somewhere",
                where="rows.*.start",
                do="start = 'models:/NAME@champion', or head = 'train'",
            )


class FinetuneOptim(Strict):
    """AdamW on the head (``lr``) and on encoders that are trained (``encoder_lr``; from scratch: ``lr``).

    Attributes
    ----------
    epochs, frozen_epochs : int
        Of rows whose encoders are run, and of those on cached encodings.
    accumulate : int
        Batches a step.
    feature_noise : float
        Noise on cached encodings in training, a fraction of each entry's standard deviation over the training rows,
        drawn anew each epoch; noise on the inputs is ``augment``.
    """

    lr: float = Field(1e-3, gt=0)
    encoder_lr: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    epochs: int = Field(100, gt=0)
    frozen_epochs: int = Field(300, gt=0)
    batch_size: int = Field(32, gt=0)
    grad_clip: float = Field(1.0, gt=0)
    accumulate: int = Field(1, gt=0)
    feature_noise: float = Field(0.0, ge=0)


class FinetuneRecipe(Strict):
    """A whole comparison.

    Attributes
    ----------
    name : str
        Name of the run, and of the registered predictor unless ``register_as`` says otherwise.
    model : str
        URI of the pretrained model, ``models:/demo@champion``.
    data : str
        Data set, as in a pretraining recipe; its schema must be the model's.
    overlays : tuple of str
        Companion shards that add modalities to ``data``, as in a pretraining recipe.
    split : str
        The parts ``train`` (fitted on), ``val`` (chosen by) and ``test`` (reported, once).
    folds : table, optional
        ``[folds]``: every row is fitted in each of several folds in place of one split; see
        `finetune.fold_parts.RecipeFolds`.
    ensemble : table, optional
        ``[ensemble]``: the seeds (of all folds) of the best row are registered as one predictor; see
        `finetune.ensembles.EnsembleConfig`.
    target : str or tuple of str
        A label, with its unit in the name; or several, which one network predicts together.
    pairs : str or table, optional
        Pairs of materials are predicted in place of single ones: a CSV with the columns ``id_a``, ``id_b`` and the
        targets, or a table with ``leave`` too; see `finetune.pair_table.PairsConfig`.
    delta : str or tuple of str
        A label for each target, to which the difference is learned (Delta-ML): a calculation at a lower level. It
        must be known in use.
    augment : table of tables
        ``[augment.NAME]``, variations of a modality in training; see `shards.augment.Augment`. Frozen encoders are
        run anew in every epoch then.
    consistency : table, optional
        A term that compares two variations of each training sample, by ``augment`` or ``feature_noise``.
    interval : float
        Probability with which the intervals of the registered predictor are to hold the truth.
    seeds : tuple of int
        Every trained row is repeated with each.
    """

    name: str
    model: str
    data: Place
    overlays: tuple[Place, ...] = ()
    split: str = "chemical_system"
    folds: RecipeFolds | None = None
    ensemble: EnsembleConfig | None = None
    target: str | tuple[str, ...]
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    pairs: PairsConfig | None = None
    delta: str | tuple[str, ...] = ()
    augment: dict[str, Augment] = {}
    consistency: Consistency | None = None
    interval: float = Field(0.9, gt=0, lt=1)
    head: dict[str, Any] = {"kind": "regression"}
    optim: FinetuneOptim = FinetuneOptim()
    experiment: str = "matloom"
    register_as: str | None = None

    @model_validator(mode="after")
    def _rows_differ(self) -> FinetuneRecipe:
        if any(row in self.rows[:i] for i, row in enumerate(self.rows)):
            raise ValueError("two rows are the same")
        if any(not row.modalities and not row.descriptors and row.table["kind"] != "mean" for row in self.rows):
            raise ValueError("a row that is fitted needs at least one modality")
        if self.deltas and len(self.deltas) != len(self.targets):
            raise ValueError(f"'delta' names {len(self.deltas)} labels for {len(self.targets)} targets")
        if self.consistency is not None and not self.augment and not self.optim.feature_noise:
            raise ValueError(
                "'consistency' compares variations, and there are none: set augment or optim.feature_noise"
            )
        return self

    @model_validator(mode="after")
    def _folds_alone(self) -> FinetuneRecipe:
        if self.ensemble is not None and len(self.seeds) < 2 and self.folds is None:
            raise ValueError("an 'ensemble' of one seed has one member: give more seeds, or folds")
        if self.folds is None:
            return self
        if "split" in self.model_fields_set:
            raise ValueError("'folds' are in place of a 'split': leave one of the two out")
        if self.pairs is not None:
            raise ValueError("'folds' divide single materials, not 'pairs': pairs.leave says how these are divided")
        if self.register_as is not None and self.ensemble is None:
            raise ValueError(
                "a predictor of one fold is not registered: add [ensemble], of which all folds are members, or leave "
                "'register_as' out"
            )
        return self

    @property
    def deltas(self) -> tuple[str, ...]:
        """The labels to which differences are learned, one a target or none."""
        return (self.delta,) if isinstance(self.delta, str) else self.delta

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets, one or several."""
        return (self.target,) if isinstance(self.target, str) else self.target

    def head_options(self) -> Options:
        """Return the typed options of the head."""
        return HEADS.options(self.head)


def load_finetune_recipe(path: Path, overrides: Iterable[str] = ()) -> FinetuneRecipe:
    """Read and validate a fine-tuning recipe; see `pretrain.config.load_recipe` for the overrides."""
    recipe = parse(FinetuneRecipe, apply_overrides(read_tables(path), overrides), where=str(path))
    recipe.head_options()
    for row in recipe.rows:
        row.check()
    return recipe
