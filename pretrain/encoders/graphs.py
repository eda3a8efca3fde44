"""What the graph networks share: the fields they ask for, edges in polar form, and the frame around the messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from pretrain.encoders.atoms import CrystalSummary, ElementEmbedding, pool_mean, tensor
from pretrain.encoders.base import Encoded, Encoder
from pretrain.encoders.ragged import padded
from shards.batch import Inputs
from shards.errors import ConfigError
from shards.plugins import Options
from shards.schema import ModalitySpec

SHORTEST_A = 0.1
CRYSTAL_FIELDS = ("atomic_numbers", "lattice", "edge_index", "edge_vector")


@dataclass(frozen=True)
class Edges:
    """Edges of R periodic graphs.

    Attributes
    ----------
    index : Tensor
        (2, E) int64, row 0 the neighbour (source), row 1 the centre (target); an atom's own periodic images are
        neighbours too.
    length : Tensor
        (E,) float32, Angstrom, at least 0.1.
    direction : Tensor
        (E, 3) float32, from the centre to the neighbour, of length one.
    """

    index: Tensor
    length: Tensor
    direction: Tensor

    @property
    def source(self) -> Tensor:
        """Neighbours (E,)."""
        return self.index[0]

    @property
    def target(self) -> Tensor:
        """Centres (E,)."""
        return self.index[1]


def edges_of(inputs: Inputs) -> Edges:
    """Return the stored edges; geometry is always float32."""
    vector = tensor(inputs, "edge_vector").float()
    length = vector.norm(dim=1).clamp_min(SHORTEST_A)
    return Edges(tensor(inputs, "edge_index"), length, vector / length[:, None])


def need_fields(spec: ModalitySpec, kind: str, names: tuple[str, ...], step: str) -> None:
    """Raise `ConfigError` where a graph lacks a field: crystals and molecules are of one kind."""
    missing = [name for name in names if name not in spec.fields]
    if missing:
        raise ConfigError(
            f"encoder '{kind}' cannot read the graphs of '{spec.name}'",
            where=f"modalities.{spec.name}.encoder",
            why=f"they have no {', '.join(missing)}",
            do=f"use a modality made by the feature step '{step}', or another encoder",
        )


def fading_radius(spec: ModalitySpec, cutoff_a: float | None) -> float:
    """Return the distance in Angstrom where messages have faded to nothing: as asked for, or the edges' cut-off."""
    found = cutoff_a if cutoff_a is not None else spec.feature.get("cutoff_a")
    if found is None:
        raise ConfigError(
            f"the cut-off of the edges of '{spec.name}' is not known",
            where=f"modalities.{spec.name}.encoder.cutoff_a",
            why="its feature step does not name one",
            do="give the encoder the largest length of an edge: cutoff_a = 5.0",
        )
    return float(found)


class NormedConvolution(nn.Module):
    """A convolution and the layer norm after it."""

    def __init__(self, convolution: nn.Module, dim: int) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, nn.LayerNorm(dim)

    def forward(self, x: Tensor, index: Tensor, *features: Tensor) -> Tensor:
        """Update atoms ``x`` (N, D) along edges (2, E), with features (E, B) where it reads them."""
        return self.norm(self.convolution(x, index, *features))


class CrystalOptions(Options):
    """Options of every `CrystalNetwork`."""

    layers: int = Field(2, ge=1)
    dim: int = Field(128, ge=2)
    summary: bool = Field(True, description="add a perceptron over plain invariants")
    dropout: float = Field(0.3, ge=0, lt=1, description="of the sums of messages, and of the summary")


class CrystalEncoder(Encoder):
    """Base of what reads crystal graphs: a subclass makes a vector of each crystal, and sets ``self.summary`` last."""

    reads: ClassVar[frozenset[str]] = frozenset({"graph"})
    gives_tokens: ClassVar[bool] = True
    summary: CrystalSummary | None

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        need_fields(spec, config.kind, CRYSTAL_FIELDS, "crystal")

    def finished(self, inputs: Inputs, vector: Tensor, atoms: Callable[[], Tensor]) -> Encoded:
        """Add the plain path to vectors (R, dim); the tokens are the ``atoms`` (N, dim), made where they are read."""
        if self.summary is not None:
            vector = vector + self.summary(inputs)
        if not self.tokens_wanted:
            return Encoded(vector)
        return Encoded(vector, *padded(atoms(), tensor(inputs, "atoms_ptr")))


class CrystalNetwork(CrystalEncoder):
    """Frame of the crystal networks: elements in, layer norm, mean over atoms, one linear map, the plain path beside.

    A subclass implements `build` and `atoms`. Because the mean over the atoms and not their sum is taken, a
    supercell has the vector of its primitive cell.
    """

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__(spec, config, fitted)
        self.dim = config.dim
        self.elements = ElementEmbedding(config.dim)
        self.build(config)  # here, so that the parts stand in the order in which they run
        self.norm = nn.LayerNorm(config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.summary = CrystalSummary(config.dim, potentials=False, dropout=config.dropout) if config.summary else None

    def build(self, config: Any) -> None:
        """Make the parts between the elements and the pool; `spec` and `dim` are set."""
        raise NotImplementedError

    def atoms(self, numbers: Tensor, edges: Edges) -> Tensor:
        """Return what the messages make of each atom: (N, dim) from atomic numbers (N,)."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R crystals; tokens are the atoms."""
        row, rows = tensor(inputs, "atoms_row"), len(tensor(inputs, "atoms_ptr")) - 1
        x = self.norm(self.atoms(tensor(inputs, "atomic_numbers"), edges_of(inputs)))
        return self.finished(inputs, self.out(pool_mean(x, row, rows)), lambda: self.out(x))
