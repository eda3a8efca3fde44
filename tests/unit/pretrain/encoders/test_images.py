"""The image encoder is timm's model on every image, without batch statistics; where its weights come from."""

from __future__ import annotations

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

from pretrain.encoders.image import ImageEncoder
from shards.errors import ConfigError
from tests.unit.pretrain.encoders.arrays import SPECS, build, inputs, rows, vectors

VIT = "vit_tiny_patch16_224"


def by_hand(encoder, values, mean=None, deviation=None):
    """Each sample's images through timm's own functions, pooled and averaged."""
    found = []
    for value in values:
        pixels = torch.from_numpy(value["pixels"]).float().expand(-1, 3, -1, -1) / 255
        images = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
        pooled = encoder.model.forward_head(encoder.model.forward_features(images))
        found.append(encoder.out(pooled).mean(0))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("model", "mean", "deviation"),
    [("convnext_atto", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), (VIT, (0.5,) * 3, (0.5,) * 3)],
)
def test_it_is_timms_model_on_each_image_and_their_mean(model, mean, deviation):
    encoder, values = build("image", "image", model=model), rows("image")
    ours = vectors(encoder, "image")
    with torch.no_grad():
        torch.testing.assert_close(ours, by_hand(encoder, values, mean, deviation), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours, by_hand(encoder, values, (0.0,) * 3, (1.0,) * 3), atol=1e-3)
        sums = ours * torch.tensor([len(value["pixels"]) for value in values])[:, None]
    assert not torch.allclose(ours, sums, atol=1e-3)


def test_tokens_are_images_or_their_patches():
    with torch.no_grad():
        images = build("image", "image", model=VIT)(inputs("image"))
        patches = build("image", "image", model=VIT, tokens="patches")(inputs("image"))
        maps = build("image", "image", tokens="patches", size=64)(inputs("image"))
    counts = [2, 1, 3, 1, 2, 1]
    assert images.tokens.shape == (6, 3, 128) and images.mask.sum(1).tolist() == counts
    assert patches.tokens.shape == (6, 3 * 4, 128) and patches.mask.sum(1).tolist() == [4 * n for n in counts]
    assert maps.tokens.shape == (6, 3 * 4, 128)
    torch.testing.assert_close(images.vector[1], images.tokens[1, 0])


def test_other_sizes():
    for options in ({"model": VIT, "size": 48}, {"size": 64}):
        assert vectors(build("image", "image", **options), "image").isfinite().all()


class TestBatchNorm:
    @pytest.fixture
    def weights(self, tmp_path):
        torch.manual_seed(1)
        model = timm.create_model("resnet10t")
        model.train()(torch.randn(8, 3, 32, 32) * 3 + 1)  # running statistics of their own
        safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    def test_it_is_refused(self):
        with pytest.raises(ConfigError, match="statistics of the batch"):
            build("image", "image", model="resnet10t")
        with pytest.raises(ConfigError, match="statistics of the batch"):
            build("image", "image", model="resnet10t", batch_norm="frozen")

    def test_frozen_it_has_the_pretrained_statistics_and_rows_stay_alone(self, weights):
        encoder = build("image", "image", model="resnet10t", batch_norm="frozen", weights=str(weights)).train()
        stored = safetensors.torch.load_file(weights)
        for _ in range(2):
            encoder(inputs("image")).vector.sum().backward()
        assert torch.equal(encoder.model.bn1.running_mean, stored["bn1.running_mean"])
        assert torch.equal(encoder.model.layer1[0].conv1.weight, stored["layer1.0.conv1.weight"])
        together, alone = vectors(encoder, "image"), vectors(encoder, "image", rows("image")[:1])
        torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)

    def test_not_frozen_rows_would_mix(self, weights):
        encoder = build("image", "image", model="resnet10t", batch_norm="frozen", weights=str(weights)).train()
        encoder.model = timm.create_model("resnet10t", num_classes=0).train()
        together, alone = vectors(encoder, "image"), vectors(encoder, "image", rows("image")[:1])
        assert not torch.allclose(together[:1], alone, atol=1e-3)

    def test_a_checkpoint_needs_no_file(self, weights):
        table = {"model": "resnet10t", "batch_norm": "frozen", "weights": str(weights)}
        encoder = build("image", "image", **table)
        weights.unlink()
        blank = ImageEncoder(SPECS["image"], encoder.config, {"weights_follow": True}).eval()
        blank.load_state_dict(encoder.state_dict())
        assert torch.equal(vectors(blank, "image"), vectors(encoder, "image"))


class TestErrors:
    def test_weights_that_cannot_be_fetched(self, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigError, match=r"cannot be built[\s\S]*weights = "):
            build("image", "image", pretrained=True)

    def test_a_model_that_timm_does_not_have(self):
        with pytest.raises(ConfigError, match="did you mean 'convnext_atto"):
            build("image", "image", model="convnext_attto")

    @pytest.mark.parametrize("name", ["none.safetensors", "weights.pth"])
    def test_a_file_that_is_none_of_weights(self, name, tmp_path):
        (tmp_path / "weights.pth").write_bytes(b"")
        with pytest.raises(ConfigError, match="no file of safetensors"):
            build("image", "image", weights=str(tmp_path / name))

    def test_patches_of_another_width(self):
        with pytest.raises(ConfigError, match="not as wide"):
            build("image", "image", model="mambaout_femto", tokens="patches")


def test_layer_wise_rates_see_the_models_blocks():
    stages = build("image", "image", model=VIT).stages()
    assert len(stages) >= 14  # embedding, twelve blocks, head
    assert sum(len(stage) for stage in stages) == len(list(build("image", "image", model=VIT).parameters()))
