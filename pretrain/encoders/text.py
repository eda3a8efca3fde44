"""Text encoders: a small transformer with a vocabulary learned from the data set, or any transformers model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.encoders.atoms import gaussians, standard_element_features
from pretrain.encoders.base import ENCODERS, Encoded, Encoder
from pretrain.encoders.layers import Block
from pretrain.encoders.pretrained_text import Pretrained
from pretrain.encoders.ragged import masked_mean
from shards.batch import Inputs
from shards.plugins import Options
from shards.schema import ModalitySpec, Value
from shards.vocabulary import ELEMENTS

SYMBOLS = ["X", *ELEMENTS]  # by atomic number
# Decimals and integers, element symbols (also inside formulas: LiFePO4 -> Li Fe P O 4), words, single signs.
PIECES = r"\d+\.\d+|\d+|[A-Z][a-z]?(?![a-z])|[A-Za-z]+|[^\s\w]|_"
PAD, UNKNOWN, NUMBER = "[PAD]", "[UNK]", "[NUM]"
DECIMALS = [f"{value / 100:.2f}" for value in range(2000)]  # bond lengths, as robocrystallographer writes them
INTEGERS = [str(value) for value in range(500)]
VALUE_GAUSSIANS = 32


@ENCODERS.register("text")
class TextEncoder(Encoder):
    """Text -> vector.

    Without ``model``: a small transformer from scratch. Its vocabulary is learned from the training texts; formulas
    are split into element symbols and numbers. Beside a learned embedding, an element symbol enters by its tabulated
    element features and a number by its value in Gaussians, so that materials and bond lengths that training never
    saw still have a meaning. ``summary`` adds a perceptron over mean, deviation and maximum of the token embeddings
    (a bag of words), which generalises before the transformer does.

    With ``model`` (a folder, or a name on the Hugging Face hub such as ``m3rg-iitd/matscibert``): that model, by
    `transformers.AutoModel`, mean over its last hidden states, then a linear map, or a perceptron (``hidden``).
    ``freeze`` keeps its weights; each text then goes through it once, and its vector is kept in memory, or on disk for
    later runs (``cache``); the vector is then the only token too. MultiMat, as published, on a folder with MatBERT:
    ``{ kind = "text", model = "matbert", freeze = true, hidden = [512, 512], dim = 128, dropout = 0 }``. When
    ``fitted["weights_follow"]`` is set (loading a checkpoint) the model is built from its stored configuration and
    nothing is fetched.
    """

    class Config(Options):
        """Options of `TextEncoder`."""

        kind: Literal["text"] = "text"
        dim: int = Field(128, ge=2)
        depth: int = Field(1, ge=0)
        heads: int = Field(4, ge=1)
        mlp_dim: int = Field(256, ge=1)
        max_tokens: int = Field(192, ge=1, description="longer texts are cut")
        min_count: int = Field(2, ge=1, description="rarer words of the training texts are unknown")
        vocabulary: int = Field(20_000, ge=1, description="most words learned from the training texts")
        summary: bool = Field(True, description="add a perceptron over pooled token embeddings")
        dropout: float = Field(0.3, ge=0, lt=1)
        model: str | None = Field(None, description="folder or hub name of a transformers model")
        hidden: tuple[int, ...] = Field((), description="widths of ReLU layers between `model` and its vector")
        freeze: bool = Field(False, description="keep the weights of `model`")
        cache: Literal["memory", "disk", "off"] = Field("memory", description="where the vectors of a frozen one stay")
        cache_texts: int = Field(500_000, ge=1, description="most texts whose vectors are kept")

    reads: ClassVar[frozenset[str]] = frozenset({"text"})
    gives_tokens: ClassVar[bool] = True

    def __init__(self, spec: ModalitySpec, config: Config, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.tokenizer = Tokenizer.from_str(fitted["tokenizer"])
        self.tokenizer.enable_truncation(config.max_tokens)
        self.tokenizer.enable_padding(pad_id=fitted["pad_id"], pad_token=fitted["pad_token"])
        self.body: nn.Module
        if config.model:
            self.body = Pretrained(config, fitted)
        else:
            self.body = Scratch(config, self.tokenizer)

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Config, values: Iterable[Value]) -> dict[str, Any]:
        """Learn the vocabulary, or take tokenizer and configuration of ``model``."""
        if config.model:
            return Pretrained.describe(config.model)
        tokenizer = build_tokenizer([str(value) for value in values], config.min_count, config.vocabulary)
        return {"tokenizer": tokenizer.to_str(), "pad_id": 0, "pad_token": PAD}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R texts."""
        texts = cast(list[str], inputs["text"])
        if self.config.model and self.config.freeze and self.config.cache != "off":
            return cast(Pretrained, self.body).cached(texts, self.pieces)
        return self.body(*self.pieces(texts))

    def pieces(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return piece numbers of texts (R, T) and their mask (R, T)."""
        encodings = self.tokenizer.encode_batch(texts)
        device = next(self.parameters()).device
        ids = torch.tensor([encoding.ids for encoding in encodings], dtype=torch.long, device=device)
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool, device=device)
        if not mask.any(1).all():  # a text without any known piece: attend to its padding
            mask = mask | ~mask.any(1, keepdim=True)
        return ids, mask

    def train(self, mode: bool = True) -> TextEncoder:
        """A frozen model stays in evaluation mode."""
        super().train(mode)
        if self.config.model and self.config.freeze:
            cast(Pretrained, self.body).model.eval()
        return self


class Scratch(nn.Module):
    """The transformer from scratch: token table, blocks, masked mean, bag-of-words path."""

    word: Tensor
    value: Tensor
    element: Tensor
    features: Tensor

    def __init__(self, config: TextEncoder.Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        dim = config.dim
        places = tokenizer.get_vocab()
        vocabulary = sorted(places, key=places.__getitem__)
        numbers = [PIECE_NUMBER.fullmatch(piece) is not None for piece in vocabulary]
        words = torch.arange(len(vocabulary))
        words[torch.tensor(numbers)] = vocabulary.index(NUMBER)
        values = torch.tensor(
            [float(p) if is_number else -1.0 for p, is_number in zip(vocabulary, numbers, strict=True)]
        )
        symbols = {symbol: z for z, symbol in enumerate(SYMBOLS) if z > 0}
        self.register_buffer("word", words, persistent=False)
        self.register_buffer("value", values, persistent=False)
        self.register_buffer("element", torch.tensor([symbols.get(p, 0) for p in vocabulary]), persistent=False)
        self.register_buffer("features", standard_element_features())
        self.words = nn.Embedding(len(vocabulary), dim)
        nn.init.normal_(self.words.weight, std=0.5)
        self.numbers = nn.Linear(3 * VALUE_GAUSSIANS, dim, bias=False)
        self.elements = nn.Linear(self.features.shape[1], dim, bias=False)
        self.place = nn.Embedding(config.max_tokens, dim)
        nn.init.normal_(self.place.weight, std=0.1)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, max(dim // config.heads, 1), config.mlp_dim, config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.summary = (
            nn.Sequential(
                nn.LayerNorm(3 * dim), nn.Linear(3 * dim, 2 * dim), nn.GELU(), nn.Dropout(config.dropout),
                nn.Linear(2 * dim, dim),
            ) if config.summary else None
        )  # fmt: skip

    def table(self) -> Tensor:
        """Embedding of every piece of the vocabulary (V, dim)."""
        known = (self.value >= 0)[:, None]
        spread = torch.cat([gaussians(self.value, 0.0, high, VALUE_GAUSSIANS) for high in (5.0, 15.0, 240.0)], dim=1)
        dtype = self.words.weight.dtype
        numbers = self.numbers((spread * known).to(dtype))
        return self.words(self.word) + numbers + self.elements(self.features[self.element].to(dtype))

    def forward(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Encode piece numbers (R, T)."""
        plain = F.embedding(ids, self.table())
        x = plain + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        vector = masked_mean(x, mask)
        if self.summary is not None:
            mean = masked_mean(plain, mask)
            deviation = (masked_mean((plain - mean[:, None]) ** 2, mask) + 1e-6).sqrt()
            top = plain.masked_fill(~mask[:, :, None], -torch.inf).amax(1)
            vector = vector + self.summary(torch.cat([mean, deviation, top], dim=1))
        return Encoded(vector, x, mask)


PIECE_NUMBER = re.compile(r"\d+(\.\d+)?")


def build_tokenizer(texts: list[str], min_count: int, most: int) -> Tokenizer:
    """Word-level tokenizer over `PIECES`: marks, all element symbols, all numbers of the grid, frequent words."""
    splitter = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    counts = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    words = sorted((-count, piece) for piece, count in counts.items() if count >= min_count)[:most]
    pieces = [PAD, UNKNOWN, NUMBER, *SYMBOLS[1:], *INTEGERS, *DECIMALS, *(piece for _, piece in words)]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    return tokenizer
