"""Whether a predictor knows how wrong it is: before and after calibration on the validation part."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from finetune.ensembles import Ensemble, combine, error_parts, mc_dropout, spread
from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.confidence import classes_found
from finetune.evaluations.intervals import numbers_found
from finetune.evaluations.rows import Rows, predictor_of, rows_of
from finetune.evaluations.seen import check_unseen
from finetune.evaluations.stated import Found, Stated
from finetune.loading import PropertyModel
from finetune.prediction import Prediction
from pretrain.plots import Row
from shards.errors import ConfigError

Level = Annotated[float, Field(gt=0, lt=1)]
CALIBRATED_ON = "val"


@EVALUATIONS.register("uncertainty")
class Uncertainty(Evaluation):
    """Coverage of intervals and sets of classes, calibration, and what is gained by leaving uncertain rows aside.

    Attributes
    ----------
    level : float
        Of the intervals or sets of classes that are shown row by row.
    levels : tuple of float
        Of which the coverage is measured.
    members : tuple of str
        URIs of further predictors of the same targets: with the model they are an ensemble.
    draws : int
        Predictions with dropout on; 0: the uncertainty is that of the head.
    """

    wants: ClassVar[type] = PropertyModel

    kind: Literal["uncertainty"] = "uncertainty"
    level: Level = 0.9
    levels: tuple[Level, ...] = (0.5, 0.68, 0.8, 0.9, 0.95)
    members: tuple[str, ...] = ()
    draws: int = Field(0, ge=0)

    def __call__(self, subject: Subject) -> Findings:
        """Calibrate on the validation part, measure on the part of the subject."""
        model = predictor_of(subject)
        self._check(subject)
        held, tested = rows_of(subject, CALIBRATED_ON), rows_of(subject, subject.part)
        others = Ensemble.load(self.members).members if self.members else ()
        for other in others:
            check_unseen(replace(subject, model=other))
        members = [self._predictions((model, *others), rows, subject.seed) for rows in (held, tested)]
        joined = [found[0] if len(found) == 1 else combine(found) for found in members]
        stated = Stated(
            names=model.info.targets,
            task=model.info.task,
            held=joined[0],
            held_targets=held.targets,
            tested=joined[1],
            targets=tested.targets,
            ids=[sample.id for sample in tested.samples],
        )
        levels = tuple(sorted({*self.levels, self.level}))
        numbers = stated.task == "regression"
        found = (numbers_found if numbers else classes_found)(stated, levels, self.level)
        if len(members[1]) > 1 and numbers:
            found = found.joined(_ensemble(model.info.targets, members[1], tested.targets))
        return Findings(
            title=f"Uncertainty on part '{subject.part}' of split '{subject.split}'",
            text=self._text(subject, found),
            values=found.values,
            tables=found.tables,
            plots=found.plots,
        )

    def _check(self, subject: Subject) -> None:
        if subject.part in (CALIBRATED_ON, "train"):
            raise ConfigError(
                f"the predictor was chosen and is calibrated on what part '{subject.part}' holds",
                where="part",
                do="--part test",
            )
        if self.members and self.draws:
            raise ConfigError("an ensemble is of members or of draws with dropout, not both", where="uncertainty")

    def _predictions(self, models: tuple[PropertyModel, ...], rows: Rows, seed: int) -> list[Prediction]:
        """Return what is to be combined, before any calibration."""
        if self.draws:
            return mc_dropout(models[0], rows.samples, draws=self.draws, seed=seed)
        return Ensemble(models).predictions(rows.samples)

    def _text(self, subject: Subject, found: Found) -> str:
        source = "the head"
        if self.members:
            source = f"{len(self.members) + 1} predictors"
        elif self.draws:
            source = f"{self.draws} draws with dropout on"
        return (
            f"The uncertainty is that of {source}. Everything is calibrated on part '{CALIBRATED_ON}', by which the "
            f"predictor was chosen too, and measured on '{subject.part}'. {found.text}"
            " Conformal intervals and sets hold their level for rows that are exchangeable with those of the "
            "calibration; a split by groups or by values is a shift, under which coverage is measured, not promised: "
            "where it is outside of low .. high, rows of the two parts are not alike (or the choice by the validation "
            "part shows)."
        )


def _ensemble(names: tuple[str, ...], members: list[Prediction], targets: Tensor) -> Found:
    """Say what the ensemble gains over a member, and where its spread comes from."""
    parts = spread(members)
    rows: list[Row] = []
    for i, name in enumerate(names):
        column = targets[:, i : i + 1]
        known = ~column.squeeze(1).isnan()
        if not known.any():
            continue
        gained = error_parts(torch.stack([member.value[:, i : i + 1] for member in members]), column)
        sizes = {
            kind: float(std[known, i].square().mean().sqrt()) for kind, std in zip(parts._fields, parts, strict=True)
        }
        rows.append({"target": name, "members": len(members), **gained, **sizes})
    values = {f"{row['target']}/{key}": float(row[key]) for row in rows for key in ("mse_ensemble", "mse_mean_member")}
    return Found("", values, {"ensemble": rows}, {})
