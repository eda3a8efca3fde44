from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.batch import collate, placeholder
from shards.schema import ModalitySpec, Sample
from tests.synthetic import FEATURES, GRAPH_FIELDS, POINTS, ToySpectrum, ToyVector, graph, records

SPECS = {
    "crystal": ModalitySpec(name="crystal", kind="graph", fields=GRAPH_FIELDS),
    "dos": ToySpectrum().spec("dos"),
    "a": ToyVector(step="a").spec("a"),
    "text": ModalitySpec(name="text", kind="text"),
}


@st.composite
def batches(draw: st.DrawFn) -> list[Sample]:
    samples = []
    for i in range(draw(st.integers(0, 6))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        arrays = {}
        if draw(st.booleans()):
            arrays["crystal"] = graph(rng, atoms=draw(st.integers(1, 5)), edges=draw(st.integers(0, 5)))
        if draw(st.booleans()):
            arrays["dos"] = {"intensity": rng.normal(size=POINTS).astype(np.float16)}
        text = {"text": f"sample {i}"} if draw(st.booleans()) else {}
        samples.append(Sample(id=str(i), arrays=arrays, text=text, labels={"x": float(i)} if i % 2 else {}))
    return samples


@settings(deadline=None)
@given(batches())
def test_collation_equals_a_literal_loop(samples: list[Sample]) -> None:
    batch = collate(samples, SPECS, ["x", "never"])
    assert batch.ids == [sample.id for sample in samples]
    assert set(batch.present) == set(SPECS)
    for name in SPECS:
        assert batch.present[name].tolist() == [name in sample.modalities for sample in samples]
        assert (name in batch.inputs) == any(name in sample.modalities for sample in samples)
    labels = [[float(i) if i % 2 else float("nan"), float("nan")] for i in range(len(samples))]
    assert batch.labels.shape == (len(samples), 2)
    np.testing.assert_array_equal(batch.labels.numpy(), np.array(labels, np.float32).reshape(-1, 2))
    if "text" in batch.inputs:
        assert batch.inputs["text"] == {"text": [s.text["text"] for s in samples if s.text]}
    if "dos" in batch.inputs:
        rows = [s.arrays["dos"]["intensity"] for s in samples if "dos" in s.arrays]
        assert batch.inputs["dos"]["intensity"].dtype == torch.float16
        np.testing.assert_array_equal(batch.inputs["dos"]["intensity"].numpy(), rows)
    if "crystal" in batch.inputs:
        check_graphs(batch.inputs["crystal"], [s.arrays["crystal"] for s in samples if "crystal" in s.arrays])


def check_graphs(inputs: dict, values: list[dict[str, np.ndarray]]) -> None:
    numbers, positions, atom_row, edges, edge_row, cells = [], [], [], [], [], []
    for row, value in enumerate(values):
        first = len(numbers)
        for atom in range(len(value["number"])):
            numbers.append(int(value["number"][atom]))
            positions.append(value["position"][atom].tolist())
            atom_row.append(row)
        for edge in range(value["edge"].shape[1]):
            edges.append([first + int(value["edge"][0, edge]), first + int(value["edge"][1, edge])])
            edge_row.append(row)
        cells.append(value["cell"].tolist())
    assert inputs["number"].tolist() == numbers
    assert inputs["position"].tolist() == positions
    assert inputs["cell"].tolist() == cells
    assert inputs["atoms_row"].tolist() == atom_row
    assert inputs["edges_row"].tolist() == edge_row
    assert inputs["edge"].T.tolist() == edges
    assert inputs["edge"].dtype == inputs["atoms_row"].dtype == inputs["atoms_ptr"].dtype == torch.int64
    for axis, rows in (("atoms", atom_row), ("edges", edge_row)):
        pointer = inputs[f"{axis}_ptr"].tolist()
        assert pointer[0] == 0
        assert np.diff(pointer).tolist() == [rows.count(row) for row in range(len(values))]
    # no edge leaves its own graph
    assert all(atom_row[a] == atom_row[b] == row for (a, b), row in zip(edges, edge_row, strict=True))


def test_indices_are_shifted_past_the_range_of_their_stored_type() -> None:
    field = {"number": GRAPH_FIELDS["number"], "edge": GRAPH_FIELDS["edge"].model_copy(update={"dtype": "uint8"})}
    spec = ModalitySpec(name="g", kind="graph", fields=field)
    value = {"number": np.ones(200, np.uint8), "edge": np.array([[199], [0]], np.uint8)}
    samples = [Sample(id=str(i), arrays={"g": value}) for i in range(3)]
    assert collate(samples, {"g": spec}).inputs["g"]["edge"].tolist() == [[199, 399, 599], [0, 200, 400]]


@pytest.mark.parametrize("name", list(FEATURES))
def test_a_placeholder_is_one_row_of_the_modality(name: str) -> None:
    spec = FEATURES[name].spec(name)
    samples = (Sample(id=r.id, text={"text": r.text}) if name == "text" and r.text
               else Sample(id=r.id, arrays={name: value}) for r in records()
               if (value := FEATURES[name](r)) is not None)  # fmt: skip
    real = collate([next(samples)], {name: spec}).inputs[name]
    dummy = placeholder(spec)
    assert set(dummy) == set(real)
    for field, value in dummy.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == real[field].dtype
            assert value.ndim == real[field].ndim
            assert value.isfinite().all()
    if name == "crystal":
        assert dummy["edge"].tolist() == [[0], [0]]
        assert dummy["atoms_ptr"].tolist() == [0, 1]


def test_moving_a_batch_keeps_it() -> None:
    samples = [Sample(id="x", arrays={"a": {"values": np.ones(6, np.float32)}}, text={"text": "t"}, labels={"l": 1})]
    batch = collate(samples, SPECS, ["l"])
    moved = batch.to("meta")
    assert (
        moved.inputs["a"]["values"].device.type == moved.present["a"].device.type == moved.labels.device.type == "meta"
    )
    assert moved.inputs["text"] == {"text": ["t"]}
    assert batch.inputs["a"]["values"].device.type == "cpu"
