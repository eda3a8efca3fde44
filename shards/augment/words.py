"""Variations of texts and of token sequences: parts are left out or masked."""

from __future__ import annotations

import re

import numpy as np

from shards.augment.config import Augment
from shards.schema import Arrays, ModalitySpec
from shards.vocabulary import MASK

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def augment_text(text: str, rng: np.random.Generator, config: Augment) -> str:
    """Leave out sentences, then words; mask some of the words that are left."""
    if config.drop_sentences:
        text = " ".join(_kept(SENTENCE_END.split(text), config.drop_sentences, rng))
    if config.drop_words:
        text = " ".join(_kept(text.split(), config.drop_words, rng))
    if config.mask_words:
        words = text.split()
        stays = spared(len(words), config.mask_words, rng)
        text = " ".join(word if keep else config.mask_with for word, keep in zip(words, stays, strict=True))
    return text


def _kept(parts: list[str], probability: float, rng: np.random.Generator) -> list[str]:
    return [part for part, stays in zip(parts, spared(len(parts), probability, rng), strict=True) if stays]


def spared(count: int, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Return (count,) bool: what stays where each goes with ``probability``; one at least does."""
    keep = rng.random(count) >= probability
    if count:
        keep[rng.integers(count)] = True
    return keep


def augment_sequence(spec: ModalitySpec, value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Leave out tokens, with their entries in every field; mask some of the tokens that are left."""
    value = dict(value)
    axis = spec.fields["tokens"].shape[0]
    if config.drop_tokens:
        keep = np.flatnonzero(spared(len(value["tokens"]), config.drop_tokens, rng))
        for name, field in spec.fields.items():
            if axis in field.shape:
                value[name] = np.take(value[name], keep, axis=field.shape.index(axis))
    if config.mask_tokens:
        stays = spared(len(value["tokens"]), config.mask_tokens, rng)
        value["tokens"] = np.where(stays, value["tokens"], MASK).astype(value["tokens"].dtype)
    return value
