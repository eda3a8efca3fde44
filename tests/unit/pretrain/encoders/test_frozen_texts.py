"""A frozen text model: its weights stay, every text goes through it once, and vectors never come from another model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from pretrain.encoders.pretrained_text import Pretrained
from pretrain.encoders.text import build_tokenizer
from pretrain.encoders.vector_cache import VectorCache
from shards.batch import collate_modality
from shards.errors import ConfigError
from tests.unit.pretrain.encoders.arrays import SPECS, TEXTS, build, inputs, vectors


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders of two models that differ in their weights alone."""
    tokenizer = build_tokenizer(TEXTS, 1, 100)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, initializer_range=0.5,
    )  # fmt: skip
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("bert")
        fast.save_pretrained(folder)
        transformers.BertModel(config).save_pretrained(folder)
        folders.append(str(folder))
    return folders


def frozen(model, **options):
    return build("text", "text", model=model, freeze=True, dim=8, **options)


def step(encoder):
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder.train()(inputs("text")).vector.square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_a_step_leaves_frozen_weights_bit_for_bit(models, cache):
    encoder = frozen(models[0], cache=cache)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert {name.split(".")[1] for name, _ in encoder.named_parameters()} == {"out"}
    step(encoder)
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"body.out.0.weight", "body.out.0.bias"}
    assert not encoder.body.model.training
    trained = build("text", "text", model=models[0], dim=8)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    step(trained)
    assert not torch.equal(trained.state_dict()["body.model.embeddings.word_embeddings.weight"],
                           before["body.model.embeddings.word_embeddings.weight"])  # fmt: skip


def test_kept_vectors_are_those_of_the_model(models):
    kept, plain = frozen(models[0]), frozen(models[0], cache="off")
    for values in (TEXTS[:2], TEXTS, TEXTS[::-1]):
        torch.testing.assert_close(vectors(kept, "text", values), vectors(plain, "text", values), atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        kept.forward(inputs("text"))
    stored = torch.stack(list(kept.body.cache.vectors.values()))
    assert stored.dtype == torch.float32 and not torch.equal(stored, stored.bfloat16().float())


@pytest.fixture
def read(monkeypatch):
    """The texts that a model has read."""
    seen = []
    pooled = Pretrained.pooled
    monkeypatch.setattr(
        Pretrained, "pooled", lambda self, texts, pieces: seen.extend(texts) or pooled(self, texts, pieces)
    )
    return seen


def test_every_text_is_read_once(models, read):
    encoder = frozen(models[0])
    for values in (TEXTS[:3], [*TEXTS, TEXTS[0]], TEXTS):
        encoder(collate_modality(SPECS["text"], values))
    assert sorted(read) == sorted(TEXTS)


def test_a_bounded_cache_still_answers(models, read):
    encoder, plain = frozen(models[0], cache_texts=2), frozen(models[0], cache="off")
    for _ in range(2):
        torch.testing.assert_close(vectors(encoder, "text"), vectors(plain, "text"), atol=1e-6, rtol=1e-5)
    assert len(encoder.body.cache.vectors) == 2 and len(read) == len(TEXTS) + len(TEXTS) - 2


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MATLOOM_CACHE", str(tmp_path))
    return tmp_path / "text_vectors"


class TestDisk:
    def test_a_later_run_reads_nothing_again(self, models, read, place):
        first = vectors(frozen(models[0], cache="disk"), "text")
        read.clear()
        assert torch.equal(vectors(frozen(models[0], cache="disk"), "text"), first)
        assert not read

    def test_another_model_or_length_has_vectors_of_its_own(self, models, read, place):
        def answer(model, **options):
            return vectors(frozen(model, cache="disk", **options), "text")

        one, two, short = answer(models[0]), answer(models[1]), answer(models[0], max_tokens=2)
        assert len(list(place.iterdir())) == 3 and len(read) == 3 * len(TEXTS)
        assert not torch.allclose(one, two, atol=1e-3) and not torch.allclose(one, short, atol=1e-3)

    def test_a_key_without_the_model_is_caught(self, models, place, monkeypatch):
        monkeypatch.setattr(Pretrained, "identity", lambda self: "text alone")
        one, two = frozen(models[0], cache="disk"), frozen(models[1], cache="disk")
        two.body.out.load_state_dict(one.body.out.state_dict())
        assert torch.equal(vectors(one, "text"), vectors(two, "text"))  # of two different models

    def test_damaged_and_torn_records_are_read_again(self, models, read, place):
        first = vectors(frozen(models[0], cache="disk"), "text")
        (path,) = place.rglob("*.bin")
        data = bytearray(path.read_bytes())
        assert len(data) == len(TEXTS) * (16 + 4 * 16 + 8)
        data[20] ^= 1
        path.write_bytes(data[:-3])
        read.clear()
        torch.testing.assert_close(vectors(frozen(models[0], cache="disk"), "text"), first, atol=1e-6, rtol=1e-5)
        assert len(read) == 2

    def test_a_folder_that_cannot_be_written_is_named(self, models, place):
        place.parent.mkdir(exist_ok=True)
        place.write_text("a file")
        with pytest.raises(ConfigError, match=r"cannot be used[\s\S]*MATLOOM_CACHE"):
            vectors(frozen(models[0], cache="disk"), "text")


def test_loaded_weights_make_new_vectors(models):
    one, two = frozen(models[0]), frozen(models[1])
    old, wanted = vectors(one, "text"), vectors(two, "text")
    one.load_state_dict(two.state_dict())
    torch.testing.assert_close(vectors(one, "text"), wanted)
    assert not torch.allclose(old, wanted, atol=1e-3)


def test_a_copy_of_the_model_shares_the_vectors(models, read):
    encoder = frozen(models[0])
    vectors(encoder, "text")
    read.clear()
    vectors(copy.deepcopy(encoder), "text")
    assert not read


def test_the_published_perceptron(models):
    encoder = frozen(models[0], hidden=[512, 512])
    linear = [layer for layer in encoder.body.out if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(512, 16), (512, 512), (8, 512)]
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in encoder.body.out) == 2
    vector = build("vector", "vector", layers=2, hidden=512, activation="relu", standardise=False)
    linear = [layer for layer in vector.mlp if isinstance(layer, torch.nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(512, 7), (512, 512), (128, 512)]
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in vector.mlp) == 2
    x = inputs("vector")["vector"]
    torch.testing.assert_close(vectors(vector, "vector"), vector.mlp(x))


def test_a_cache_keeps_to_its_bound():
    cache = VectorCache(2, most=1)
    cache.put({b"a" * 16: torch.ones(2), b"b" * 16: torch.zeros(2)})
    cache.put({b"c" * 16: torch.zeros(2)})
    assert list(cache.get([b"a" * 16, b"b" * 16, b"c" * 16])) == [b"a" * 16]
