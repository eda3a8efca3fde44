"""Pictures of a sample, several of them, all of one size."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from shards.errors import DataError
from shards.features.base import FEATURES, Feature
from shards.schema import FieldSpec, Kind, ModalitySpec, Value
from shards.sources.base import Record

if TYPE_CHECKING:
    from PIL import Image


@FEATURES.register("image")
class ImageFeature(Feature):
    """Pictures -> uint8 pixels, ``size`` x ``size``; cropping at random is left to the augmentation.

    Attributes
    ----------
    size : int
        Height and width as stored; larger than what an encoder reads where it is to be cropped at random.
    channels : int
        1 (grey) or 3 (colour); a picture of the other kind is converted.
    fit : str
        How a picture that is no square becomes one: ``resize`` changes its proportions, ``crop`` leaves out what its
        longer side has more, on both ends, ``pad`` fills up its shorter side with black on both ends.
    crop_bottom : float
        Share of the height that is cut off below, before anything else: the information bar of a microscope.
    """

    kind: ClassVar[Kind] = "image"
    step: Literal["image"] = "image"
    size: int = Field(256, ge=8, le=4096)
    channels: Literal[1, 3] = 1
    fit: Literal["resize", "crop", "pad"] = "crop"
    crop_bottom: float = Field(0.0, ge=0.0, lt=1.0)

    def spec(self, name: str) -> ModalitySpec:
        """Return the spec of the pictures of a sample; their number differs from sample to sample."""
        fields = {"pixels": FieldSpec(dtype="uint8", shape=("images", self.channels, self.size, self.size))}
        return ModalitySpec(name=name, kind=self.kind, fields=fields, feature=self.model_dump())

    def __call__(self, record: Record) -> Value | None:
        """Return ``pixels`` (images, channels, size, size) uint8, or None without pictures."""
        if not record.images:
            return None
        return {"pixels": np.stack([self._square(picture, record.id) for picture in record.images])}

    def _square(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """Return one picture as (channels, size, size)."""
        from PIL import Image

        grey = pixels.ndim == 2
        if pixels.dtype != np.uint8 or not (grey or (pixels.ndim == 3 and pixels.shape[2] in (1, 3))):
            raise DataError(
                f"a picture is {pixels.dtype}{list(pixels.shape)}, not uint8 (height, width) or (height, width, 3)",
                where=where,
            )
        height = round(pixels.shape[0] * (1.0 - self.crop_bottom))
        if min(height, pixels.shape[1]) < 1:
            raise DataError("nothing is left of a picture", where=where, do="lower crop_bottom")
        kept = pixels[:height]
        picture = Image.fromarray(kept[..., 0] if kept.ndim == 3 and kept.shape[2] == 1 else kept)
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        square = np.asarray(self._fitted_to_square(picture))
        return square[None] if self.channels == 1 else np.ascontiguousarray(square.transpose(2, 0, 1))

    def _fitted_to_square(self, picture: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        size, method = (self.size, self.size), Image.Resampling.BICUBIC
        if self.fit == "resize":
            return picture.resize(size, method)
        if self.fit == "crop":
            return ImageOps.fit(picture, size, method)
        return ImageOps.pad(picture, size, method)
