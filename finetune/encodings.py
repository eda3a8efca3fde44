"""What frozen encoders make of a part of a data set, computed once: training on it takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.featurizer import Encodings, Featurizer
from pretrain.encoders.base import Encoded
from shards.batch import Batch


@dataclass(frozen=True)
class Column:
    """One modality of N rows.

    Attributes
    ----------
    present : Tensor
        (N,) bool.
    vector : Tensor
        (N, D), zeros where absent.
    tokens, ends : Tensor, optional
        (S, D) real tokens of all rows, one row after the other, and the (N,) places where each row's end: tokens are
        kept without their padding, which differs from batch to batch.
    """

    present: Tensor
    vector: Tensor
    tokens: Tensor | None = None
    ends: Tensor | None = None

    def rows(self, index: Tensor) -> Encoded:
        """Return some rows, their tokens padded to the longest of them."""
        vector = self.vector[index]
        if self.tokens is None or self.ends is None:
            return Encoded(vector)
        begins = torch.cat([self.ends.new_zeros(1), self.ends])[index]
        lengths = self.ends[index] - begins
        # one place at least, so that a softmax has something to be over
        places = torch.arange(max(1, int(lengths.max()) if len(lengths) else 1), device=index.device)
        real = places < lengths[:, None]
        tokens = vector.new_zeros(*real.shape, self.tokens.shape[1])
        tokens[real] = self.tokens[(begins[:, None] + places)[real]]
        return Encoded(vector, tokens, real)

    def take(self, index: Tensor) -> Column:
        """Return some rows as a column."""
        present, vector = self.present[index], self.vector[index]
        if self.tokens is None or self.ends is None:
            return Column(present, vector)
        lengths = self.ends.diff(prepend=self.ends.new_zeros(1))[index]
        begins, ends = (self.ends[index] - lengths), lengths.cumsum(0)
        shift = (begins - (ends - lengths)).repeat_interleave(lengths)
        return Column(present, vector, self.tokens[torch.arange(len(shift), device=shift.device) + shift], ends)

    def deviations(self) -> tuple[Tensor, Tensor | None]:
        """Return the standard deviation (D,) of every entry over the rows that have it, of vectors and of tokens."""
        tokens = None if self.tokens is None else self.tokens.std(dim=0, unbiased=False)
        return self.vector[self.present].std(dim=0, unbiased=False), tokens


@dataclass(frozen=True)
class EncodedRows:
    """Columns of the same N rows, by modality."""

    columns: Mapping[str, Column]

    @classmethod
    @torch.no_grad()
    def of(cls, featurizer: Featurizer, batches: Iterable[Batch]) -> EncodedRows:
        """Encode batches in evaluation mode."""
        parts = []
        training = featurizer.training
        featurizer.eval()
        for batch in batches:
            encoded, present = featurizer.encode(batch)
            parts.append({name: _column(encoded[name], present[name]) for name in encoded})
        featurizer.train(training)
        return cls({name: _joined([part[name] for part in parts]) for name in featurizer.encoders})

    def rows(self, index: Tensor) -> Encodings:
        """Return some rows."""
        encoded = {name: column.rows(index) for name, column in self.columns.items()}
        return Encodings(encoded, {name: column.present[index] for name, column in self.columns.items()})

    def take(self, index: Tensor) -> EncodedRows:
        """Return some rows as encoded rows."""
        return EncodedRows({name: column.take(index) for name, column in self.columns.items()})

    def noisy(self, strength: float, deviations: Mapping[str, tuple[Tensor, Tensor | None]], key: int) -> EncodedRows:
        r"""Return the rows with noise, :math:`x'_j = x_j + \epsilon_j`, :math:`\epsilon_j \sim N(0, (f \sigma_j)^2)`.

        Parameters
        ----------
        strength : float
            f; 0.05 is usual (Ghadimi Mahanipoor & Fathi, Intell. Syst. Appl. 28, 200579).
        deviations : mapping of str to pair of Tensor
            Standard deviation (D,) of each entry over the training rows; see `Column.deviations`.
        key : int
            Seed of the draw. All rows are drawn together, so that they are the same for any number of ranks.
        """
        generator = torch.Generator().manual_seed(key)

        def shaken(values: Tensor, deviation: Tensor) -> Tensor:
            noise = torch.randn(values.shape, generator=generator).to(values)
            return values + strength * deviation * noise

        columns = {}
        for name, column in self.columns.items():
            of_vector, of_tokens = deviations[name]
            vector = shaken(column.vector, of_vector)
            tokens = None if column.tokens is None or of_tokens is None else shaken(column.tokens, of_tokens)
            columns[name] = replace(column, vector=vector, tokens=tokens)
        return EncodedRows(columns)


def _column(encoded: Encoded, present: Tensor) -> Column:
    if encoded.tokens is None or encoded.mask is None:
        return Column(present, encoded.vector)
    real = encoded.mask & present[:, None]
    return Column(present, encoded.vector, encoded.tokens[real], real.sum(dim=1))


def _joined(parts: list[Column]) -> Column:
    """Join columns whose ``ends`` still are lengths."""
    present, vector = torch.cat([p.present for p in parts]), torch.cat([p.vector for p in parts])
    if any(part.tokens is None for part in parts):
        return Column(present, vector)
    tokens, lengths = ([getattr(part, name) for part in parts] for name in ("tokens", "ends"))
    return Column(present, vector, torch.cat(tokens), torch.cat(lengths).cumsum(0))
