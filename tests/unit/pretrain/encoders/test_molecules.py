"""What networks on molecules and fingerprints claim, each check with a variant that breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.encoders import dmpnn
from pretrain.encoders.base import ENCODERS
from pretrain.encoders.dmpnn import messages, reverse_edges
from shards.batch import collate_modality
from shards.errors import ConfigError
from shards.features.fingerprint import FingerprintFeature
from shards.features.molecule import MoleculeFeature
from shards.schema import FieldSpec, ModalitySpec
from shards.sources.base import Record
from tests.unit.pretrain.encoders import crystals

FEATURE = MoleculeFeature()
SPEC = FEATURE.spec("molecule")
CASES = [
    ("dmpnn", {"dim": 32}),
    ("gin", {"dim": 32, "conv": "gine"}),
    ("gin", {"dim": 32, "conv": "gin"}),
    ("gin", {"dim": 32, "conv": "gcn"}),
]
each_network = pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=lambda v: v if isinstance(v, str) else v.get("conv", "")
)
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def value(smiles):
    return FEATURE(Record(id="x", smiles=smiles))


def batch(*smiles):
    return collate_modality(SPEC, [value(s) if isinstance(s, str) else s for s in smiles])


def build(kind, **options):
    config = ENCODERS.options({"kind": kind, **options})
    torch.manual_seed(0)
    return ENCODERS.get(kind)(SPEC, config, {}).eval()


def vectors(encoder, *smiles):
    with torch.no_grad():
        return encoder(batch(*smiles)).vector


def shuffled(arrays, order):
    place = np.argsort(order).astype(np.int32)
    edges = place[arrays["edge_index"]]
    turn = np.lexsort((edges[0], edges[1]))
    atoms = {name: arrays[name][order] for name in ("atomic_numbers", "masses_u", "atom_features")}
    return {**atoms, "edge_index": edges[:, turn], "bond_features": arrays["bond_features"][turn]}


@each_network
class TestEveryNetwork:
    def test_order_of_atoms(self, kind, options):
        arrays = value(ASPIRIN)
        order = np.random.default_rng(0).permutation(len(arrays["atomic_numbers"]))
        encoder = build(kind, **options)
        z = vectors(encoder, arrays, shuffled(arrays, order))
        torch.testing.assert_close(z[0], z[1], atol=1e-5, rtol=1e-5)
        wrong = {**shuffled(arrays, order), "atomic_numbers": arrays["atomic_numbers"]}
        assert (vectors(encoder, wrong)[0] - z[0]).abs().max() > 1e-3

    def test_a_sum_over_the_molecules_of_a_salt(self, kind, options):
        encoder = build(kind, pool="sum", **options)
        parts, whole = vectors(encoder, "CCO", "c1ccccc1", "[Na+]"), vectors(encoder, "CCO.c1ccccc1.[Na+]")
        torch.testing.assert_close(whole[0], parts.sum(0), atol=1e-4, rtol=1e-4)
        mean = build(kind, **options)
        parts, whole = vectors(mean, "CCO", "c1ccccc1", "[Na+]"), vectors(mean, "CCO.c1ccccc1.[Na+]")
        assert not torch.allclose(whole[0], parts.sum(0), atol=1e-2, rtol=1e-2)

    def test_atoms_without_bonds(self, kind, options):
        encoder = build(kind, **options)
        encoded = encoder(batch("C", "[Na+].[Cl-]"))
        encoded.vector.square().sum().backward()
        assert encoded.vector.isfinite().all()
        assert encoded.mask.sum(1).tolist() == [1, 2]
        assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
        assert (encoded.vector[0] - encoded.vector[1]).abs().max() > 1e-3

    def test_a_bond_changes_what_reads_bonds(self, kind, options):
        single, other = value("CC"), value("CC")
        other["bond_features"] = value("C=C")["bond_features"]
        z = vectors(build(kind, **options), single, other)
        reads_bonds = options.get("conv") in (None, "gine")
        assert torch.equal(z[0], z[1]) != reads_bonds

    def test_isotopes_and_charges(self, kind, options):
        z = vectors(build(kind, **options), "[H][H]", "[2H][2H]", "C[NH3+]", "CN")
        assert (z[0] - z[1]).abs().max() > 1e-4
        assert (z[2] - z[3]).abs().max() > 1e-3

    def test_autocast(self, kind, options):
        encoder = build(kind, **options)
        inputs = batch(ASPIRIN, "C", "CCO")
        exact = encoder(inputs).vector
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = encoder(inputs)
        encoded.vector.float().square().sum().backward()
        assert nn.functional.cosine_similarity(encoded.vector.float(), exact).min() > 0.99
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())

    def test_weights_of_learning_molecules(self, kind, options):
        smiles = ["C", "CC", "CCO", "c1ccccc1", "CC(=O)O", "CCN", "C#N", "OCC(O)CO"]
        solubility = [-0.9, -1.36, 1.1, -1.64, 1.2, 1.3, 0.9, 1.1]
        assert crystals.overfit(build(kind, **{**options, "dropout": 0}), batch(*smiles), solubility, steps=60) < 0.1

    def test_graphs_of_crystals_are_refused(self, kind, options):
        config = ENCODERS.options({"kind": kind, **options})
        with pytest.raises(ConfigError, match="no masses_u, atom_features, bond_features"):
            ENCODERS.get(kind)(crystals.SPEC, config, {})


@pytest.mark.parametrize("kind", ["potnet", "cgcnn", "comformer", "schnet", "visnet", "composition"])
def test_graphs_of_molecules_are_refused_by_crystal_encoders(kind):
    with pytest.raises(ConfigError, match="feature step 'crystal'"):
        ENCODERS.get(kind)(SPEC, ENCODERS.options({"kind": kind}), {})


class TestDirectedMessages:
    def test_they_are_the_sums_of_the_formula(self):
        inputs = batch(ASPIRIN, "CCO", "C")
        source, target = inputs["edge_index"]
        atoms, state = len(inputs["atomic_numbers"]), torch.randn(len(source), 3, dtype=torch.float64)
        found = messages(state, inputs["edge_index"], reverse_edges(inputs["edge_index"], atoms), atoms)
        bonds = list(zip(source.tolist(), target.tolist(), strict=True))
        for place, (v, w) in enumerate(bonds):
            terms = [state[other] for other, (k, to) in enumerate(bonds) if to == v and k != w]
            torch.testing.assert_close(found[place], sum(terms, torch.zeros(3, dtype=torch.float64)))

    def states(self, layers, change=None):
        inputs = batch("CO")
        if change is not None:
            inputs["atom_features"] = inputs["atom_features"].clone()
            inputs["atom_features"][change] = 1
        with torch.no_grad():
            return build("dmpnn", dim=32, layers=layers).states(inputs), inputs["edge_index"]

    def test_nothing_comes_back_in_a_molecule_of_two_atoms(self):
        first, (source, _) = self.states(1)
        for layers in (2, 3, 6):
            assert torch.equal(self.states(layers)[0], first)
        changed, _ = self.states(3, change=1)
        assert torch.equal(changed[source == 0], first[source == 0])
        assert not torch.equal(changed[source == 1], first[source == 1])

    def test_messages_that_come_back_are_caught(self, monkeypatch):
        first, (source, _) = self.states(1)
        monkeypatch.setattr(dmpnn, "reverse_edges", lambda index, atoms: torch.full_like(index[0], index.shape[1]))
        assert not torch.allclose(self.states(3)[0], first, atol=1e-3)
        assert not torch.allclose(self.states(3, change=1)[0][source == 0], self.states(3)[0][source == 0], atol=1e-3)

    def test_reverse_of_edges_in_any_order(self):
        index = torch.tensor([[2, 0, 1, 0, 3], [0, 1, 0, 2, 0]])
        assert reverse_edges(index, 4).tolist() == [3, 2, 1, 0, 5]
        assert reverse_edges(torch.zeros(2, 0, dtype=torch.long), 1).tolist() == []


def regular(edges, atoms):
    """A graph of equal atoms and equal bonds."""
    both = np.array(edges + [(b, a) for a, b in edges], dtype=np.int32)
    both = both[np.lexsort((both[:, 0], both[:, 1]))]
    carbon = value("CC")
    return {
        **{name: np.repeat(carbon[name][:1], atoms, 0) for name in ("atomic_numbers", "masses_u", "atom_features")},
        "edge_index": both.T.copy(),
        "bond_features": np.repeat(carbon["bond_features"][:1], len(both), 0),
    }


class TestAggregation:
    def pair(self):
        ring = regular([(0, 1), (1, 2), (2, 3), (3, 0)], 4)
        every_one = regular([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 4)
        return ring, every_one

    @pytest.mark.parametrize("conv", ["gin", "gine"])
    def test_a_sum_tells_neighbourhoods_apart_that_a_mean_cannot(self, conv):
        encoder = build("gin", conv=conv)
        z = vectors(encoder, *self.pair())
        assert (z[0] - z[1]).abs().max() > 1e-2
        for layer in encoder.layers:
            layer.convolution.aggregate = lambda x, index, ptr=None, dim_size=None: torch.zeros(
                dim_size, x.shape[1]
            ).index_reduce(0, index, x, "mean", include_self=False)
        z = vectors(encoder, *self.pair())
        torch.testing.assert_close(z[0], z[1], atol=1e-5, rtol=1e-5)

    def test_the_graph_convolution_is_such_a_mean(self):
        z = vectors(build("gin", conv="gcn"), *self.pair())
        torch.testing.assert_close(z[0], z[1], atol=1e-5, rtol=1e-5)


class TestFingerprint:
    def build(self, feature):
        torch.manual_seed(0)
        return ENCODERS.get("fingerprint")(feature.spec("ecfp"), ENCODERS.options({"kind": "fingerprint"}), {}).eval()

    def test_an_environment_that_training_never_saw_moves_the_vector_a_little(self):
        rng = np.random.default_rng(0)
        train = (rng.random((50, 256)) < 0.05).astype(np.uint8)
        train[:, 200] = 0
        old, new = train[0].copy(), train[0].copy()
        new[200] = 1
        encoder = self.build(FingerprintFeature(bits=256))
        with torch.no_grad():
            z = encoder({"values": torch.tensor(np.stack([old, new, train[1]]))}).vector
        assert 0 < (z[1] - z[0]).norm() < (z[2] - z[0]).norm()
        standardised = (np.stack([old, new, train[1]]) - train.mean(0)) / (train.std(0) + 1e-6)
        steps = np.linalg.norm(standardised - standardised[0], axis=1)
        assert steps[1] > 1000 * steps[2]

    def test_bits_and_counts_of_molecules(self):
        for feature in (FingerprintFeature(), FingerprintFeature(counts=True)):
            values = [feature(Record(id="x", smiles=smiles)) for smiles in ("CCO", "CCCCCCO", ASPIRIN)]
            encoder = self.build(feature)
            with torch.no_grad():
                z = encoder(collate_modality(feature.spec("ecfp"), values)).vector
            assert z.shape == (3, 128)
            assert torch.pdist(z).min() > 1e-2

    @pytest.mark.parametrize(
        "fields",
        [
            {"vector": FieldSpec(dtype="float32", shape=(8,))},
            {"a": FieldSpec(dtype="uint8", shape=(8,)), "b": FieldSpec(dtype="uint8", shape=(8,))},
            {"image": FieldSpec(dtype="uint8", shape=(8, 8))},
        ],
        ids=["of numbers below 0", "of two fields", "of rows and columns"],
    )
    def test_vectors_that_are_no_counts_are_refused(self, fields):
        spec = ModalitySpec(name="magpie", kind="vector", fields=fields)
        with pytest.raises(ConfigError, match="cannot read the vectors of 'magpie'"):
            ENCODERS.get("fingerprint")(spec, ENCODERS.options({"kind": "fingerprint"}), {})

    def test_it_learns(self):
        feature = FingerprintFeature(bits=512)
        smiles = ["C", "CC", "CCO", "c1ccccc1", "CC(=O)O", "CCN", "C#N", "OCC(O)CO"]
        values = [feature(Record(id="x", smiles=s)) for s in smiles]
        solubility = [-0.9, -1.36, 1.1, -1.64, 1.2, 1.3, 0.9, 1.1]
        config = ENCODERS.options({"kind": "fingerprint", "dropout": 0})
        encoder = ENCODERS.get("fingerprint")(feature.spec("ecfp"), config, {})
        assert crystals.overfit(encoder, collate_modality(feature.spec("ecfp"), values), solubility, steps=40) < 0.1
