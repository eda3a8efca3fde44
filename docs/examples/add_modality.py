"""A new modality, from the feature step to a trained model: the composition of a crystal as a vector.

python docs/examples/add_modality.py FOLDER
"""

import sys
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pretrain.config import load_recipe
from pretrain.train import Trainer
from shards.build import SplitPlan, build
from shards.features import FEATURES, Feature, feature
from shards.schema import FieldSpec, Kind, ModalitySpec
from shards.sources.embedded import embedded_records


@FEATURES.register("composition")
class Composition(Feature):
    """Structure -> share of each element, by atomic number."""

    kind: ClassVar[Kind] = "vector"
    step: Literal["composition"] = "composition"

    def spec(self, name):
        fields = {"values": FieldSpec(dtype="float32", shape=(119,))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record):
        if record.structure is None:
            return None  # the modality is missing: absent, never zeros
        counts = np.bincount(record.structure.atomic_numbers, minlength=119)
        return {"values": (counts / counts.sum()).astype(np.float32)}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    steps = {name: feature({"step": name}) for name in ("crystal", "dos", "composition")}
    records = islice(embedded_records("dft_crystals"), 120)
    build(records, steps, out / "shards", name="mine", splits={"chemical_system": SplitPlan(by="chemical_system")})
    recipe = Path(__file__).with_name("add_modality.toml")
    Trainer(load_recipe(recipe, [f"data.path={out / 'shards'}"]), out / "run").run()
