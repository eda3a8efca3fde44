"""Image encoders by timm: any of its models, from scratch or pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.depth import Stages, stages_of
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.ragged import masked_mean, padded
from shards.batch import Inputs
from shards.errors import ConfigError, suggest
from shards.plugins import Options
from shards.schema import ModalitySpec


@ENCODERS.register("image")
class ImageEncoder(Encoder):
    """Images of a sample, several of them -> vector: a timm model on each, a linear map, their mean.

    ``model`` is any name that timm knows; MatMCL's are ``{ kind = "image", model = "vit_base_patch32_224",
    pretrained = true }`` and ``{ kind = "image", model = "resnet50", pretrained = true, batch_norm = "frozen" }``.
    Pixels are scaled to the mean and deviation that the model was trained with; one grey channel is repeated.
    Pretrained weights come from the hub, or from a file of safetensors (``weights``) where it cannot be reached. When
    ``fitted["weights_follow"]`` is set (loading a checkpoint) nothing is fetched.

    Batch statistics would make an image's vector depend on the others of the batch, and on placeholders: a model with
    batch norm is refused unless ``batch_norm = "frozen"``, which uses the statistics of the pretrained weights.
    """

    class Config(Options):
        """Options of `ImageEncoder`."""

        kind: Literal["image"] = "image"
        model: str = Field("convnext_atto", description="name of a timm model")
        dim: int = Field(128, ge=2)
        size: int | None = Field(None, ge=8, description="resize images to this side; default: as stored")
        tokens: Literal["images", "patches"] = Field("images", description="what a fusion attends to")
        pretrained: bool = Field(False, description="take the weights that timm names for the model, from the hub")
        weights: str | None = Field(None, description="take the weights of this file of safetensors instead")
        batch_norm: Literal["refuse", "frozen"] = "refuse"
        dropout: float = Field(0.0, ge=0, lt=1)

    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    gives_tokens: ClassVar[bool] = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        from timm.data import resolve_model_data_config

        self.dim = config.dim
        self.axis, _, *size = spec.fields["pixels"].shape
        self.size = [config.size, config.size] if config.size else [int(side) for side in size]
        self.model = create(config, self.size, weights_follow=bool(fitted.get("weights_follow")))
        data = resolve_model_data_config(self.model)
        self.register_buffer("mean", 255 * torch.tensor(data["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(data["std"]).view(1, -1, 1, 1), persistent=False)
        pooled = getattr(self.model, "head_hidden_size", None) or self.model.num_features
        if config.tokens == "patches" and pooled != self.model.num_features:
            raise ConfigError(
                f"the patches of '{config.model}' are not as wide as its pooled features",
                where="encoder 'image'",
                why=f"{self.model.num_features} and {pooled}",
                do='tokens = "images"',
            )
        self.dropout, self.out = nn.Dropout(config.dropout), nn.Linear(pooled, config.dim)

    def stages(self) -> Stages:
        """Return the parameters from input to output: the model's own stages, then the linear map."""
        return [*stages_of(self.model), list(self.out.parameters())]

    def prepare(self, pixels: Tensor) -> Tensor:
        """Images (I, C, H, W) uint8 -> what the model reads (I, 3, size, size)."""
        x = pixels.float()
        if list(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return ((x - self.mean.float()) / self.deviation.float()).to(self.out.weight.dtype)

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R samples; tokens are their images, or the patches of these."""
        pointer = cast(Tensor, inputs[f"{self.axis}_ptr"])
        features = self.model.forward_features(self.prepare(cast(Tensor, inputs["pixels"])))
        pooled = self.dropout(self.model.forward_head(features, pre_logits=True))
        tokens, mask = padded(self.out(pooled), pointer)
        vector = masked_mean(tokens, mask)
        if self.config.tokens == "images":
            return Encoded(vector, tokens, mask)
        patches, mask = padded(self.out(self.dropout(self.patches(features))), pointer)
        return Encoded(vector, patches.flatten(1, 2), mask.repeat_interleave(patches.shape[2], dim=1))

    def patches(self, features: Tensor) -> Tensor:
        """Feature maps as timm's models give them -> (I, P, channels), without class and register tokens."""
        if features.ndim == 3:
            return features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2)


def create(config: ImageEncoder.Config, size: list[int], *, weights_follow: bool) -> Any:
    """Build a timm model without its classifier, or raise `ConfigError` where it cannot be had or used."""
    import timm
    from timm.layers import freeze_batch_norm_2d

    where, name = "encoder 'image'", config.model
    if not timm.is_model(name.split(".")[0]):
        raise ConfigError(f"timm has no model '{name}'", where=where, why=suggest(name, timm.list_models()))
    options: dict[str, Any] = {"pretrained": (config.pretrained or bool(config.weights)) and not weights_follow}
    if config.weights and not weights_follow:
        if Path(config.weights).suffix != ".safetensors" or not Path(config.weights).is_file():
            raise ConfigError(f"'{config.weights}' is no file of safetensors", where=f"{where}: weights")
        options["pretrained_cfg_overlay"] = {"file": config.weights}
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = size
    try:
        model = timm.create_model(name, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"the timm model '{name}' cannot be built for images of {size[0]} x {size[1]}",
            where=where,
            why=str(error).splitlines()[0] if str(error) else repr(error),
            do="leave 'pretrained' out, or name a file of its weights: weights = \"model.safetensors\""
            if options["pretrained"]
            else "choose another size",
        ) from error
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return model
    if config.batch_norm == "frozen" and (config.pretrained or config.weights):
        return freeze_batch_norm_2d(model)
    raise ConfigError(
        f"'{name}' normalises by statistics of the batch",
        where=where,
        why="an image's vector would depend on the other images",
        do='batch_norm = "frozen" with pretrained weights, or a model without: convnext_atto, vit_tiny_patch16_224',
    )
