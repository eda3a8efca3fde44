"""Variations of training values: off by default, decided by the generator, and true to what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from shards.augment import Augment, augment
from shards.errors import ConfigError
from shards.schema import FieldSpec, ModalitySpec

GRAPH = ModalitySpec(
    name="crystal",
    kind="graph",
    fields={
        "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
        "frac_coords": FieldSpec(dtype="float32", shape=("atoms", 3)),
        "lattice": FieldSpec(dtype="float32", shape=(3, 3)),
        "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
        "edge_vector": FieldSpec(dtype="float32", shape=("edges", 3)),
    },
)
SPECTRUM = ModalitySpec(name="dos", kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(101,))})
GRID = ModalitySpec(name="rho", kind="grid", fields={"density": FieldSpec(dtype="float16", shape=(8, 8, 8))})
TEXT = ModalitySpec(name="text", kind="text")

STRONG = Augment(
    jitter_a=0.1, strain=0.02, noise=0.1, scale=0.1, shift=2.0, stretch=0.01,
    roll=1.0, permute=1.0, flip=0.5, drop_sentences=0.4, drop_words=0.3,
)  # fmt: skip


def values():
    rng = np.random.default_rng(0)
    lattice = (np.eye(3) * 4).astype(np.float32)
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]], dtype=np.float32)
    graph = {
        "atomic_numbers": np.array([11, 17], dtype=np.uint8),
        "frac_coords": frac,
        "lattice": lattice,
        "edge_index": np.array([[1, 0, 0], [0, 1, 0]], dtype=np.int32),
        "edge_vector": np.array([[2, 2, 2], [-2, -2, -2], [4, 0, 0]], dtype=np.float32),
    }
    return [
        (GRAPH, graph),
        (SPECTRUM, {"intensity": rng.random(101).astype(np.float32)}),
        (GRID, {"density": rng.random((8, 8, 8)).astype(np.float16)}),
        (TEXT, "NaCl is cubic. Na is bonded to Cl. All bonds are 2.82 A long."),
    ]


def same(a, b):
    return a == b if isinstance(a, str) else all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("spec", "value"), values(), ids=lambda v: getattr(v, "kind", ""))
class TestEveryKind:
    def test_off_is_identity(self, spec, value):
        assert same(augment(spec, value, np.random.default_rng(0), Augment()), value)

    def test_generator_decides(self, spec, value):
        first, again, other = (augment(spec, value, np.random.default_rng(seed), STRONG) for seed in (1, 1, 3))
        assert same(first, again)
        assert not same(first, other)

    def test_result_satisfies_the_spec_and_leaves_the_input_alone(self, spec, value):
        before = value if isinstance(value, str) else {name: array.copy() for name, array in value.items()}
        for seed in range(10):
            spec.check(augment(spec, value, np.random.default_rng(seed), STRONG))
        assert same(value, before)


def test_jitter_moves_edges_with_their_atoms():
    _, graph = values()[0]
    moved = augment(GRAPH, graph, np.random.default_rng(0), Augment(jitter_a=0.1))
    assert np.array_equal(moved["edge_vector"][2], graph["edge_vector"][2])  # an atom and its own image
    np.testing.assert_allclose(moved["edge_vector"][0], -moved["edge_vector"][1], atol=1e-6)
    shift = (moved["frac_coords"] - graph["frac_coords"]) @ graph["lattice"]
    np.testing.assert_allclose(moved["edge_vector"][0] - graph["edge_vector"][0], shift[1] - shift[0], atol=1e-5)


def test_jitter_moves_the_atoms_of_a_molecule_and_the_edges_between_them():
    positions = np.array([[0, 0, 0], [1.5, 0, 0], [0, 1.2, 0]], dtype=np.float32)
    neighbour, centre = edges = np.array([[1, 2, 0, 0], [0, 0, 1, 2]], dtype=np.int32)
    graph = {
        "atomic_numbers": np.array([6, 6, 8], dtype=np.uint8),
        "positions": positions,
        "edge_index": edges,
        "edge_vector": positions[neighbour] - positions[centre],
    }
    spec = ModalitySpec(
        name="conformer",
        kind="graph",
        fields={
            "atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",)),
            "positions": FieldSpec(dtype="float32", shape=("atoms", 3)),
            "edge_index": FieldSpec(dtype="int32", shape=(2, "edges"), index_of="atoms"),
            "edge_vector": FieldSpec(dtype="float32", shape=("edges", 3)),
        },
    )
    drawn = [augment(spec, graph, np.random.default_rng(seed), Augment(jitter_a=0.1)) for seed in range(500)]
    for moved in drawn:
        spec.check(moved)
        np.testing.assert_allclose(
            moved["edge_vector"], moved["positions"][neighbour] - moved["positions"][centre], atol=1e-6
        )
    spread = np.std([moved["positions"] - positions for moved in drawn], axis=0)
    np.testing.assert_allclose(spread, 0.1, rtol=0.15)


def test_a_graph_of_any_fields_that_pass_the_check_is_varied():
    """Graphs of others' shards have the fields that their owners chose."""
    fields = {
        "lattice": FieldSpec(dtype="float64", shape=(3, 3)),
        "positions": FieldSpec(dtype="float64", shape=("atoms", 3)),
    }
    spec, lattice = ModalitySpec(name="crystal", kind="graph", fields=fields), 4 * np.eye(3)
    fractional = np.array([[0, 0, 0], [0.5, 0.25, 0.5]])
    graph = {"lattice": lattice, "positions": fractional @ lattice}
    config = Augment(strain=0.02)
    config.check(spec)
    strained = augment(spec, graph, np.random.default_rng(0), config)
    assert not np.allclose(strained["lattice"], lattice)
    np.testing.assert_allclose(strained["positions"], fractional @ strained["lattice"])
    moved = augment(spec, graph, np.random.default_rng(0), Augment(jitter_a=0.1))
    assert (moved["positions"] != graph["positions"]).all() and np.array_equal(moved["lattice"], lattice)
    without = spec.model_copy(update={"fields": {"frac_coords": fields["positions"]}})
    with pytest.raises(ConfigError, match="jitter_a"):
        Augment(jitter_a=0.1).check(without)


