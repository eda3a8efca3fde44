"""The encoder contract: present rows of one modality in, one vector a row out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from pretrain.depth import Stages, stages_of
from shards.batch import Inputs
from shards.plugins import Options, Registry
from shards.schema import ModalitySpec, Value


class Encoded(NamedTuple):
    """Output of an encoder over R rows.

    A tuple, since ZeRO 3 looks for tensors in tuples: it gathers a module's own parameters for the backward pass only
    where it finds what the module returned.

    Attributes
    ----------
    vector : Tensor
        (R, D) pooled representation.
    tokens : Tensor, optional
        (R, T, D) for fusions that attend to parts; as wide as the vector.
    mask : Tensor, optional
        (R, T) bool, True = real token.
    """

    vector: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Encoder(nn.Module):
    """Base of the encoder plug-ins.

    A subclass has a nested ``Config(Options)``, the class attribute ``reads`` (the modality kinds it
    accepts), says by ``gives_tokens`` whether it returns tokens too, sets ``self.dim`` (width D of its
    vector and its tokens) and implements ``forward``. It must treat the rows independently: no batch
    statistics, nothing that leaks from one row to another.

    Parameters
    ----------
    spec : ModalitySpec
        The modality that it will read.
    config : Options
        The encoder's own ``Config``.
    fitted : mapping
        What `fit` returned (JSON-able), stored in every checkpoint.

    Attributes
    ----------
    tokens_wanted : bool
        Whether anybody reads the tokens; where they cost something, an encoder may leave them out if not.
    """

    Config: ClassVar[type[Options]] = Options
    reads: ClassVar[frozenset[str]] = frozenset()
    gives_tokens: ClassVar[bool] = False
    tokens_wanted: bool = True
    dim: int

    def __init__(self, spec: ModalitySpec, config: Any, fitted: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec, self.config = spec, config

    @classmethod
    def fit(cls, spec: ModalitySpec, config: Any, values: Iterable[Value]) -> dict[str, Any]:
        """Learn what must be known before building (vocabulary, scales) from TRAINING values."""
        return {}

    def forward(self, inputs: Inputs) -> Encoded:
        """Encode R present rows."""
        raise NotImplementedError

    def stages(self) -> Stages:
        """Return the parameters from input to output, for ``layer_decay``; by default by the order of the children."""
        return stages_of(self)


ENCODERS: Registry[type[Encoder]] = Registry(
    "encoder",
    {
        "potnet": "pretrain.encoders.potnet",
        "cgcnn": "pretrain.encoders.cgcnn",
        "comformer": "pretrain.encoders.comformer",
        "schnet": "pretrain.encoders.schnet",
        "visnet": "pretrain.encoders.visnet",
        "composition": "pretrain.encoders.composition",
        "gin": "pretrain.encoders.gin",
        "dmpnn": "pretrain.encoders.dmpnn",
        "fingerprint": "pretrain.encoders.fingerprint",
        "spectrum_transformer": "pretrain.encoders.spectrum",
        "spectrum_cnn": "pretrain.encoders.spectrum_cnn",
        "xrd": "pretrain.encoders.spectrum",
        "resnext3d": "pretrain.encoders.resnext3d",
        "vit3d": "pretrain.encoders.vit3d",
        "image": "pretrain.encoders.image",
        "ft_transformer": "pretrain.encoders.tables",
        "table_mlp": "pretrain.encoders.tables",
        "smiles_transformer": "pretrain.encoders.sequence",
        "text": "pretrain.encoders.text",
        "vector": "pretrain.encoders.vector",
    },
)
