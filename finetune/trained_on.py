"""What a model has seen in training is not held out."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.predictor import PredictorInfo
from pretrain.export import Export
from shards.reader import Dataset


@dataclass(frozen=True)
class TrainedOn:
    """The data that a model was trained on.

    Of a predictor that was stored before it said so nothing is known: it shares its data with none.

    Attributes
    ----------
    split : str
        How they were divided; see `finetune.predictor.PredictorInfo`.
    contents : tuple of str
        What they are; see `shards.reader.Dataset.contents`.
    """

    split: str
    contents: tuple[str, ...]

    @classmethod
    def of(cls, model: Export | PredictorInfo) -> TrainedOn:
        """Return what a pretrained model, or a predictor, says of itself."""
        if isinstance(model, PredictorInfo):
            return cls(model.split, model.data_contents)
        return cls(model.recipe.data.split, tuple(model.metrics.get("data_contents", ())))

    def shares(self, dataset: Dataset) -> bool:
        """Say whether a data set is the same, or part of the same mix."""
        return bool(set(self.contents) & set(dataset.contents))

    def has_seen(self, dataset: Dataset, split: str) -> bool:
        """Say whether parts of a split hold rows of the training: that of the same data by another split."""
        return self.shares(dataset) and self.split != split
