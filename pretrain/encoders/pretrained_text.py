"""A transformers model inside the text encoder, trained or frozen; vectors of a frozen one are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import xxhash
from torch import Tensor, nn

from pretrain.encoders.base import Encoded
from pretrain.encoders.mlp import perceptron
from pretrain.encoders.ragged import masked_mean
from pretrain.encoders.vector_cache import VectorCache
from shards.cache import cache_folder
from shards.errors import ConfigError

if TYPE_CHECKING:
    from pretrain.encoders.text import TextEncoder

AT_ONCE = 32  # texts that a frozen model reads together
Pieces = Callable[[list[str]], tuple[Tensor, Tensor]]


class Pretrained(nn.Module):
    """A transformers model, the masked mean of its last hidden states, a linear map or perceptron.

    The weights of a frozen model are buffers: no optimizer holds them and ZeRO does not partition them, so that one
    rank may find all its texts in the cache while another one asks the model.
    """

    def __init__(self, config: TextEncoder.Config, fitted: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        if fitted.get("weights_follow"):
            stored = dict(fitted["config"])
            self.model = AutoModel.from_config(AutoConfig.for_model(stored.pop("model_type"), **stored))
        else:
            self.model = _from_hub(AutoModel, cast(str, config.model))
        self.config, self.tokenizer = config, xxhash.xxh3_128_hexdigest(fitted["tokenizer"].encode())
        if config.freeze:
            parameters_to_buffers(self.model.eval())
        width = self.model.config.hidden_size
        self.out = perceptron((width, *config.hidden, config.dim), "relu", config.dropout if config.hidden else 0.0)
        self.cache: VectorCache | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module.forget())

    @staticmethod
    def describe(model: str) -> dict[str, Any]:
        """Tokenizer and configuration of a model, JSON-able."""
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = _from_hub(AutoTokenizer, model)
        return {
            "tokenizer": tokenizer.backend_tokenizer.to_str(),
            "pad_id": tokenizer.pad_token_id or 0,
            "pad_token": tokenizer.pad_token or "[PAD]",
            "config": _from_hub(AutoConfig, model).to_dict(),
        }

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Encode piece numbers (R, T)."""
        hidden = self.hidden(ids, mask)
        return Encoded(self.out(masked_mean(hidden, mask)), self.out(hidden), mask)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Last hidden states (R, T, width) in the precision of the weights."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden.to(next(self.out.parameters()).dtype)

    def cached(self, texts: list[str], pieces: Pieces) -> Encoded:
        """Encode R texts by a frozen model; those that it has seen by their kept vectors."""
        if self.cache is None:
            name, on_disk = self.identity(), self.config.cache == "disk"
            folder = cache_folder() / "text_vectors" / name if on_disk else None
            self.cache = VectorCache(self.model.config.hidden_size, most=self.config.cache_texts, folder=folder)
        keys = [xxhash.xxh3_128_digest(text.encode()) for text in texts]
        found = self.cache.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        # texts of like length together: little padding
        ordered = sorted(missing, key=lambda key: (len(missing[key]), key))
        for start in range(0, len(ordered), AT_ONCE):
            some = ordered[start : start + AT_ONCE]
            vectors = dict(zip(some, self.pooled([missing[key] for key in some], pieces), strict=True))
            self.cache.put(vectors)
            found.update(vectors)
        weight = next(self.out.parameters())
        vector = self.out(torch.stack([found[key] for key in keys]).to(weight.device, weight.dtype))
        return Encoded(vector, vector[:, None])

    @torch.no_grad()
    def pooled(self, texts: list[str], pieces: Pieces) -> Tensor:
        """Masked mean of the last hidden states (R, width), float32 on the CPU, whatever autocast says."""
        ids, mask = pieces(texts)
        with torch.autocast(ids.device.type, enabled=False):
            return masked_mean(self.hidden(ids, mask).float(), mask).cpu()

    def identity(self) -> str:
        """Return a digest of all that a vector depends on beside the text: weights, tokenizer, length."""
        digest = xxhash.xxh3_128(f"{self.tokenizer}\0{self.config.max_tokens}\0{type(self.model).__name__}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def forget(self) -> None:
        """Drop the kept vectors: the weights may have changed."""
        self.cache = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pretrained:
        self.forget()
        return super()._apply(fn, recurse)


def parameters_to_buffers(model: nn.Module) -> None:
    """Make every parameter a buffer of the same name, so that it is saved and moved but neither trained nor sharded."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, None if parameter is None else parameter.detach())


def _from_hub(auto: Any, model: str) -> Any:
    """Load from a folder or the hub; turn its many errors into one for users."""
    try:
        return auto.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load the transformers model '{model}'",
            where=auto.__name__,
            why=str(error).splitlines()[0],
            do="leave 'model' out to train a small text encoder from scratch",
        ) from error
