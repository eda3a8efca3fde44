"""Encoders of tables: cells that are not known, columns in another order, statistics of the training values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.encoders.tables import TableEncoder
from shards.batch import collate_modality
from shards.features.table import TableFeature
from shards.sources.base import Record
from tests.unit.pretrain.encoders.arrays import CELLS, build, inputs, rows, vectors

KINDS = ["ft_transformer", "table_mlp"]


def spoiled(payload):
    found = []
    for value in rows("table"):
        numeric = np.where(value["known"] > 0, value["numeric"], np.float32(payload))
        found.append({**value, "numeric": numeric})
    return found


@pytest.mark.parametrize("kind", KINDS)
class TestUnknown:
    @pytest.mark.parametrize("payload", [np.nan, 1e30, -7.0])
    def test_what_stands_in_an_unknown_cell_changes_nothing(self, kind, payload, monkeypatch):
        encoder = build(kind, "table")
        fitted = encoder.fit(encoder.spec, encoder.config, spoiled(payload))
        assert fitted == encoder.fit(encoder.spec, encoder.config, rows("table"))
        assert torch.equal(vectors(encoder, "table", spoiled(payload)), vectors(encoder, "table"))

    def test_a_reader_that_forgets_the_mask_is_caught(self, kind, monkeypatch):
        def forgetful(self, table):
            scaled = (table["numeric"] - self.centre) / self.scale
            return scaled, torch.ones_like(scaled, dtype=torch.bool)

        encoder = build(kind, "table")
        monkeypatch.setattr(TableEncoder, "numbers", forgetful)
        assert not torch.equal(vectors(encoder, "table", spoiled(-7.0)), vectors(encoder, "table"))

    def test_unknown_is_not_the_mean(self, kind):
        encoder, value = build(kind, "table"), rows("table")[0]
        mean = encoder.centre.numpy()
        known = {**value, "numeric": mean}
        unknown = {**known, "known": np.array([0, 1, 1], np.uint8)}
        a, b = vectors(encoder, "table", [known, unknown])
        assert (a - b).abs().max() > 1e-3

    def test_a_new_category_is_an_unknown_one(self, kind):
        encoder, value = build(kind, "table"), rows("table")[0]
        new, none = ({**value, "categories": np.array([code, 1], np.int32)} for code in (7, 0))
        a, b, seen = vectors(encoder, "table", [new, none, value])
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(a, seen, atol=1e-3)


def test_statistics_are_of_known_training_values():
    encoder = build("ft_transformer", "table")
    columns = [[row[name] for row in CELLS if name in row] for name in ("voltage_kv", "flow_ml_h", "humidity")]
    torch.testing.assert_close(encoder.centre, torch.tensor([np.mean(c) for c in columns], dtype=torch.float32))
    torch.testing.assert_close(encoder.scale, torch.tensor([np.std(c) for c in columns], dtype=torch.float32))
    zeros_counted = np.mean([row.get("humidity", 0.0) for row in CELLS])
    assert abs(float(encoder.centre[2]) - zeros_counted) > 1


def test_a_constant_column_keeps_its_scale():
    values = [
        {**value, "numeric": np.full(3, 0.1, np.float32), "known": np.ones(3, np.uint8)} for value in rows("table")
    ]
    encoder = build("table_mlp", "table", values=values)
    assert encoder.scale.tolist() == [1.0, 1.0, 1.0]


class TestFTTransformer:
    def test_a_number_is_a_multiple_of_its_columns_vector(self):
        encoder, value = build("ft_transformer", "table"), rows("table")[1]
        (columns,) = encoder.columns(inputs("table", [value]))
        x = (value["numeric"][0] - encoder.centre[0]) / encoder.scale[0]
        torch.testing.assert_close(columns[0], x * encoder.weight[0] + encoder.bias[0])
        torch.testing.assert_close(columns[1:3], encoder.unknown[1:3])
        torch.testing.assert_close(columns[3], encoder.category.weight[1] + encoder.category_bias[0])
        torch.testing.assert_close(columns[4], encoder.category.weight[3] + encoder.category_bias[1])

    def test_columns_may_be_reordered_with_their_parameters(self):
        encoder, order = build("ft_transformer", "table", depth=2), [2, 0, 1]
        before = vectors(encoder, "table")
        moved = [
            {**value, "numeric": value["numeric"][order], "known": value["known"][order]} for value in rows("table")
        ]
        assert not torch.allclose(vectors(encoder, "table", moved), before, atol=1e-3)
        with torch.no_grad():
            for name in ("centre", "scale", "weight", "bias", "unknown"):
                getattr(encoder, name).copy_(getattr(encoder, name)[order].clone())
        torch.testing.assert_close(vectors(encoder, "table", moved), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feature", [TableFeature(columns=("a", "b")), TableFeature(categorical={"c": ("x", "y")})])
def test_tables_of_numbers_or_categories_alone(kind, feature):
    values = [feature(Record(id="r", columns={"a": float(i), "c": "xy"[i]})) for i in range(2)]
    encoder = build(kind, "table", spec=feature.spec("t"), values=values)
    a, b = encoder(collate_modality(feature.spec("t"), values)).vector
    assert not torch.allclose(a, b)
