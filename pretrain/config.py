"""The recipe: one TOML file, parsed into typed models; an unknown key is an error that suggests the right one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, model_validator

from pretrain.encoders.base import ENCODERS
from pretrain.fusion.base import FUSIONS, FusionOptions
from pretrain.objectives.base import OBJECTIVES, Objective
from shards.augment import Augment
from shards.budget import Budget
from shards.errors import ConfigError, suggest
from shards.mixture import MixedOrder
from shards.orders.base import ORDERS, Order
from shards.plugins import Options
from shards.recipes import apply_overrides, parse, read_tables
from shards.schema import Strict
from shards.store import is_url
from shards.urls import without_secrets


def shown(place: str) -> str:
    """Return the name of a data set as it may be recorded: a URL without user, password and query."""
    return without_secrets(place) if is_url(place) else place


Place = Annotated[str, PlainSerializer(shown)]


class MixEntry(Strict):
    """One data set of a mix.

    Attributes
    ----------
    path : str
        As in `DataConfig`.
    weight : float
        Its share of an epoch, relative to the other weights.
    name : str, optional
        First part of its samples' ids in the mix; the data set's own name where it is left out.
    overlays : tuple of str
        As in `DataConfig`.
    """

    path: Place
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    overlays: tuple[Place, ...] = ()


class DataConfig(Strict):
    """Where the samples come from, in which order, and how they are cut into batches.

    Attributes
    ----------
    path : str, optional
        A folder or URL of shards, or ``embedded:NAME``. No record of a run holds a URL's password or query.
    mix : tuple of MixEntry
        Several data sets in place of ``path``, drawn by weight; see `shards.mixture`.
    epoch_samples : int, optional
        Draws an epoch from a mix; by default as many as the training parts have samples.
    overlays : tuple of str
        Folders or URLs of companion shards that add modalities to those of ``path``.
    split : str
        Split of the manifest; its parts ``train`` and ``val`` are used here, ``test`` never.
    batch_size : int
        GLOBAL batch size, over all ranks; with a budget the largest one.
    budget : Budget, optional
        Cut the batches by the elements of a ragged axis too.
    order : dict
        Order of the training samples (a plug-in's table); validation is always sequential.
    workers : int
        Threads that prepare batches ahead; 0: each is prepared when it is asked for.
    """

    path: Place | None = None
    mix: tuple[MixEntry, ...] = ()
    epoch_samples: int | None = Field(None, gt=0)
    overlays: tuple[Place, ...] = ()
    split: str = "chemical_system"
    batch_size: int = Field(128, gt=0)
    budget: Budget | None = None
    order: dict[str, Any] = {"kind": "shuffled"}
    workers: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _path_or_mix(self) -> DataConfig:
        if (self.path is None) == (not self.mix):
            raise ValueError("give either 'path', or 'mix' with at least one data set")
        if self.mix and self.overlays:
            raise ValueError("the overlays of a mix belong to its data sets: mix = [{ path = ..., overlays = [...] }]")
        if self.epoch_samples and not self.mix:
            raise ValueError("'epoch_samples' is for a mix: otherwise an epoch is every sample once")
        return self

    def training_order(self) -> Order:
        """Return the order of the training samples; that of a mix draws by weight."""
        order = ORDERS.options(self.order)
        if not self.mix:
            return order
        return MixedOrder(inner=order, batch_size=self.batch_size, samples=self.epoch_samples)


class ModalityConfig(Strict):
    """One modality: its encoder (a plug-in's table), its augmentation in training, and how it is trained.

    Attributes
    ----------
    encoder : dict
        The plug-in's table.
    augment : Augment
        In training.
    freeze : str
        ``encoder``: its parameters and buffers stay as they are and it runs in evaluation mode; ``all``: its
        projection too.
    weights : str, optional
        An exported model (``runs/x/best``) whose encoder of the same modality this one starts from, and whose
        projection where it has the same shape. What the encoder was fitted to comes from there too.
    lr_scale : float
        Factor of the encoder's learning rate.
    layer_decay : float
        Factor of the learning rate from each stage of the encoder to the one before it (`Encoder.stages`): the last
        one learns with ``lr_scale``, the one before with ``lr_scale * layer_decay``, and so on.
    """

    encoder: dict[str, Any]
    augment: Augment = Augment()
    freeze: Literal["none", "encoder", "all"] = "none"
    weights: str | None = None
    lr_scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    layer_decay: float = Field(1.0, gt=0, le=1)


class ProjectionConfig(Strict):
    """Maps the vector of an encoder or fusion to the shared space.

    Attributes
    ----------
    kind : str
        ``linear``; ``mlp``: ``layers`` linear maps with GELU between them; ``none``: the vectors are the embeddings,
        and must be ``dim`` wide.
    dim : int
        Width of the shared space.
    hidden, layers : int
        Of an ``mlp``.
    dropout : float
        Of an ``mlp``, after each GELU.
    shared : bool
        One projection for all (MatMCL); their vectors must be equally wide.
    """

    kind: Literal["none", "linear", "mlp"] = "linear"
    dim: int = Field(128, gt=0)
    hidden: int = Field(256, gt=0)
    layers: int = Field(2, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    shared: bool = False


class OptimConfig(Strict):
    """AdamW with linear warm-up and a cosine schedule; what is computed at once, and in which precision.

    Attributes
    ----------
    lr, min_lr : float
        Peak and final learning rate.
    weight_decay : float
        Not applied to vectors and scalars (biases, norms, temperature).
    grad_clip : float
        Largest global gradient norm; 0 turns clipping off.
    precision : str
        ``fp32``, ``bf16`` or ``fp16`` (autocast of the encoders), or ``auto``: bf16 where the accelerator has it.
    micro_batch : int, optional
        Most rows a rank encodes at a time. The gradient is that of the whole batch, the memory of the encoders that
        of a micro-batch, and they run forward nearly twice (`pretrain.accumulate`).
    accumulate : int
        Consecutive batches whose gradients are averaged before the optimizer's step. Each is compared within itself
        only: for more negatives take a larger ``data.batch_size`` and a ``micro_batch``. A step of the run is still
        one batch, with its own learning rate; the optimizer's step takes that of the last one.
    checkpoint_activations : bool
        Keep no activations within an encoder, compute them again when its gradient is.
    compile : bool
        Compile the encoders (`torch.compile`, for any number of rows).
    ema : float, optional
        Decay of a moving average of the weights, such as 0.999; the average is what is validated and exported.
    """

    lr: float = Field(1e-4, gt=0)
    min_lr: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.05, ge=0)
    epochs: int = Field(100, gt=0)
    warmup_epochs: float = Field(5, ge=0)
    grad_clip: float = Field(1.0, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch: int | None = Field(None, gt=0)
    accumulate: int = Field(1, gt=0)
    checkpoint_activations: bool = False
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)


class EvaluationConfig(Strict):
    """Retrieval on the ``val`` part during training, every ``every_epochs`` and at the end."""

    every_epochs: int = Field(10, gt=0)
    complete_only: bool = True


class CheckpointConfig(Strict):
    """When the state of a run is saved.

    Attributes
    ----------
    every_steps : int
        A checkpoint every so many steps, and at the end.
    keep : int
        So many of the newest are kept.
    keep_best : bool
        The one with the best validation score is kept too.
    """

    every_steps: int = Field(200, gt=0)
    keep: int = Field(2, gt=0)
    keep_best: bool = True


class GuardConfig(Strict):
    """What is done about steps that would harm the weights, and about a rank that hangs.

    Attributes
    ----------
    patience : int
        Steps in a row whose gradient is thrown away, because it or the loss is not finite or the loss leaps; then the
        run returns to its newest good checkpoint, and passes over the batches of those steps from there on.
    rollbacks : int
        How often it may return; after that it stops. 0: it stops at once.
    spikes : str
        What to do where the loss leaps: nothing (``off``), say so (``warn``), or throw the gradient away (``skip``).
    spike_factor, spike_window : float, int
        A loss leaps where it exceeds the median of the last ``spike_window`` good ones by more than ``spike_factor``
        times their median absolute deviation, or that many hundredths of the median where they hardly vary.
    hang_timeout_s : float
        Seconds without progress after which a run is ended, and the rank that the others wait for is named;
        0: never. The collectives' own time-out is half an hour.
    """

    patience: int = Field(5, gt=0)
    rollbacks: int = Field(2, ge=0)
    spikes: Literal["off", "warn", "skip"] = "warn"
    spike_factor: float = Field(10.0, gt=0, allow_inf_nan=False)
    spike_window: int = Field(100, gt=1)
    hang_timeout_s: float = Field(1200.0, ge=0, allow_inf_nan=False)


class LoggingConfig(Strict):
    """What is measured and shown beside the loss.

    Attributes
    ----------
    every_steps : int
        Steps between two lines on a log, and between two detailed measurements: where the time goes, throughput,
        memory, the gradient's norm by modality.
    peak_tflops : float, optional
        Peak of one accelerator at this precision, for the model FLOP utilisation; by default that of the data sheet of
        a GPU that is known.
    """

    every_steps: int = Field(10, gt=0)
    peak_tflops: float | None = Field(None, gt=0, allow_inf_nan=False)


class TrackingConfig(Strict):
    """MLflow experiment, and the name under which the best model is registered (none: not registered)."""

    experiment: str = "matloom"
    register_as: str | None = None


class Recipe(Strict):
    """A whole pretraining run."""

    name: str
    seed: int = Field(0, ge=0)
    data: DataConfig
    modalities: dict[str, ModalityConfig]
    fusions: dict[str, dict[str, Any]] = {}
    projection: ProjectionConfig = ProjectionConfig()
    objective: dict[str, Any]
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardConfig = GuardConfig()
    logging: LoggingConfig = LoggingConfig()
    deepspeed: dict[str, Any] = {}
    tracking: TrackingConfig = TrackingConfig()

    def encoder(self, modality: str) -> Options:
        """Return the typed options of a modality's encoder."""
        return ENCODERS.options(self.modalities[modality].encoder)

    def fusion(self, name: str) -> FusionOptions:
        """Return the typed options of a fusion, with its inputs written out."""
        options = FUSIONS.options(self.fusions[name])
        return options if options.inputs else options.model_copy(update={"inputs": tuple(self.modalities)})

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Return every fusion with the modalities that it joins in the end, or raise `ConfigError`."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.fusions:
            if name in self.modalities or ":" in name or "/" in name:
                raise ConfigError(f"a fusion cannot be called '{name}'", where=f"fusions.{name}")
            parts: list[str] = []
            for part in self.fusion(name).inputs:
                if part not in self.modalities and part not in found:
                    raise ConfigError(
                        f"fusion '{name}' joins '{part}', which is no modality and no fusion above it",
                        where=f"fusions.{name}.inputs",
                        why=suggest(part, [*self.modalities, *found]),
                    )
                parts += found.get(part, (part,))
            found[name] = tuple(dict.fromkeys(parts))
        return found

    def build_objective(self) -> Objective:
        """Return the objective of the recipe, with new parameters."""
        options = self.objective_options()
        objective = OBJECTIVES.get(options.kind)(options, list(self.modalities), self.joined())
        objective.sized(self.projection.dim)
        return objective

    def objective_options(self) -> Options:
        """Return the typed options of the objective."""
        return OBJECTIVES.options(self.objective)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default written out, as plain JSON values."""
        tables = self.model_dump(mode="json")
        tables["data"]["order"] = ORDERS.options(self.data.order).model_dump(mode="json")
        for name in self.modalities:
            tables["modalities"][name]["encoder"] = self.encoder(name).model_dump(mode="json")
        tables["fusions"] = {name: self.fusion(name).model_dump(mode="json") for name in self.fusions}
        tables["objective"] = self.objective_options().model_dump(mode="json")
        return tables


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe (TOML, or the JSON of a resolved one) and validate all of it, plug-ins included.

    Parameters
    ----------
    path : Path
        The file.
    overrides : iterable of str
        ``a.b=c`` assignments; c is a TOML value, or a bare string.
    """
    return parse_recipe(apply_overrides(read_tables(path), overrides), where=str(path))


def parse_recipe(tables: Mapping[str, Any], *, where: str) -> Recipe:
    """Validate a recipe's tables, or raise `ConfigError` with a suggestion."""
    recipe = parse(Recipe, tables, where=where)
    recipe.resolved()
    return recipe
