"""A loaded predictor of pairs of materials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.loading import PropertyModel
from finetune.materials import to_known_sample
from finetune.pair_table import read_pairs
from finetune.predicted import Predicted, Predictions
from finetune.prediction import Prediction
from shards.errors import ConfigError, DataError
from shards.locate import locate
from shards.reader import Dataset
from shards.schema import Sample


@dataclass(frozen=True)
class PairModel(PropertyModel):
    """A fine-tuned model of two materials together; which of them comes first changes nothing."""

    def predict(self, materials: Any, *, batch_size: int = 64) -> Predicted | dict[str, Predicted] | Predictions:
        """Predict the targets of one pair or several.

        Parameters
        ----------
        materials : tuple of two, or iterable of tuples of two
            ``(a, b)`` is one pair, ``[(a, b), (c, d)]`` are two; each partner as `finetune.materials` reads it.
        batch_size : int
            Pairs that are predicted together.

        Returns
        -------
        Predicted, or dict of str to Predicted
            Of one pair; a dict by target where there are several targets.
        Predictions
            Of several pairs, in their order; their ids are ``"a + b"``.
        """
        alone = isinstance(materials, tuple)
        pairs = [materials] if alone else list(materials)
        if not pairs:
            raise DataError("there are no pairs to predict", do="give [(a, b), ...]")
        samples = []
        for number, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise DataError(
                    f"number {number} is no pair of materials", why="the model predicts pairs", do="give [(a, b), ...]"
                )
            samples += [
                to_known_sample(one, self.specs, id=f"{number}{side}") for one, side in zip(pair, "ab", strict=True)
            ]
        ids = [f"{a.id} + {b.id}" for a, b in zip(samples[::2], samples[1::2], strict=True)]
        # two rows a pair, so that no batch parts partners
        found = super().estimate(samples, batch_size=2 * batch_size)
        predictions = Predictions(ids, self.info, found)
        return predictions[0] if alone else predictions

    def estimate(self, samples: Sequence[Sample], *, batch_size: int = 64, calibrated: bool = True) -> Prediction:
        """Refuse single materials: evaluations, screens and streams are of these."""
        raise ConfigError("the model predicts pairs of materials, not single ones", do="model.predict([(a, b), ...])")


def predict_table(
    model: PropertyModel, table: Path, data: str | None = None, *, batch_size: int = 64
) -> tuple[list[tuple[str, str]], Predictions]:
    """Predict all pairs of a table.

    Parameters
    ----------
    model : PropertyModel
        From `finetune.load`; it must be one of pairs.
    table : Path
        CSV with the columns ``id_a`` and ``id_b``.
    data : str, optional
        The data set whose ids these are. Without it they are files, seen from the table's folder, or SMILES.
    batch_size : int
        Pairs that are predicted together.
    """
    if not isinstance(model, PairModel):
        raise ConfigError("the model predicts single materials, not pairs", do="leave --pairs out")
    if data is not None:
        dataset = Dataset(locate(data), list(model.specs))
        place = {sample.id: position for position, sample in enumerate(dataset.select([]))}
        named = read_pairs(table, known=place).pairs
        given: list[tuple[Any, Any]] = [(dataset[place[a]], dataset[place[b]]) for a, b in named]
    else:
        named = read_pairs(table).pairs
        given = [(_from(table.parent, a), _from(table.parent, b)) for a, b in named]
    found = model.predict(given, batch_size=batch_size)
    assert isinstance(found, Predictions)
    return named, found


def _from(folder: Path, name: str) -> str:
    return str(folder / name) if (folder / name).is_file() else name
