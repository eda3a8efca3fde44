"""Every registered encoder keeps the contract (rows alone, placeholders, gradients, precision) and its own claims."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pretrain.encoders.base import ENCODERS
from pretrain.encoders.grid import invariants
from pretrain.encoders.layers import Block
from pretrain.encoders.resnext3d import GridConv
from pretrain.encoders.text import SYMBOLS, build_tokenizer
from shards.batch import collate_modality, placeholder
from shards.errors import ConfigError
from shards.features.crystal import CrystalFeature
from shards.features.fingerprint import FingerprintFeature
from shards.features.image import ImageFeature
from shards.features.molecule import MoleculeFeature
from shards.features.smiles import SmilesFeature
from shards.features.table import TableFeature
from shards.schema import FieldSpec, ModalitySpec
from shards.sources.base import Record

CRYSTAL = CrystalFeature(cutoff_a=4.0)
SMILES = {"molecule": MoleculeFeature(), "fingerprint": FingerprintFeature(bits=64), "smiles": SmilesFeature()}
TABLE = TableFeature(columns=("voltage_kv", "flow_ml_h"), categorical={"polymer": ("PVDF", "PAN")})
SPECS = {
    "graph": CRYSTAL.spec("crystal"),
    **{name: feature.spec(name) for name, feature in SMILES.items()},
    "dos": ModalitySpec(
        name="dos", kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(61,))},
        feature={"step": "dos", "start": -10.0, "stop": 10.0, "points": 61},
    ),
    "xrd": ModalitySpec(
        name="xrd", kind="spectrum", fields={"intensity": FieldSpec(dtype="float32", shape=(128,))},
        feature={"step": "xrd", "start": 10.0, "stop": 90.0, "points": 128},
    ),
    "grid": ModalitySpec(name="rho", kind="grid", fields={"density": FieldSpec(dtype="float16", shape=(16, 16, 16))}),
    "text": ModalitySpec(name="text", kind="text"),
    "image": ImageFeature(size=32).spec("sem"),
    "table": TABLE.spec("process"),
    "vector": ModalitySpec(name="magpie", kind="vector", fields={"vector": FieldSpec(dtype="float32", shape=(7,))}),
}  # fmt: skip
SMALL = {
    "potnet": (
        "graph",
        [{}, {"pool": "mean", "summary": False, "potentials": False, "dropout": 0}, {"output": 24, "dim": 32}],
    ),
    "cgcnn": ("graph", [{}, {"summary": False, "layers": 1}]),
    "comformer": ("graph", [{}, {"summary": False, "channels": 0, "layers": 1}, {"summary": False}]),
    "schnet": ("graph", [{}, {"summary": False, "layers": 1}]),
    "visnet": ("graph", [{}, {"summary": False, "layers": 1}, {"summary": False, "dim": 16}]),
    "composition": ("graph", [{}, {"layers": 0}]),
    "gin": ("molecule", [{}, {"conv": "gin", "pool": "sum"}, {"conv": "gcn", "layers": 2}]),
    "dmpnn": ("molecule", [{}, {"pool": "sum", "dim": 32, "layers": 1}]),
    "fingerprint": ("fingerprint", [{}, {"hidden": [16, 16]}]),
    "spectrum_transformer": (
        "dos",
        [
            {"depth": 1, "dim": 32},
            {"patch": 1, "depth": 1, "dim": 32, "summary": False, "scale": "linear"},
            {"depth": 0},
        ],
    ),
    "xrd": ("xrd", [{"depth": 1, "dim": 32}, {"summary": False, "dim": 32, "depth": 1}]),
    "spectrum_cnn": (
        "dos",
        [{}, {"pool": "flatten", "axis": False, "scale": "linear", "channels": [8, 6]}, {"blocks": 2, "dim": 16}],
    ),
    "resnext3d": (
        "grid",
        [{}, {"coarsen": 1, "summary": False, "scale": "linear"}, {"padding": "zeros", "channels_last": False}],
    ),
    "vit3d": ("grid", [{}, {"position": "learned", "summary": False, "patch": 4, "coarsen": 2, "scale": "linear"}]),
    "image": ("image", [{"model": "test_convnext"}, {"model": "test_vit", "tokens": "patches"}]),
    "ft_transformer": ("table", [{}, {"depth": 1, "dim": 16}]),
    "table_mlp": ("table", [{}, {"layers": 0}]),
    "smiles_transformer": ("smiles", [{}, {"max_tokens": 4, "dim": 16}]),
    "text": ("text", [{"depth": 1, "dim": 32}, {"summary": False, "dim": 32, "depth": 1}, {"depth": 0, "dim": 32}]),
    "vector": ("vector", [{}, {"layers": 2, "hidden": 16, "activation": "relu", "standardise": False}]),
}
CASES = [(kind, {"kind": kind, **table}) for kind, (_, tables) in SMALL.items() for table in tables]


def structures():
    rocksalt = [[0, 0, 0], [0.5, 0.5, 0.5]]
    fcc = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    return [
        Structure(Lattice(5.64 * fcc), ["Na", "Cl"], rocksalt),
        Structure(Lattice(4.05 * fcc), ["Al"], [[0, 0, 0]]),
        Structure(Lattice.cubic(3.9), ["Sr", "Ti", "O", "O", "O"],
                  [[0.5] * 3, [0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]),
        Structure(Lattice.hexagonal(2.5, 4.1), ["Zn", "Zn"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    ]  # fmt: skip


def graph(structure):
    return CRYSTAL(Record(id="x", structure=structure))


def rows(name):
    rng = np.random.default_rng(0)
    if name == "graph":
        return [graph(structure) for structure in structures()]
    if name in SMILES:
        return [
            SMILES[name](Record(id="x", smiles=smiles)) for smiles in ("CC(=O)O", "c1ccncc1", "C", "F/C=C/Cl.[Na+]")
        ]
    if name == "text":
        return [
            "NaCl is cubic. All Na(1)-Cl(1) bond lengths are 2.82 Å.",
            "Al is Copper structured.",
            "SrTiO3 is cubic. Ti(1) is bonded to six O(1) atoms to form octahedra. Sr is there. Ti is there.",
            "Zn is hexagonal. All bond lengths are 2.70 Å.",
        ]
    if name == "image":
        return [{"pixels": rng.integers(0, 256, (n, 1, 32, 32), dtype=np.uint8)} for n in (2, 1, 3, 1)]
    if name == "table":
        cells = [{"voltage_kv": 18.0, "flow_ml_h": 0.2, "polymer": "PAN"}, {"voltage_kv": 22.0, "polymer": "PVDF"},
                 {"flow_ml_h": 0.4, "polymer": "PEO"}, {"voltage_kv": 16.0, "flow_ml_h": 0.6}]  # fmt: skip
        return [TABLE(Record(id="x", columns=columns)) for columns in cells]
    field, spec = next(iter(SPECS[name].fields.items()))
    return [{field: rng.gamma(2.0, 1.0, spec.shape).astype(spec.dtype)} for _ in range(4)]


def build(table):
    spec = SPECS[SMALL[table["kind"]][0]]
    config, cls = ENCODERS.options(table), ENCODERS.get(table["kind"])
    fitted = json.loads(json.dumps(cls.fit(spec, config, rows(SMALL[table["kind"]][0]))))
    torch.manual_seed(0)
    return cls(spec, config, fitted), spec


def vector(encoder, spec, values):
    with torch.no_grad():
        return encoder(collate_modality(spec, values)).vector


def test_every_registered_encoder_is_tested():
    from pretrain import encoders

    builtin = {kind for kind in ENCODERS.kinds() if ENCODERS.get(kind).__module__.startswith(encoders.__name__)}
    assert builtin == set(SMALL)


@pytest.mark.parametrize(("kind", "table"), CASES, ids=lambda v: v if isinstance(v, str) else f"{len(v)}options")
class TestContract:
    def test_rows_are_independent_and_in_order(self, kind, table):
        encoder, spec = build(table)
        encoder.eval()
        values = rows(SMALL[kind][0])
        together = vector(encoder, spec, values)
        assert together.shape == (4, encoder.dim)
        alone = torch.cat([vector(encoder, spec, [value]) for value in values])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        order = [2, 0, 3, 1]
        shuffled = vector(encoder, spec, [values[i] for i in order])
        torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-5)
        assert (together[0] - together[1]).abs().max() > 1e-4

    def test_training_mode_keeps_no_batch_statistics(self, kind, table):
        quiet = {"dropout": 0.0} if "dropout" in ENCODERS.get(kind).Config.model_fields else {}
        encoder, spec = build({**table, **quiet})
        values = rows(SMALL[kind][0])
        together = vector(encoder, spec, values)
        torch.testing.assert_close(together[:1], vector(encoder, spec, values[:1]), atol=1e-5, rtol=1e-5)
        assert not [module for module in encoder.modules() if "BatchNorm" in type(module).__name__]

    def test_placeholder_and_gradients(self, kind, table):
        encoder, spec = build(table)
        for inputs in (placeholder(spec), collate_modality(spec, rows(SMALL[kind][0]))):
            encoder.zero_grad()
            encoded = encoder(inputs)
            assert encoded.vector.isfinite().all()
            encoded.vector.square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        dead = [name for name, p in encoder.named_parameters() if not p.grad.abs().sum() > 0]
        assert not dead

    def test_tokens(self, kind, table):
        encoder, spec = build(table)
        encoded = encoder(collate_modality(spec, rows(SMALL[kind][0])))
        if encoded.tokens is not None:
            assert encoded.tokens.shape[0] == 4
            assert encoded.tokens.shape[2] == encoder.dim
            assert encoded.mask is None or encoded.mask.shape == encoded.tokens.shape[:2]

    def test_names_of_weights_do_not_depend_on_dropout(self, kind, table):
        """Else a model could not start from weights that were trained with another."""
        if "dropout" in ENCODERS.get(kind).Config.model_fields:
            without, some = (build({**table, "dropout": rate})[0].state_dict() for rate in (0.0, 0.5))
            assert list(without) == list(some)

    def test_a_model_in_bfloat16_takes_the_same_inputs(self, kind, table):
        encoder, spec = build(table)
        encoder.eval()
        exact = vector(encoder, spec, rows(SMALL[kind][0]))
        rounded = vector(encoder.to(torch.bfloat16), spec, rows(SMALL[kind][0]))
        assert rounded.isfinite().all()
        assert torch.nn.functional.cosine_similarity(exact, rounded.float()).min() > 0.9


def test_stored_precision_does_not_matter():
    encoder, spec = build({"kind": "resnext3d"})
    encoder.eval()
    inputs = collate_modality(spec, rows("grid"))
    assert inputs["density"].dtype == torch.float16
    with torch.no_grad():
        stored, cast = encoder(inputs).vector, encoder({"density": inputs["density"].double()}).vector
    torch.testing.assert_close(stored, cast)


@pytest.mark.parametrize("kind", ["potnet", "cgcnn", "comformer", "schnet", "visnet"])
class TestCrystal:
    def encode(self, kind, *crystals):
        encoder, spec = build({"kind": kind})
        return vector(encoder.eval(), spec, [graph(crystal) for crystal in crystals])

    def test_translation_rotation_order_and_cell(self, kind):
        perovskite = structures()[2]
        moved = Structure(perovskite.lattice, perovskite.species, perovskite.frac_coords + np.array([0.1, 0.27, 0.4]))
        angle = 0.7
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        turned = Structure(Lattice(perovskite.lattice.matrix @ turn), perovskite.species, perovskite.frac_coords)
        order = [4, 2, 0, 3, 1]
        reordered = Structure(perovskite.lattice, [perovskite.species[i] for i in order], perovskite.frac_coords[order])
        z = self.encode(kind, perovskite, moved, turned, reordered, perovskite * (2, 1, 1))
        torch.testing.assert_close(z[1:], z[:1].expand(4, -1), atol=2e-3, rtol=2e-3)

    def test_tells_elements_and_sizes_apart(self, kind):
        salt = structures()[0]
        larger, other = salt.copy(), salt.copy()
        larger.apply_strain(0.03)
        other.replace(0, "K")
        z = self.encode(kind, salt, larger, other)
        assert (z[0] - z[1]).abs().max() > 1e-2
        assert (z[0] - z[2]).abs().max() > 1e-2

    def test_a_crystal_without_edges(self, kind):
        encoder, spec = build({"kind": kind})
        value = dict(graph(structures()[1]))
        value["edge_index"], value["edge_vector"] = np.zeros((2, 0), np.int32), np.zeros((0, 3), np.float32)
        assert vector(encoder, spec, [value, value]).isfinite().all()


def test_one_point_tokens_are_multimats():
    encoder, _ = build({"kind": "spectrum_transformer", "patch": 1, "dim": 16, "depth": 1, "scale": "linear"})
    g = torch.rand(2, 61)
    tokens = encoder.tokens(encoder.scaled(g))
    energy = torch.linspace(-10, 10, 61) / 10
    for row, point in ((0, 0), (1, 37)):
        pair = torch.cat(
            [encoder.embed_axis(energy[point].view(1)), encoder.embed_value(g[row, point].view(1) / encoder.unit)]
        )
        torch.testing.assert_close(tokens[row, point], encoder.merge(pair))


def test_fused_attention_equals_the_formula():
    torch.manual_seed(0)
    block = Block(16, heads=2, head_dim=8, mlp_dim=32, dropout=0.0)
    x = torch.randn(3, 5, 16)
    q, k, v = block.qkv(block.norm1(x)).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    attended = (torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v).transpose(1, 2).reshape(3, 5, 16)
    y = x + block.out(attended)
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


def test_xrd_a_change_of_lattice_constant_is_a_shift():
    encoder, _ = build({"kind": "xrd", "dim": 32, "depth": 0})
    two_theta = np.linspace(10, 90, 128)

    def centre(d):
        place = 2 * np.degrees(np.arcsin(1.54184 / (2 * d)))
        peaks = torch.tensor(np.exp(-0.5 * ((two_theta - place) / 1.0) ** 2), dtype=torch.float32)[None]
        scaled = encoder.scaled(peaks)
        return float((scaled * torch.arange(128)).sum() / scaled.sum())

    assert centre(2.0) - centre(2.2) == pytest.approx(centre(2.8) - centre(3.08), abs=0.5)


def test_convolutions_wrap_around():
    layer = GridConv(1, 4, 3, 1, 1, "periodic")
    grid = torch.rand(1, 1, 6, 6, 6)
    rolled = layer(grid.roll((1, 2, 5), (2, 3, 4)))
    torch.testing.assert_close(rolled, layer(grid).roll((1, 2, 5), (2, 3, 4)))


def test_density_numbers_do_not_depend_on_the_origin():
    config = ENCODERS.options({"kind": "resnext3d", "summary_points": 1})
    grid = torch.rand(1, 16, 16, 16)
    moved = grid.roll((2, 4, 6), (1, 2, 3))
    torch.testing.assert_close(invariants(grid, 1.0, config), invariants(moved, 1.0, config), atol=1e-4, rtol=1e-4)


class TestText:
    def test_unseen_words_and_characters(self):
        encoder, spec = build({"kind": "text", "dim": 32})
        strange = ["Zq☃ 你好 \u0000", "☃", " ", "9999999.123 XeF6", "a" * 5000, "word " * 3000]
        assert vector(encoder, spec, strange).isfinite().all()

    def test_padding_changes_nothing(self):
        encoder, spec = build({"kind": "text", "dim": 32})
        encoder.eval()
        short, long = rows("text")[1], rows("text")[2]
        torch.testing.assert_close(
            vector(encoder, spec, [short])[0], vector(encoder, spec, [short, long])[0], atol=1e-5, rtol=1e-5
        )

    def test_formulas_and_numbers_are_split(self):
        tokenizer = build_tokenizer(["the bond length is", "the bond length is"], 2, 100)
        pieces = tokenizer.encode("LiFePO4 bond is 2.93 Å in Halite-CoO2").tokens
        assert pieces[:5] == ["Li", "Fe", "P", "O", "4"]
        assert "2.93" in pieces
        assert "Co" in pieces
        assert SYMBOLS[26] == "Fe"
        assert SYMBOLS[118] == "Og"

    def test_near_lengths_are_nearer_than_far_ones(self):
        encoder, spec = build({"kind": "text", "dim": 32, "depth": 0})
        encoder.eval()
        near, base, far = vector(encoder, spec, [f"All lengths are {d} Å." for d in ("2.83", "2.82", "3.90")])
        assert (near - base).norm() < 0.5 * (far - base).norm()

    def test_a_local_transformers_model(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        tokenizer = build_tokenizer(["the bond length is"] * 2, 1, 100)
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
        fast.save_pretrained(tmp_path)
        config = transformers.BertConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1,
            num_attention_heads=2, intermediate_size=16,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(tmp_path)
        table = {"kind": "text", "model": str(tmp_path), "freeze": True, "dim": 8}
        encoder, spec = build(table)
        encoder.train()
        vectors = encoder(collate_modality(spec, rows("text"))).vector
        vectors.sum().backward()
        assert vectors.shape == (4, 8)
        assert all(not p.requires_grad for p in encoder.body.model.parameters())
        assert not encoder.body.model.training
        fitted = type(encoder).fit(spec, encoder.config, [])
        blank = type(encoder)(spec, encoder.config, {**fitted, "weights_follow": True})
        blank.load_state_dict(encoder.state_dict())
        encoder.eval(), blank.eval()
        torch.testing.assert_close(vector(blank, spec, rows("text")), vector(encoder, spec, rows("text")))

    def test_a_model_that_is_nowhere(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot load"):
            build({"kind": "text", "model": str(tmp_path / "none")})


def test_vector_is_a_short_example():
    import inspect

    from pretrain.encoders import vector as module

    assert len(inspect.getsource(module.VectorEncoder).splitlines()) < 50
