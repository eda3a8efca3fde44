"""A predictor: encoders of a pretrained model, joined over the modalities that a sample has, and a head; stored too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from finetune.adapt.base import ADAPTATIONS, Adaptation
from finetune.ensembles import How, PredictorEnsemble, kept_once, of_every_member
from finetune.featurizer import Encodings, Featurizer, MakeJoin, SideBySide, fusion_join
from finetune.files import EXPERTS, PREDICTOR
from finetune.heads.base import HEADS, Head
from finetune.prediction import Prediction
from finetune.targets import grouped
from pretrain.config import parse_recipe
from pretrain.encoders.base import Encoder
from pretrain.export import Export, contiguous, read_tables_of, write_json
from pretrain.export_files import CARD, FITTED, RECIPE, SCHEMA, WEIGHTS
from pretrain.parts import build_encoder, with_weights
from shards.batch import Batch
from shards.errors import CheckpointError, ConfigError, DataError, suggest
from shards.plugins import Options
from shards.schema import ModalitySpec
from shards.sealed import sealing, verify

# of an ensemble: a description that was tampered with must not fill the memory
MOST_MEMBERS = 1000


class Predictor(nn.Module):
    """A featurizer and a head; ``forward`` gives raw outputs, ``predict`` the target in its unit.

    Parameters
    ----------
    featurizer : Featurizer
        From a batch to features; a mixture of `finetune.experts.Experts` stands in its place.
    head : Head
        From features to raw outputs.
    delta : tuple of str
        Labels, one a target, to which the head's predictions are added; empty: none.
    """

    def __init__(self, featurizer: Featurizer, head: Head, delta: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.featurizer, self.head, self.delta = featurizer, head, delta

    def forward(self, inputs: Batch | Encodings) -> Tensor:
        """Return the head's raw outputs (B, ...); of pairs, from 2 B rows of which each two are a pair."""
        return self.head(self.together(self.featurizer(inputs)))

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Return predictions for B rows in the targets' units; ``delta`` must be among the labels of the batch."""
        features, importance = self.featurizer.explained(batch)
        prediction = self.head.predict(self.head(self.together(features)))
        if importance is not None:
            prediction = prediction._replace(importance=self._shared(importance))
        return prediction.shifted(self._known_part(batch)) if self.delta else prediction

    def together(self, rows: Tensor) -> Tensor:
        """Return rows (2 B, F) of which each two are a pair as (B, 2, F); those of single materials as they are."""
        partners = self.head.partners
        return rows if partners == 1 else rows.reshape(len(rows) // partners, partners, *rows.shape[1:])

    def _shared(self, importance: Tensor) -> Tensor:
        """Return the shares (B, M) of the modalities, of pairs the mean over both partners."""
        return importance if self.head.partners == 1 else self.together(importance).mean(dim=1)

    def _known_part(self, batch: Batch) -> Tensor:
        """Return the labels (B, T) to which predictions are added."""
        lacking = [name for name in self.delta if name not in batch.label_names]
        if not lacking:
            known = batch.labels[:, [batch.label_names.index(name) for name in self.delta]]
            if not known.isnan().any():
                return known
            row, column = known.isnan().nonzero()[0].tolist()
            lacking = [f"{self.delta[column]}' of '{batch.ids[row]}"]
        raise DataError(
            f"the label '{lacking[0]}' is not known",
            why=f"the predictor learned what is to be added to {', '.join(self.delta)}",
            do="give materials with these labels",
        )


# the split of a predictor whose members were trained on folds
FOLDS = "folds"
# what JSON has as lists
TUPLES = ("targets", "modalities", "delta", "data_contents")
AnyPredictor = Predictor | PredictorEnsemble


@dataclass(frozen=True, kw_only=True)
class PredictorInfo:
    """What a stored predictor says of itself.

    Attributes
    ----------
    targets : tuple of str
        Label names (with units).
    task : str
        See `finetune.heads.base.Head`.
    modalities : tuple of str
        What it looks at.
    head : dict
        The head's options.
    foundation, foundation_seal : str
        URI of the pretrained model that it came from, and the sha256 of its seal.
    strategy : str
        How it was trained; see `finetune.config.RowConfig`.
    metrics : dict
        Validation metrics of the registered seed.
    adaptation : dict
        The options of the adaptation.
    fusion : dict, optional
        The fusion over the encoders; None: their vectors side by side, or the adaptation's own join.
    delta : tuple of str
        Labels, one a target, to which the predictions are added: they must be known in use.
    start : str, optional
        The predictor of another property that it started from.
    calibration : dict, optional
        What `finetune.calibration.Calibration` found on the validation part, or out of fold.
    members : int
        Of an ensemble: predictors alike but for their weights.
    how : str
        How they are combined; see `finetune.ensembles.combine`.
    split : str
        Of the data that it was trained on; ``folds`` where these were cross-validated, empty where it is not known.
    data_contents : tuple of str
        Identity of these data; see `shards.reader.Dataset.contents`.
    """

    targets: tuple[str, ...]
    task: str
    modalities: tuple[str, ...]
    head: dict[str, Any]
    foundation: str
    foundation_seal: str
    strategy: str
    metrics: dict[str, Any]
    adaptation: dict[str, Any] = field(default_factory=lambda: {"kind": "frozen"})
    fusion: dict[str, Any] | None = None
    delta: tuple[str, ...] = ()
    start: str | None = None
    calibration: dict[str, Any] | None = None
    members: int = 1
    how: How = "mean"
    split: str = ""
    data_contents: tuple[str, ...] = ()


def build_featurizer(
    export: Export, modalities: Sequence[str], *, pretrained: bool, join: MakeJoin = SideBySide
) -> Featurizer:
    """Return the featurizer over some modalities of a pretrained model, with its weights or with random ones."""
    for name in modalities:
        if name not in export.specs:
            raise ConfigError(f"the model has no modality '{name}'", why=suggest(name, export.specs))
    if pretrained:
        model = export.build()
        return Featurizer({name: cast(Encoder, model.encoders[name]) for name in modalities}, join)
    return Featurizer(
        {name: build_encoder(export.recipe, export.specs[name], export.fitted.get(name, {})) for name in modalities},
        join,
    )


def build_predictor(
    export: Export,
    modalities: Sequence[str],
    head: Options,
    targets: tuple[str, ...],
    *,
    adaptation: Adaptation,
    fusion: Mapping[str, Any] | None = None,
    delta: tuple[str, ...] = (),
    pretrained: bool,
    experts: Sequence[Mapping[str, Any]] | None = None,
) -> Predictor:
    """Return a new predictor over a pretrained model, before its adaptation inserts or freezes anything.

    ``experts``: what a stored mixture says of its experts, which are otherwise loaded by their URIs.
    """
    if adaptation.own_encoders:
        mixture = cast(Featurizer, adaptation.encoders_of(modalities, experts))
        return Predictor(mixture, build_head(head, mixture.width, targets), delta)
    own = adaptation.join()
    if own is not None and fusion is not None:
        raise ConfigError(
            f"'{adaptation.kind}' joins the encoders' outputs by itself", where="rows.*.fusion", do="leave it out"
        )
    join = own or (SideBySide if fusion is None else fusion_join(fusion))
    featurizer = build_featurizer(export, modalities, pretrained=pretrained, join=join)
    return Predictor(featurizer, build_head(head, featurizer.width, targets), delta)


def write_predictor(
    folder: Path, predictor: Predictor | PredictorEnsemble, export: Export, info: PredictorInfo
) -> None:
    """Write a sealed predictor: the weights it uses, the pretrained model's recipe, and its own description."""
    kept = set(info.modalities)
    weights = contiguous(predictor.state_dict())
    with sealing(folder) as stage:
        safetensors.torch.save_file(weights if info.members == 1 else kept_once(weights), stage / WEIGHTS)
        write_json(stage / RECIPE, export.recipe.resolved())
        specs = {name: spec.model_dump(mode="json") for name, spec in export.specs.items()}
        write_json(stage / SCHEMA, specs)
        write_json(stage / FITTED, {name: values for name, values in export.fitted.items() if name in kept})
        write_json(stage / PREDICTOR, vars(info))
        sources = getattr(predictor.featurizer, "sources", None)
        if sources is not None:
            write_json(stage / EXPERTS, {"experts": sources})
        (stage / CARD).write_text(model_card(info))


def read_predictor(folder: Path) -> tuple[AnyPredictor, PredictorInfo, Export]:
    """Verify a stored predictor, then build it in evaluation mode; the export is that of its model, without weights."""
    verify(folder, error=CheckpointError)
    mixed = (EXPERTS,) if (folder / EXPERTS).exists() else ()
    try:
        tables = read_tables_of(folder, (RECIPE, SCHEMA, FITTED, PREDICTOR, *mixed))
        info = stored_info(tables[PREDICTOR])
        specs = {name: ModalitySpec.model_validate(spec) for name, spec in tables[SCHEMA].items()}
        weights = safetensors.torch.load_file(folder / WEIGHTS)
        experts = list(tables[EXPERTS]["experts"]) if mixed else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError("this is no predictor of matloom", where=folder, why=str(error)) from None
    recipe = parse_recipe(tables[RECIPE], where=str(folder / RECIPE))
    export = Export(recipe=recipe, specs=specs, fitted=with_weights(tables[FITTED]), metrics={}, weights={})
    predictor: AnyPredictor = unfilled(info, export, experts)
    # as it was called before there were several joins
    weights = {name.replace("featurizer.missing.", "featurizer.join.missing."): w for name, w in weights.items()}
    if info.members > 1:
        predictor = PredictorEnsemble([unfilled(info, export, experts) for _ in range(info.members)], info.how)
        weights = of_every_member(weights, info.members)
    try:
        predictor.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError("the weights do not fit the recipe", where=folder, why=str(error)) from None
    return predictor.eval(), info, export


def stored_info(table: Mapping[str, Any]) -> PredictorInfo:
    """Return what a predictor's JSON says; raise `ValueError` or `TypeError` where it is none."""
    info = PredictorInfo(**{**table, **{name: tuple(table.get(name, ())) for name in TUPLES}})
    if not isinstance(info.members, int) or not 1 <= info.members <= MOST_MEMBERS or info.how not in get_args(How):
        raise ValueError(f"an ensemble of {info.members!r} members by {info.how!r}")
    if not all(isinstance(part, str) for part in (info.split, *info.data_contents)):
        raise ValueError("split and data_contents are texts")
    return info


def unfilled(info: PredictorInfo, export: Export, experts: Sequence[Mapping[str, Any]] | None = None) -> Predictor:
    """Return a predictor as it is stored, before it gets its weights."""
    adaptation: Adaptation = ADAPTATIONS.options(info.adaptation)
    if adaptation.own_encoders and experts is None:
        raise CheckpointError("a mixture of experts is stored without its experts", why=f"there is no {EXPERTS}")
    try:
        predictor = build_predictor(
            export,
            info.modalities,
            HEADS.options(info.head),
            info.targets,
            adaptation=adaptation,
            fusion=info.fusion,
            delta=info.delta,
            pretrained=False,
            experts=experts,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError("no predictor can be built from this description", why=repr(error)) from None
    adaptation.insert(predictor, stored=True)
    return predictor


def build_head(options: Options, width: int, targets: tuple[str, ...]) -> Head:
    """Return a new head over ``width`` features."""
    return HEADS.get(options.kind)(options, width, targets)


def model_card(info: PredictorInfo) -> str:
    """Return a Markdown card: what is predicted, from what, how it was trained, how good it is, how to use it."""
    joined = "side by side" if info.fusion is None else f"`{info.fusion['kind']}`"
    lines = [
        f"# {', '.join(grouped(info.targets))}",
        "",
        f"Predicts {', '.join(_counted(grouped(info.targets)))} ({info.task}) from {', '.join(info.modalities)}"
        + (", of which any may be missing." if len(info.modalities) > 1 else "."),
        "",
        f"- pretrained model: `{info.foundation}` (seal {info.foundation_seal})",
        f"- training: {info.strategy}, adaptation `{json.dumps(info.adaptation)}`",
        f"- join of the encoders: {joined}; head `{info.head['kind']}`",
    ]
    if info.members > 1:
        lines.append(f"- an ensemble: the {info.how} of {info.members} members")
    if info.start:
        lines.append(f"- started from the predictor `{info.start}`")
    if info.delta:
        lines.append(f"- adds its prediction to {', '.join(f'`{name}`' for name in info.delta)}, which must be given")
    if info.calibration is None:
        lines.append("- no calibrated intervals")
    else:
        what = "intervals" if info.task == "regression" else "probabilities and sets of classes"
        what = f"{what}, for {info.calibration['level']:.0%}," if info.calibration.get("quantile") else "probabilities"
        rows = (
            "out-of-fold predictions"
            if any(name.startswith("fold_") for name in info.metrics)
            else "the validation part"
        )
        lines.append(f"- {what} calibrated on {rows} (`{info.calibration['score']}`)")
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in sorted(info.metrics.items())]
    lines += [
        "",
        "`val_` metrics are those of the part by which the epoch and the row were chosen: expect a little worse.",
        "Use: `from finetune import load; load(uri).predict(structure)`.",
        "",
    ]
    return "\n".join(lines)


def _counted(targets: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the names of targets, those of several numbers with their number."""
    return [
        f"`{name}`" if len(columns) == 1 else f"`{name}` ({len(columns)} numbers)" for name, columns in targets.items()
    ]
