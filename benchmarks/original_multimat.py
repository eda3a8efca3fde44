"""MultiMat's published step in plain PyTorch, as its paper and its published configuration describe it.

Moro et al., Newton 2025, 100016 (arXiv 2312.00111). Written from the formulas, to be timed beside matloom's step:
explicit attention over the 601 points of a density of states, a 3-D ResNeXt-50 with batch norm, a perceptron over
frozen text vectors, messages over the edges of a crystal graph by perceptrons over the concatenation [x_i, x_j, e],
rows of zeros encoded where a modality is missing, InfoNCE over whole matrices of logits at a fixed temperature.

The crystal network has the size of the published one (PotNet: 3 layers, 256, 1.7 M parameters) and its kind of message,
over local edges only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 0.2
DIM, HEADS, HEAD_DIM, MLP_DIM, DEPTH = 128, 8, 64, 512, 4
BLOCKS, WIDTHS, CARDINALITY, EXPANSION = (3, 4, 6, 3), (128, 256, 512, 1024), 32, 2
ELEMENTS, ELEMENT_FEATURES, CRYSTAL_DIM, GAUSSIANS = 119, 92, 256, 256


class AttentionBlock(nn.Module):
    """Pre-norm transformer block that holds its matrices of attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv = nn.Linear(DIM, 3 * HEADS * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, MLP_DIM), nn.GELU(), nn.Linear(MLP_DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Update tokens (B, T, DIM)."""
        query, key, value = (
            part.unflatten(2, (HEADS, HEAD_DIM)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / HEAD_DIM**0.5, dim=3)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class DosTransformer(nn.Module):
    """Densities of states (B, 2, T), energies and densities -> (B, DIM)."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.density = nn.Linear(1, DIM), nn.Linear(1, DIM)
        self.merge = nn.Linear(2 * DIM, DIM)
        self.blocks = nn.Sequential(*(AttentionBlock() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, dos: Tensor) -> Tensor:
        """Encode every row, whether it exists or not."""
        energy, density = dos[:, 0, :, None], dos[:, 1, :, None]
        tokens = self.merge(torch.cat([self.energy(energy), self.density(density)], dim=2))
        return self.norm(self.blocks(tokens)).mean(1)


def convolution(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv3d:
    """Return a 3-D convolution without bias, with zeros beyond the faces."""
    return nn.Conv3d(inside, outside, size, stride, size // 2, groups=groups, bias=False)


class ResNeXtBlock(nn.Module):
    """1^3, grouped 3^3 and 1^3 convolutions with batch norm, beside a shortcut."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = EXPANSION * width
        self.branch = nn.Sequential(
            convolution(inside, width, 1), nn.BatchNorm3d(width), nn.ReLU(inplace=True),
            convolution(width, width, 3, stride, CARDINALITY), nn.BatchNorm3d(width), nn.ReLU(inplace=True),
            convolution(width, outside, 1), nn.BatchNorm3d(outside),
        )  # fmt: skip
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inside == outside
            else nn.Sequential(convolution(inside, outside, 1, stride), nn.BatchNorm3d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Update a grid (B, inside, n, n, n)."""
        return F.relu(self.branch(x) + self.shortcut(x))


class ResNeXt3D(nn.Module):
    """Charge densities (B, 1, n, n, n) -> (B, DIM) by a ResNeXt-50."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 64, 7, 2)
        self.norm = nn.BatchNorm3d(64)
        blocks, channels = [], 64
        for stage, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            for block in range(count):
                blocks.append(ResNeXtBlock(channels, width, 2 if stage and not block else 1))
                channels = EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.out = nn.Linear(channels, DIM)

    def forward(self, density: Tensor) -> Tensor:
        """Encode every row, whether it exists or not."""
        x = F.max_pool3d(F.relu(self.norm(self.stem(density))), 3, 2, 1)
        return self.out(self.blocks(x).mean((2, 3, 4)))


class MessageLayer(nn.Module):
    """``x_i + relu(norm(sum_j sigmoid(norm(MLP[x_i, x_j, e])) * MLP[x_i, x_j, e]))``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = (
            nn.Sequential(nn.Linear(3 * CRYSTAL_DIM, CRYSTAL_DIM), nn.SiLU(), nn.Linear(CRYSTAL_DIM, CRYSTAL_DIM))
            for _ in range(2)
        )
        self.gate_norm, self.norm = nn.BatchNorm1d(CRYSTAL_DIM), nn.BatchNorm1d(CRYSTAL_DIM)

    def forward(self, x: Tensor, edges: Tensor, features: Tensor) -> Tensor:
        """Update atoms (N, CRYSTAL_DIM) along edges (2, E), source and target."""
        source, target = edges
        seen = torch.cat([x[target], x[source], features], dim=1)
        message = torch.sigmoid(self.gate_norm(self.gate(seen))) * self.value(seen)
        return x + F.relu(self.norm(torch.zeros_like(x).index_add(0, target, message.to(x.dtype))))


class CrystalNetwork(nn.Module):
    """Crystal graphs -> (B, DIM)."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        # in place of tabulated features of the elements, of which there are as many
        self.register_buffer("table", torch.randn(ELEMENTS, ELEMENT_FEATURES))
        self.atoms = nn.Linear(ELEMENT_FEATURES, CRYSTAL_DIM)
        self.edges = nn.Sequential(nn.Linear(GAUSSIANS, CRYSTAL_DIM), nn.Softplus())
        self.layers = nn.ModuleList(MessageLayer() for _ in range(3))
        self.out = nn.Linear(CRYSTAL_DIM, DIM)

    def forward(self, graphs: Mapping[str, Tensor]) -> Tensor:
        """Encode graphs as matloom collates them."""
        x = self.atoms(self.table[graphs["atomic_numbers"].long()])
        centres = torch.linspace(-4, 4, GAUSSIANS)
        place = -0.75 / graphs["edge_vector"].norm(dim=1)
        features = self.edges(torch.exp(-(((place[:, None] - centres) * (GAUSSIANS - 1) / 8) ** 2)))
        for layer in self.layers:
            x = layer(x, graphs["edge_index"], features)
        row, rows = graphs["atoms_row"], len(graphs["atoms_ptr"]) - 1
        pooled = x.new_zeros(rows, x.shape[1]).index_add(0, row, x)
        return self.out(pooled / torch.bincount(row, minlength=rows)[:, None])


def all_pairs(z: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Return the mean over pairs of symmetric InfoNCE of the rows that have both, with every logit held.

    No number where a pair has no row at all, as in the published program.
    """
    losses = []
    for a, b in combinations(z, 2):
        both = present[a] & present[b]
        logits = F.normalize(z[a][both], dim=1) @ F.normalize(z[b][both], dim=1).T / TEMPERATURE
        own = torch.arange(len(logits))
        losses.append((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)
    return torch.stack(losses).mean()


class OriginalMultiMat(nn.Module):
    """The four encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                "crystal": CrystalNetwork(),
                "dos": DosTransformer(),
                "charge_density": ResNeXt3D(),
                "text": nn.Sequential(
                    nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, DIM)
                ),
            }
        )

    def forward(self, inputs: Mapping[str, Tensor | Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the embeddings (B, DIM) of all rows by modality."""
        return {name: encoder(inputs[name]).float() for name, encoder in self.encoders.items()}
