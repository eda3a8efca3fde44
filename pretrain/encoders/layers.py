"""Layers that encoders of several modalities share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.encoders.attention import attend
from pretrain.encoders.mlp import perceptron


class Block(nn.Module):
    """Pre-norm transformer block with fused attention: ``x + attend(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim)
        self.mlp = perceptron((dim, mlp_dim, dim), dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update tokens (R, T, dim); ``mask`` (R, T) is True for real tokens, (R, T, T) where a row sees a column."""
        rows, length, _ = x.shape
        # three views: a permuted whole would be copied once more on the way back
        query, key, value = (
            part.view(rows, length, self.heads, self.head_dim).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None]
        attended = attend(query, key, value, mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(rows, length, -1)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Summary(nn.Module):
    """A perceptron over (R, N) numbers, standardised by fitted mean and deviation."""

    centre: Tensor
    deviation: Tensor

    def __init__(self, dim: int, mean: list[float], deviation: list[float], dropout: float) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))
        self.mlp = perceptron((len(mean), 2 * dim, dim), dropout=dropout)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (R, dim)."""
        scaled = ((numbers.float() - self.centre.float()) / self.deviation.float()).clamp(-6, 6)
        return self.mlp(scaled.to(next(self.parameters()).dtype))


def summary_statistics(numbers: np.ndarray | Tensor) -> dict[str, list[float]]:
    """Mean and deviation of each column of (R, N) numbers; the deviation is at least a tenth of the overall one."""
    array = np.asarray(numbers, dtype=np.float64)
    deviation = array.std(0)
    return {
        "mean": array.mean(0).round(6).tolist(),
        "std": np.maximum(deviation, 0.1 * deviation.mean() + 1e-6).round(6).tolist(),
    }
