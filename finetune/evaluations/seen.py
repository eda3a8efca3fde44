"""What a model has seen in training is not held out."""

from __future__ import annotations

from finetune.evaluations.base import Subject
from finetune.loading import Foundation
from finetune.predictor import FOLDS
from finetune.trained_on import TrainedOn
from shards.errors import ConfigError


def check_unseen(subject: Subject) -> None:
    """Refuse another split of the data that the model was trained on: its parts hold rows of the training.

    Of a predictor that was stored before it said what it was trained on, nothing is known, and nothing is refused.
    """
    model = subject.model
    trained = TrainedOn.of(model.export if isinstance(model, Foundation) else model.info)
    if not trained.has_seen(subject.dataset, subject.split):
        return
    if trained.split == FOLDS:
        raise ConfigError(
            "the predictor was trained on folds of this data set: every row was in some of them",
            where="split",
            do="evaluate on other data; what it does on rows it has not seen stands in the table of its folds",
        )
    raise ConfigError(
        f"the model was trained on split '{trained.split}' of this data set",
        where="split",
        why=f"parts of '{subject.split}' hold rows that it was trained on",
        do=f"--split {trained.split}, or train on '{subject.split}' from the start, the pretraining included",
    )
