from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.freeze import freeze
from finetune.heads.base import HEADS
from finetune.loading import PropertyModel, load
from finetune.predictor import Predictor, PredictorInfo, build_featurizer, build_head, write_predictor
from pretrain.export import read_export
from shards.batch import collate
from shards.errors import CheckpointError, ConfigError, DataError
from shards.reader import Dataset

OPTIONS = {"kind": "regression", "hidden": 8}
INFO = PredictorInfo(
    targets=("gap_ev",),
    task="regression",
    modalities=("a", "b"),
    head=OPTIONS,
    foundation="models:/toy@champion",
    foundation_seal="0",
    strategy="frozen",
    metrics={"val_mae": 0.5},
)


@pytest.fixture
def predictor(export_folder: Path) -> Predictor:
    torch.manual_seed(0)
    featurizer = build_featurizer(read_export(export_folder), INFO.modalities, pretrained=True)
    predictor = Predictor(featurizer, build_head(HEADS.options(OPTIONS), featurizer.width, INFO.targets))
    torch.nn.init.normal_(predictor.featurizer.join.missing["b"])
    return predictor.eval()


def test_a_stored_predictor_predicts_the_same(
    predictor: Predictor, export_folder: Path, toy: Dataset, tmp_path: Path
) -> None:
    write_predictor(tmp_path / "p", predictor, read_export(export_folder), INFO)
    model = load(str(tmp_path / "p"))
    assert isinstance(model, PropertyModel) and model.info == replace(INFO, head=model.info.head)
    samples = list(toy)[:20]
    expected = predictor.predict(collate(samples, model.specs)).value[:, 0].numpy()
    np.testing.assert_array_equal(model.predict(samples), expected)
    assert model.predict(samples[0]) == pytest.approx(expected[0], abs=1e-6)


def test_a_damaged_predictor_is_refused_by_name(predictor: Predictor, export_folder: Path, tmp_path: Path) -> None:
    write_predictor(tmp_path / "p", predictor, read_export(export_folder), INFO)
    weights = tmp_path / "p" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\n.*model.safetensors"):
        load(str(tmp_path / "p"))


def test_no_file_of_an_export_can_be_executed(export_folder: Path) -> None:
    assert {path.suffix for path in export_folder.iterdir()} <= {".safetensors", ".json", ".md"}


def test_missing_modalities_get_the_learned_vector_and_influence_no_other_row(
    predictor: Predictor, toy: Dataset
) -> None:
    specs = {name: toy.modalities[name] for name in INFO.modalities}
    samples = [s for s in toy if "a" in s.modalities]
    lacking = [i for i, s in enumerate(samples) if "b" not in s.modalities]
    assert 0 < len(lacking) < len(samples)
    together = predictor.predict(collate(samples, specs)).value[:, 0]
    alone = torch.cat([predictor.predict(collate([sample], specs)).value[:, 0] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        predictor.featurizer.join.missing["b"] += 1.0
    moved = (predictor.predict(collate(samples, specs)).value[:, 0] - together).abs() > 1e-6
    assert moved.nonzero().squeeze(1).tolist() == lacking


def test_pretrained_encoders_are_the_exported_ones_and_scratch_is_not(export_folder: Path) -> None:
    export = read_export(export_folder)
    name = next(n for n in export.weights if n.startswith("encoders.a.") and export.weights[n].ndim == 2)
    inner = name.removeprefix("encoders.a.")
    pretrained = build_featurizer(export, ["a"], pretrained=True).encoders["a"].state_dict()[inner]
    scratch = build_featurizer(export, ["a"], pretrained=False).encoders["a"].state_dict()[inner]
    assert torch.equal(pretrained, export.weights[name])
    assert not torch.equal(scratch, export.weights[name])


def test_a_frozen_featurizer_keeps_its_weights(predictor: Predictor, toy: Dataset) -> None:
    freeze(predictor.featurizer)
    assert [name for name, p in predictor.named_parameters() if p.requires_grad and not name.startswith("head.")] == []


def test_what_the_model_cannot_read_is_said(predictor: Predictor, export_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no modality 'z'"):
        build_featurizer(read_export(export_folder), ["z"], pretrained=True)
    write_predictor(tmp_path / "p", predictor, read_export(export_folder), INFO)
    from shards.schema import Sample

    with pytest.raises(DataError, match="none of the modalities"):
        load(str(tmp_path / "p")).predict(Sample(id="empty"))
