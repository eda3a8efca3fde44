"""Strengths of the variations of one modality, and which of them a kind of modality has."""

from __future__ import annotations

from pydantic import Field, model_validator

from shards.errors import ConfigError
from shards.schema import ModalitySpec, Strict

SCHEDULE = ("drop", "drop_from", "drop_epochs", "mask_with")
NUMBERS = ("gaussian_noise", "noise", "scale")
BY_KIND: dict[str, tuple[str, ...]] = {
    "graph": ("jitter_a", "strain"),
    "spectrum": (*NUMBERS, "shift", "stretch"),
    "grid": (*NUMBERS, "roll", "permute", "flip"),
    "vector": NUMBERS,
    "table": NUMBERS,
    "image": (*NUMBERS, "crop", "flip", "rotate"),
    "text": ("drop_sentences", "drop_words", "mask_words"),
    "sequence": ("drop_tokens", "mask_tokens"),
}


class Augment(Strict):
    """Strengths of the variations; 0 = off.

    Attributes
    ----------
    drop : float
        Every kind: probability that the sample goes without this modality (modality dropout), which
        then is absent and costs no encoding. The last modality of a sample always stays.
    drop_from, drop_epochs : float, int
        Progressive dropout: the probability goes in a straight line from ``drop_from`` in epoch 0 to
        ``drop`` in epoch ``drop_epochs``, and stays there.
    jitter_a : float
        graph: standard deviation of each coordinate of each atom, Angstrom.
    strain : float
        graph with a lattice: standard deviation of each entry of a symmetric strain.
    gaussian_noise : float
        spectrum, grid, vector, image, table: standard deviation of noise that is added to every entry, as
        a fraction of the standard deviation of that entry over the training part (0.05 is usual).
        Integers and entries that are not known stay as they are.
    noise : float
        spectrum, grid, vector, image, table: every entry times ``exp(noise * normal)``.
    scale : float
        spectrum, grid, vector, image, table: all entries of a field times one common ``exp(scale * normal)``.
    shift : float
        spectrum: standard deviation of a shift along the axis, in points (linear interpolation).
    stretch : float
        spectrum: standard deviation of a relative stretch of the axis about its first point.
    roll : float
        grid: probability of a random change of origin (periodic roll along each axis).
    permute : float
        grid: probability of a random permutation of the axes.
    flip : float
        grid, image: probability of a mirror along each axis.
    rotate : float
        image: probability of a rotation by 90, 180 or 270 degrees (180 alone where it is no square).
    crop : int
        image: side of the square that is cut out of each picture, pixels: at random in training, from the
        centre in evaluation.
    drop_sentences : float
        text: probability of leaving out each sentence (at least one stays).
    drop_words : float
        text: probability of leaving out each word (at least one stays).
    mask_words : float
        text: probability of putting ``mask_with`` in place of each word (at least one stays).
    mask_with : str
        The mask word: that of the encoder's tokenizer.
    drop_tokens : float
        sequence: probability of leaving out each token (at least one stays).
    mask_tokens : float
        sequence: probability of putting the mask token (`shards.vocabulary.MASK`) in place of each token (at
        least one stays).
    """

    drop: float = Field(0.0, ge=0.0, le=1.0)
    drop_from: float = Field(0.0, ge=0.0, le=1.0)
    drop_epochs: int = Field(0, ge=0)
    jitter_a: float = Field(0.0, ge=0.0)
    strain: float = Field(0.0, ge=0.0, le=0.2)
    gaussian_noise: float = Field(0.0, ge=0.0)
    noise: float = Field(0.0, ge=0.0)
    scale: float = Field(0.0, ge=0.0)
    shift: float = Field(0.0, ge=0.0)
    stretch: float = Field(0.0, ge=0.0, le=0.2)
    roll: float = Field(0.0, ge=0.0, le=1.0)
    permute: float = Field(0.0, ge=0.0, le=1.0)
    flip: float = Field(0.0, ge=0.0, le=1.0)
    rotate: float = Field(0.0, ge=0.0, le=1.0)
    crop: int = Field(0, ge=0)
    drop_sentences: float = Field(0.0, ge=0.0, lt=1.0)
    drop_words: float = Field(0.0, ge=0.0, lt=1.0)
    mask_words: float = Field(0.0, ge=0.0, lt=1.0)
    mask_with: str = Field("[MASK]", min_length=1)
    drop_tokens: float = Field(0.0, ge=0.0, lt=1.0)
    mask_tokens: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _ramp_has_a_length(self) -> Augment:
        if self.drop_from and not self.drop_epochs:
            raise ValueError("'drop_from' needs 'drop_epochs', the epochs after which 'drop' is reached")
        return self

    def drop_probability(self, epoch: int) -> float:
        """Return the probability of modality dropout in an epoch (counted from 0)."""
        progress = min(1.0, epoch / self.drop_epochs) if self.drop_epochs else 1.0
        return self.drop_from + (self.drop - self.drop_from) * progress

    @property
    def drops(self) -> bool:
        """Whether the modality is ever dropped."""
        return bool(self.drop or self.drop_from)

    @property
    def varies(self) -> bool:
        """Whether values of the modality are changed where it stays."""
        return any(getattr(self, name) for name in Augment.model_fields if name not in SCHEDULE)

    def check(self, spec: ModalitySpec) -> None:
        """Raise `ConfigError` for a strength that would do nothing to the modality, or cannot be applied."""
        where = f"modalities.{spec.name}.augment"
        has_floats = any(field.dtype.startswith("float") for field in spec.fields.values())
        possible = [
            name
            for name in BY_KIND[spec.kind]
            if (name not in NUMBERS or has_floats)
            and (name != "jitter_a" or "positions" in spec.fields or {"frac_coords", "lattice"} <= spec.fields.keys())
            and (name != "strain" or "lattice" in spec.fields)
        ]
        wanted = [name for name in Augment.model_fields if name not in SCHEDULE and getattr(self, name)]
        for name in wanted:
            if name not in possible:
                raise ConfigError(
                    f"'{name}' does nothing to modality '{spec.name}' of kind '{spec.kind}'",
                    where=where,
                    why=f"strengths that do: {', '.join(['drop', *possible])}",
                )
        if self.crop:
            height, width = spec.fields["pixels"].shape[-2:]
            if self.crop > min(int(height), int(width)):
                raise ConfigError(f"a crop of {self.crop} is larger than pictures of {height} x {width}", where=where)
