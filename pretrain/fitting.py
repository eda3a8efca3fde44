"""What encoders learn of the training samples before they are built: vocabularies, units, statistics."""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.config import Recipe
from pretrain.parts import Fitted, fit_encoders
from shards.mixture import Mixture
from shards.reader import Dataset
from shards.schema import Value

FIT_SAMPLES = 20_000


def fit(recipe: Recipe, dataset: Dataset | Mixture) -> Fitted:
    """Fit what the encoders must know to the training samples, or to some of them."""
    positions = dataset.positions(recipe.data.split, "train")
    # evenly spread, so that every data set of a mix is looked at
    positions = positions[:: -(-len(positions) // FIT_SAMPLES)]

    def values(modality: str) -> Iterator[Value]:
        alone = dataset.select([modality])
        for position in positions:
            value = alone[int(position)].value(modality)
            if value is not None:
                yield value

    return fit_encoders(recipe, dataset.modalities, values)
