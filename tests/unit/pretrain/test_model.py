"""What the model makes of a batch: presence, second views, fusions, and the same graph whatever is absent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrain.config import parse_recipe
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.fusion.base import FUSIONS, Fusion, FusionOptions
from pretrain.model import MultimodalModel
from pretrain.names import parsed, second
from pretrain.objectives.base import OBJECTIVES, GlobalBatch, Objective
from pretrain.spans import Spans
from shards.batch import Batch, collate
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import FieldSpec, ModalitySpec, Sample

NAMES, WIDTH = ("a", "b", "c"), 6
SPECS = {
    name: ModalitySpec(name=name, kind="vector", fields={"values": FieldSpec(dtype="float32", shape=(WIDTH,))})
    for name in NAMES
}
ATTENTION = {"dim": 8, "heads": 2, "dropout": 0.0}
FUSED: dict[str, dict[str, Any]] = {
    "concat": {"joint": {"kind": "concat", "dim": 8}},
    "transformer": {"joint": {"kind": "token_transformer", **ATTENTION}},
    "vectors": {"joint": {"kind": "test_vectors"}},
    "tree": {
        "pair": {"kind": "gmca", "inputs": ["b", "c"], **ATTENTION},
        "joint": {"kind": "concat", "dim": 8, "inputs": ["a", "pair"]},
    },
}


class Tokens(Encoder):
    """A vector and two tokens, which have parameters of their own: a fusion of vectors never reaches these."""

    class Config(Options):
        kind: Literal["test_tokens"] = "test_tokens"

    reads = frozenset({"vector"})
    gives_tokens: ClassVar[bool] = True
    dim = 6

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Any) -> None:
        super().__init__(spec, config, fitted)
        self.vector, self.tokens = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 12)

    def forward(self, inputs: Any) -> Encoded:
        tokens = self.tokens(inputs["values"]).unflatten(1, (2, 6))
        return Encoded(self.vector(inputs["values"]), tokens, inputs["values"][:, :2] > -1)


class Vectors(Fusion):
    """The sum of the vectors."""

    class Config(FusionOptions):
        kind: Literal["test_vectors"] = "test_vectors"

    dim = 6

    def fuse(self, encoded: Any, present: Any) -> Encoded:
        return Encoded(torch.stack([encoded[name].vector for name in self.inputs]).sum(0))


class Reads(Objective):
    """Reads what its options name."""

    class Config(Options):
        kind: Literal["test_reads"] = "test_reads"
        read: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.config.read

    def forward(self, batch: GlobalBatch) -> Any:
        return torch.stack([(z * batch.present[name][:, None]).square().sum() for name, z in batch.z.items()]).sum(), {}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, plugin in ((ENCODERS, Tokens), (FUSIONS, Vectors), (OBJECTIVES, Reads)):
        kind = plugin.Config.model_fields["kind"].default
        monkeypatch.setitem(registry._plugins, kind, plugin)  # type: ignore[attr-defined]


def model(read: tuple[str, ...], fused: dict[str, Any] | None = None, modalities: str = "abc") -> MultimodalModel:
    recipe = {
        "name": "t", "data": {"path": "x"}, "projection": {"dim": 5}, "fusions": fused or {},
        "modalities": {name: {"encoder": {"kind": "test_tokens"}} for name in modalities},
        "objective": {"kind": "test_reads", "read": read},
    }  # fmt: skip
    torch.manual_seed(0)
    return MultimodalModel(parse_recipe(recipe, where="t"), SPECS, {})


def collated(has: list[str], seed: int = 0) -> Batch:
    """One row for each of ``has``, the modalities that it has; the second view holds other values."""

    def view(rng: np.random.Generator) -> Batch:
        samples = [
            Sample(id=str(row), arrays={m: {"values": rng.normal(size=WIDTH).astype("f4")} for m in names})
            for row, names in enumerate(has)
        ]
        return collate(samples, SPECS)

    return replace(view(np.random.default_rng(seed)), twin=view(np.random.default_rng(seed + 1)))


BATCHES = {
    "full": ["abc", "ab", "c", "", "abc"],
    "without b": ["ac", "a", "c", "", "a"],
    "nothing": ["", "", ""],
    "no rows": [],
    "one row": ["abc"],
}
JOINT = ("joint", "joint:a", "joint:b", "joint/2", "joint:b/2")
READS = {"direct": ("a", "b", "c"), "views": ("a", "b/2", "c", "a/2"), **dict.fromkeys(FUSED, JOINT)}
CASES = [(name, batch) for name in READS for batch in BATCHES]


def forward(net: MultimodalModel, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, list[str]]]:
    """Run forward and backward; returns the embeddings, their presence, what ran and which parameters were reached."""
    ran: list[str] = []
    parts = [(n, m) for n, m in net.named_modules() if n.count(".") == 1 and not n.startswith("objective")]
    hooks = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in parts]
    net.zero_grad()
    z, present = net(batch)
    loss, _ = net.objective(GlobalBatch(z=z, present=present, local=slice(0, len(batch.ids))))
    loss.backward()
    for hook in hooks:
        hook.remove()
    return z, present, {"ran": ran, "reached": [n for n, p in net.named_parameters() if p.grad is not None]}


@pytest.mark.parametrize(("reads", "has"), CASES)
def test_the_same_parts_run_and_the_same_parameters_are_reached_whatever_is_absent(reads: str, has: str) -> None:
    net, batch = model(READS[reads], FUSED.get(reads)), collated(BATCHES[has])
    z, present, parts = forward(net, batch)
    assert parts == forward(net, collated(BATCHES["full"]))[2]
    assert list(z) == list(present) == list(READS[reads])
    for name in z:
        base, only, _ = parsed(name)
        seen = only or {"joint": "abc"}.get(base, base)
        expected = [bool(set(seen) & set(row)) for row in BATCHES[has]]
        assert present[name].tolist() == expected
        assert z[name].shape == (len(batch.ids), 5)
        assert z[name].isfinite().all()
        assert not z[name][~present[name]].any()
        assert z[name][present[name]].abs().sum(1).all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_a_placeholder_that_skips_its_tokens_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Touching the tokens of a placeholder that no fusion reads puts the rank out of step, so does leaving them out."""
    net = model(READS["vectors"], FUSED["vectors"])
    right = forward(net, collated(BATCHES["full"]))[2]

    def touched(encoded: Encoded, batch: Batch, name: str) -> Encoded:
        zero = 0.0 * encoded.vector.sum() + 0.0 * encoded.tokens.sum()  # type: ignore[union-attr]
        return Encoded(encoded.vector.new_zeros(max(1, len(batch.ids)), 6) + zero)

    monkeypatch.setattr("pretrain.model.spread_rows", touched)
    assert forward(net, collated(BATCHES["no rows"]))[2] != right


