"""The physics that crystal networks must keep, each check with a variant that breaks it; and that they learn."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from pymatgen.core import Lattice, Structure
from torch import nn
from torch_geometric.nn.models.schnet import InteractionBlock
from torch_geometric.nn.models.visnet import NeighborEmbedding, Sphere

from pretrain.encoders import graphs
from pretrain.encoders.atoms import gaussians, pool_sum
from pretrain.encoders.graphs import edges_of
from shards.batch import collate_modality
from shards.errors import ConfigError
from shards.features.crystal import CrystalFeature
from shards.schema import FieldSpec, ModalitySpec
from shards.sources.base import Record
from tests.unit.pretrain.encoders.crystals import (
    FEATURE,
    SPEC,
    build,
    embedded,
    inputs,
    low_symmetry,
    overfit,
    turn,
    turned,
    value,
    vectors,
)

BARE = {"summary": False, "dropout": 0}
CASES = [
    ("comformer", BARE),
    ("comformer", {**BARE, "channels": 0}),
    ("schnet", BARE),
    ("visnet", BARE),
    ("visnet", {**BARE, "degree": 1}),
    ("potnet", {**BARE, "pool": "mean"}),
    ("cgcnn", BARE),
]
OURS = ["comformer", "schnet", "visnet"]
each_network = pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda v: v if isinstance(v, str) else len(v))
TIGHT = {"atol": 2e-4, "rtol": 2e-4}


def same(encoder, *structures):
    z = vectors(encoder, *structures)
    return torch.allclose(z[1:], z[:1].expand(len(z) - 1, -1), **TIGHT)


def moved_by_lattice_vectors(structure):
    coords = structure.frac_coords.copy()
    coords[1] += [1, 0, 0]
    coords[3] += [-1, 2, 0]
    return Structure(structure.lattice, structure.species, coords, to_unit_cell=False)


@each_network
class TestSymmetry:
    def test_rotation(self, kind, options):
        assert same(build(kind, **options), low_symmetry(), turned(low_symmetry(), turn()))

    def test_translation(self, kind, options):
        crystal = low_symmetry()
        shifted = Structure(crystal.lattice, crystal.species, crystal.frac_coords + np.array([0.13, 0.57, 0.91]))
        assert same(build(kind, **options), crystal, shifted)

    def test_order_of_atoms(self, kind, options):
        crystal, order = low_symmetry(), [3, 0, 4, 2, 1]
        shuffled = Structure(crystal.lattice, [crystal.species[i] for i in order], crystal.frac_coords[order])
        encoder = build(kind, **options)
        assert same(encoder, crystal, shuffled)
        with torch.no_grad():
            tokens = encoder(inputs(crystal, shuffled)).tokens
        torch.testing.assert_close(tokens[1], tokens[0][order], **TIGHT)

    def test_choice_of_the_periodic_image(self, kind, options):
        assert same(build(kind, **options), low_symmetry(), moved_by_lattice_vectors(low_symmetry()))

    def test_choice_of_the_cell(self, kind, options):
        crystal, sheared = low_symmetry(), low_symmetry()
        sheared.make_supercell([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
        larger = [crystal * (2, 1, 1), crystal * (1, 2, 2)]
        assert [len(c) for c in (sheared, *larger)] == [5, 10, 20]
        assert same(build(kind, **options), crystal, sheared, *larger)

    def test_a_metal_of_one_atom_and_its_supercell(self, kind, options):
        fcc = Structure(Lattice(4.05 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])), ["Al"], [[0, 0, 0]])
        assert same(build(kind, **options), fcc, fcc * (2, 1, 1), fcc * (2, 2, 2))

    def test_mirror_images_are_not_told_apart(self, kind, options):
        assert same(build(kind, **options), low_symmetry(), turned(low_symmetry(), np.diag([1.0, 1.0, -1.0])))

    def test_but_another_crystal_is(self, kind, options):
        strained, swapped = low_symmetry(), low_symmetry()
        strained.apply_strain([0.03, 0, -0.02])
        swapped.replace(1, "P"), swapped.replace(2, "Fe")
        z = vectors(build(kind, **options), low_symmetry(), strained, swapped)
        assert (z[1:] - z[0]).abs().amax(1).min() > 10 * TIGHT["atol"]


@pytest.mark.parametrize("kind", OURS)
class TestTheChecksBite:
    """What a wrong network or a wrong graph would do to the tests above."""

    def test_components_of_vectors_break_rotation(self, kind):
        encoder = build(kind, **BARE)
        right = encoder.atoms
        encoder.atoms = lambda numbers, edges: (
            (right(numbers, edges) + pool_sum(edges.direction[:, :1].abs(), edges.target, len(numbers)))
            * torch.linspace(0, 1, encoder.dim)
        )
        assert not same(encoder, low_symmetry(), turned(low_symmetry(), turn()))

    def test_places_in_the_list_break_the_order(self, kind):
        encoder, crystal, order = build(kind, **BARE), low_symmetry(), [3, 0, 4, 2, 1]
        right = encoder.atoms
        encoder.atoms = lambda numbers, edges: (
            right(numbers, edges) + (torch.arange(len(numbers)) % 5)[:, None] * torch.linspace(0, 1, encoder.dim)
        )
        shuffled = Structure(crystal.lattice, [crystal.species[i] for i in order], crystal.frac_coords[order])
        assert not same(encoder, crystal, shuffled)

    def test_absolute_positions_break_translation(self, kind):
        def misread(crystal):
            arrays = value(crystal)
            centres = (arrays["frac_coords"] @ arrays["lattice"])[arrays["edge_index"][1]]
            return {**arrays, "edge_vector": arrays["edge_vector"] + 0.2 * centres}

        crystal = low_symmetry()
        shifted = Structure(crystal.lattice, crystal.species, crystal.frac_coords + np.array([0.13, 0.57, 0.91]))
        with torch.no_grad():
            z = build(kind, **BARE)(collate_modality(SPEC, [misread(crystal), misread(shifted)])).vector
        assert not torch.allclose(z[0], z[1], **TIGHT)

    def test_a_sum_over_atoms_breaks_supercells(self, kind, monkeypatch):
        monkeypatch.setattr(graphs, "pool_mean", pool_sum)
        assert not same(build(kind, **BARE), low_symmetry(), low_symmetry() * (2, 1, 1))

    def test_neighbours_without_images_break_the_choice_of_image(self, kind):
        def open_graph(crystal):
            positions = crystal.cart_coords
            target, source = (~np.eye(len(crystal), dtype=bool)).nonzero()
            edges = np.stack([source, target]).astype(np.int32)
            vector = (positions[source] - positions[target]).astype(np.float32)
            return {**value(crystal), "edge_index": edges, "edge_vector": vector}

        encoder = build(kind, cutoff_a=12.0, **BARE) if kind != "comformer" else build(kind, **BARE)
        batch = collate_modality(
            SPEC, [open_graph(low_symmetry()), open_graph(moved_by_lattice_vectors(low_symmetry()))]
        )
        with torch.no_grad():
            z = encoder(batch).vector
        assert not torch.allclose(z[0], z[1], **TIGHT)


def bent(angle):
    """An atom with two neighbours at equal distance; they are no neighbours of each other."""
    rad = np.radians(angle)
    arms = 2.0 * np.array([[1, 0, 0], [np.cos(rad), np.sin(rad), 0]])
    return {
        "atomic_numbers": np.array([8, 1, 1], np.uint8),
        "frac_coords": np.zeros((3, 3), np.float32),
        "lattice": np.eye(3, dtype=np.float32) * 20,
        "edge_index": np.array([[1, 2, 0, 0], [0, 0, 1, 2]], np.int32),
        "edge_vector": np.concatenate([arms, -arms]).astype(np.float32),
    }


@pytest.mark.parametrize(
    ("kind", "options", "sees"),
    [("comformer", {}, True), ("comformer", {"channels": 0}, False), ("schnet", {}, False),
     ("visnet", {}, True), ("visnet", {"degree": 1}, True)],
)  # fmt: skip
def test_angles_are_seen_where_directions_are(kind, options, sees):
    encoder = build(kind, **BARE, **options)
    with torch.no_grad():
        z = encoder(collate_modality(SPEC, [bent(100), bent(170)])).vector
    assert torch.allclose(z[0], z[1], atol=1e-5) != sees


def representation(sphere, matrix):
    """Return what the rotation does to the components of the spherical harmonics."""
    points = nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64), dim=1)
    return torch.linalg.lstsq(sphere(points), sphere(points @ matrix.T)).solution.T


class Cubed(Sphere):
    """Functions of the components of a vector, which are no representation of rotations."""

    def forward(self, edge_vec):
        return super().forward(edge_vec) ** 3


@pytest.mark.parametrize("degree", [1, 2])
class TestEquivariance:
    def features(self, degree, sphere):
        matrix = turn(3)
        encoder = build("visnet", **BARE, degree=degree, layers=3).double()
        encoder.sphere = sphere
        crystals = [low_symmetry(), turned(low_symmetry(), matrix)]
        with torch.no_grad():
            results = []
            for crystal in crystals:
                edges = edges_of(inputs(crystal))
                numbers = inputs(crystal)["atomic_numbers"]
                results.append(encoder.features(numbers, edges))
        turns = representation(Sphere(lmax=degree), torch.tensor(matrix))
        (x, v), (x_turned, v_turned) = results
        return x, x_turned, torch.einsum("st,ntd->nsd", turns, v), v_turned, v

    def test_vectors_turn_with_the_crystal(self, degree):
        x, x_turned, expected, v_turned, v = self.features(degree, Sphere(lmax=degree))
        torch.testing.assert_close(x_turned, x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(v_turned, expected, atol=1e-5, rtol=1e-5)
        assert (v_turned - v).abs().max() > 100 * (v_turned - expected).abs().max()

    def test_wrong_harmonics_are_caught(self, degree):
        x, x_turned, expected, v_turned, _ = self.features(degree, Cubed(lmax=degree))
        assert not torch.allclose(v_turned, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(x_turned, x, atol=1e-5, rtol=1e-5)


def test_tensors_of_comformer_turn_with_the_crystal():
    matrix = turn(5)
    layer = build("comformer", **BARE).layers[1]
    crystals = inputs(low_symmetry(), turned(low_symmetry(), matrix))
    edges = edges_of(crystals)
    x = torch.randn(5, 128).repeat(2, 1)
    features = gaussians(edges.length, 0.0, 5.0, 128)
    with torch.no_grad():
        tensors = layer.tensors(x, edges, features, layer.harmonics(edges.direction, x.dtype))
    d2 = representation(Sphere(lmax=2), torch.tensor(matrix))[3:, 3:].float()
    for found, expected in zip(tensors, (torch.eye(1), torch.tensor(matrix).float(), d2), strict=True):
        torch.testing.assert_close(found[5:], torch.einsum("st,ntc->nsc", expected, found[:5]), atol=1e-5, rtol=1e-5)
    assert (tensors[1][5:] - tensors[1][:5]).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "high"), [("comformer", 0), ("potnet", 4)])
def test_bins_of_reciprocal_distances_are_as_wide_as_told(kind, high):
    crystal, centres = inputs(low_symmetry()), torch.linspace(-4, high, 21)
    found = []
    for width in (1.0, 3.0):
        encoder = build(kind, **BARE, gaussians=21, gaussian_width=width)
        last = encoder.edge if kind == "comformer" else encoder.local
        last.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        with torch.no_grad():
            encoder(crystal)
    x = -0.75 / edges_of(crystal).length[:, None]
    for bins, width in zip(found, (1.0, 3.0), strict=True):
        expected = torch.exp(-(((x - centres) / (width * (high + 4) / 20)) ** 2))
        torch.testing.assert_close(bins, expected, atol=1e-5, rtol=1e-5)


def test_autocast_leaves_the_potentials_alone():
    feature = CrystalFeature(cutoff_a=4.5)
    batch = collate_modality(feature.spec("crystal"), [feature(Record(id="x", structure=low_symmetry()))])
    encoder = build("potnet", spec=feature.spec("crystal"), **BARE)
    encoder.local = encoder.infinite = nn.Identity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, _, found = encoder._edges(batch, torch.float32)
    _, _, exact = encoder._edges(batch, torch.float32)
    assert len(exact) > len(batch["edge_vector"])
    assert torch.equal(found, exact)


class TestCutOff:
    def pair(self, length):
        return {
            **bent(0),
            "atomic_numbers": np.array([3, 8], np.uint8),
            "frac_coords": np.zeros((2, 3), np.float32),
            "edge_index": np.array([[1, 0], [0, 1]], np.int32),
            "edge_vector": np.array([[length, 0, 0], [-length, 0, 0]], np.float32),
        }

    @pytest.mark.parametrize("kind", ["schnet", "visnet"])
    def test_messages_fade_at_the_cut_off_and_stay_away_beyond(self, kind):
        encoder = build(kind, **BARE)
        lonely = {
            **self.pair(1.0),
            "edge_index": np.zeros((2, 0), np.int32),
            "edge_vector": np.zeros((0, 3), np.float32),
        }
        batch = [lonely, *(self.pair(FEATURE.cutoff_a + step) for step in (-2.0, -1e-3, 0.0, 0.5, 4.0))]
        with torch.no_grad():
            z = encoder(collate_modality(SPEC, batch)).vector
        assert (z[1] - z[0]).abs().max() > 1e-2
        torch.testing.assert_close(z[2:], z[:1].expand(4, -1), atol=1e-4, rtol=1e-4)

    def test_the_librarys_filter_alone_rises_again(self):
        block = InteractionBlock(8, 10, 8, 5.0)
        x, index = torch.randn(2, 8), torch.tensor([[1, 0], [0, 1]])
        smeared = gaussians(torch.full((2,), 5.0), 0.0, 5.0, 10)
        at, beyond = (block(x, index, torch.full((2,), d), smeared) for d in (5.0, 9.0))
        assert (at - beyond).abs().max() > 1e-3


def test_the_librarys_neighbours_of_an_atom_leave_out_its_images():
    torch.manual_seed(0)
    layer = NeighborEmbedding(8, 4, cutoff=FEATURE.cutoff_a)
    fcc = Structure(Lattice(4.05 / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])), ["Al"], [[0, 0, 0]])
    found = []
    for crystal in (fcc, fcc * (2, 1, 1)):
        batch = inputs(crystal)
        edges, numbers = edges_of(batch), batch["atomic_numbers"].long()
        x, smeared = torch.zeros(len(numbers), 8), torch.ones(len(edges.length), 4)
        with torch.no_grad():
            found.append(layer(numbers, x, edges.index, edges.length, smeared)[0])
    assert (found[0] - found[1]).abs().max() > 1e-2


POLYMORPHS = ("Al", "ZnO", "AlN")


@pytest.mark.parametrize(("kind", "steps"), [("comformer", 100), ("schnet", 40), ("visnet", 40)])
def test_polymorphs_are_learned(kind, steps):
    crystals, volumes = zip(*embedded(*POLYMORPHS), strict=True)
    options = {**BARE, "dim": 32}
    assert len(crystals) == 10
    assert overfit(build(kind, **options), inputs(*crystals), list(volumes), steps) < 0.06


def test_a_network_whose_messages_are_dead_cannot_learn_them():
    crystals, volumes = zip(*embedded(*POLYMORPHS), strict=True)
    encoder = build("comformer", **BARE, dim=32)
    encoder.layers = nn.ModuleList()
    assert overfit(encoder, inputs(*crystals), list(volumes), steps=100) > 0.2


@pytest.mark.parametrize("kind", OURS)
class TestPractice:
    def test_autocast(self, kind):
        encoder = build(kind, dropout=0.0)
        batch = inputs(low_symmetry(), *[crystal for crystal, _ in embedded("ZnO")])
        exact = encoder(batch).vector
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = encoder(batch)
        encoded.vector.float().square().sum().backward()
        assert nn.functional.cosine_similarity(encoded.vector.float(), exact).min() > 0.99
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())

    def test_weights_fit_into_safetensors(self, kind, tmp_path):
        encoder = build(kind)
        safetensors.torch.save_file(encoder.state_dict(), tmp_path / "w.safetensors")
        other = build(kind, seed=1)
        assert not torch.equal(vectors(other, low_symmetry()), vectors(encoder, low_symmetry()))
        other.load_state_dict(safetensors.torch.load_file(tmp_path / "w.safetensors"))
        assert torch.equal(vectors(other, low_symmetry()), vectors(encoder, low_symmetry()))

    def test_gradients_at_sites_of_high_symmetry_are_no_noise(self, kind):
        rocksalt = [crystal for crystal, _ in embedded("ZnO", "AlN")]
        encoder, grads = build(kind, **BARE), []
        for crystals in (rocksalt, [turned(crystal, turn(1)) for crystal in rocksalt]):
            encoder.zero_grad()
            encoder(inputs(*crystals)).vector.square().mean().backward()
            grads.append(torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()]))
        torch.testing.assert_close(grads[0], grads[1], atol=1e-3 * float(grads[0].abs().max()), rtol=1e-3)

    def test_graphs_without_geometry_are_refused(self, kind):
        fields = {"atomic_numbers": FieldSpec(dtype="uint8", shape=("atoms",))}
        spec = ModalitySpec(name="molecule", kind="graph", fields=fields)
        with pytest.raises(ConfigError, match="no lattice, edge_index, edge_vector"):
            build(kind, spec=spec)


@pytest.mark.parametrize("kind", ["schnet", "visnet"])
def test_a_cut_off_that_nobody_names_is_asked_for(kind):
    spec = SPEC.model_copy(update={"feature": {}})
    with pytest.raises(ConfigError, match="cut-off"):
        build(kind, spec=spec)
    assert build(kind, spec=spec, cutoff_a=4.0).cutoff_a == 4.0


@pytest.mark.parametrize("kind", ["visnet", "composition"])
def test_heads_that_do_not_fit_are_refused(kind):
    with pytest.raises(ConfigError, match="no multiple of heads"):
        build(kind, dim=30, heads=4)