def test_strain_deforms_cell_and_edges_alike():
    _, graph = values()[0]
    strained = augment(GRAPH, graph, np.random.default_rng(0), Augment(strain=0.02))
    np.testing.assert_allclose(strained["edge_vector"][2], strained["lattice"][0], atol=1e-6)
    assert np.array_equal(strained["frac_coords"], graph["frac_coords"])


@pytest.mark.parametrize("config", [Augment(roll=1), Augment(permute=1), Augment(flip=1), Augment(roll=1, flip=0.5)])
def test_turning_a_grid_keeps_its_numbers(config):
    _, value = values()[2]
    turned = augment(GRID, value, np.random.default_rng(5), config)["density"]
    assert np.array_equal(np.sort(turned, axis=None), np.sort(value["density"], axis=None))


def test_flip_keeps_the_origin():
    _, value = values()[2]
    flipped = augment(GRID, value, np.random.default_rng(0), Augment(flip=1))["density"]
    assert flipped[0, 0, 0] == value["density"][0, 0, 0]
    assert flipped[1, 2, 3] == value["density"][-1, -2, -3]


def test_scale_keeps_ratios_and_shift_moves_a_peak():
    spectrum = {"intensity": np.exp(-0.5 * ((np.arange(101) - 50) / 3) ** 2).astype(np.float32)}
    scaled = augment(SPECTRUM, spectrum, np.random.default_rng(0), Augment(scale=0.3))["intensity"]
    assert np.ptp(scaled[40:60] / spectrum["intensity"][40:60]) < 1e-5
    peaks = {int(augment(SPECTRUM, spectrum, np.random.default_rng(s), Augment(shift=4))["intensity"].argmax())
             for s in range(8)}  # fmt: skip
    assert len(peaks) > 2
    assert all(abs(peak - 50) < 20 for peak in peaks)


def test_text_keeps_at_least_one_sentence_and_word():
    for seed in range(20):
        left = augment(TEXT, "Na is here. Cl is there.", np.random.default_rng(seed), Augment(drop_sentences=0.99))
        assert left in ("Na is here.", "Cl is there.", "Na is here. Cl is there.")
        assert augment(TEXT, "one two", np.random.default_rng(seed), Augment(drop_words=0.99)).strip()