def test_rows_are_encoded_alone() -> None:
    """What a batch gives a row is what the row alone gives, in a fusion too."""
    for reads in READS:
        net = model(READS[reads], FUSED.get(reads)).eval()
        z, _, _ = forward(net, collated(BATCHES["full"]))
        for row in range(len(BATCHES["full"])):
            alone = collated([names if at == row else "" for at, names in enumerate(BATCHES["full"])])
            # the same values: absent rows draw no random numbers, so they are cut from the whole
            cut = {m: batch_row(collated(BATCHES["full"]), m, row) for m in BATCHES["full"][row]}
            alone = replace(alone, inputs=cut, twin=None)
            some = net.encode(alone)[0]
            for name in some:
                torch.testing.assert_close(some[name][row], z[name][row])


def batch_row(batch: Batch, name: str, row: int) -> dict[str, Any]:
    at = int(batch.present[name][:row].sum())
    return {"values": batch.inputs[name]["values"][at : at + 1]}


def test_the_second_view_is_the_first_of_the_twin() -> None:
    for reads in ("views", "concat", "tree"):
        net, batch = model(READS[reads], FUSED.get(reads)), collated(BATCHES["full"])
        z, present = net(batch)
        twin_z, twin_present = model(READS[reads], FUSED.get(reads))(replace(batch.twin, twin=batch))  # type: ignore[type-var]
        twice = [name for name in z if second(name) in z]
        assert twice
        for name in twice:
            assert (z[second(name)] == twin_z[name]).all()
            assert (present[second(name)] == twin_present[name]).all()
            assert not (z[name] == z[second(name)]).all()
        assert set(net.encode(batch)[0]) == {name for name in READS[reads] if not parsed(name).view}
    with pytest.raises(AssertionError, match="two views"):
        net(replace(batch, twin=None))


@pytest.mark.parametrize("reads", FUSED)
@pytest.mark.parametrize("modality", NAMES)
def test_a_modality_that_is_read_through_a_fusion_is_embedded_by_it_alone(reads: str, modality: str) -> None:
    net = model(("joint", f"joint:{modality}"), FUSED[reads]).eval()
    batch = collated(BATCHES["full"])
    z, present = net.encode(batch)
    found = net.embed(modality, batch.inputs[modality])
    torch.testing.assert_close(found, z[f"joint:{modality}"][present[f"joint:{modality}"]])


def test_the_fusion_that_embeds_a_modality_is_one_that_joins_it() -> None:
    two = {
        "left": {"kind": "test_vectors", "inputs": ["a", "b"]},
        "right": {"kind": "test_vectors", "inputs": ["b", "c"]},
    }
    net = model(("left", "right", "right:b"), two)
    assert [net.fusion_of(name) for name in NAMES] == ["left", "right", "right"]
    net = model(("a", "right"), {"right": two["right"]})
    batch = collated(BATCHES["full"])
    torch.testing.assert_close(net.embed("a", batch.inputs["a"]), net.encode(batch)[0]["a"][batch.present["a"]])
    assert net.embed("c", batch.inputs["c"]).shape == (3, 5)


def test_a_part_that_no_loss_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads 'c' neither"):
        model(("a", "b"))
    with pytest.raises(ConfigError, match=r"reads 'joint' neither[\s\S]*fusions.joint"):
        model(NAMES, FUSED["concat"])


def test_the_time_of_every_part_is_measured() -> None:
    net, batch = model(READS["tree"], FUSED["tree"]), collated(BATCHES["full"])
    with Spans() as spans:
        net(batch)
    assert set(spans.seconds) == {"encode/a", "encode/b", "encode/c", "fuse/joint"}
    assert all(seconds > 0 for seconds in spans.seconds.values())


@pytest.mark.parametrize("has", BATCHES)
@pytest.mark.parametrize("reads", ["direct", "transformer", "tree"])
def test_under_autocast_embeddings_are_single_precision(reads: str, has: str) -> None:
    net = model(READS[reads], FUSED.get(reads))
    exact, _ = net(collated(BATCHES[has]))
    net.autocast = torch.bfloat16
    z, _, _ = forward(net, collated(BATCHES[has]))
    for name in z:
        assert z[name].dtype == torch.float32
        torch.testing.assert_close(z[name], exact[name], atol=0.05, rtol=0.05)
