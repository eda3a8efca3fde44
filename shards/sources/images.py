"""Pictures of samples: found in a folder by a table, and decoded by default-deny."""

from __future__ import annotations

import os
import re
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from pydantic import Field, model_validator

from shards.errors import DataError
from shards.formats.files import files_below, inside
from shards.schema import Strict

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_FILE_BYTES = 200_000_000
# what Pillow itself begins to warn of as a decompression bomb
MAX_PIXELS = 89_478_485
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class ImageFiles(Strict):
    """Where the pictures of a table's samples lie.

    Attributes
    ----------
    column : str, optional
        Column with file names: one, or several with ``separator`` between them; an id may have several rows.
    folder : str
        Folder of the files, from the table's own.
    pattern : str, optional
        Instead of a column: file names of a sample, ``{id}`` for its id, ``*`` for any letters, ``?`` for one.
    separator : str
        What separates file names in a cell.
    max_pixels, max_images : int
        Larger pictures, and samples with more of them, are refused.
    bits : int, optional
        Significant bits of pictures with 16 bits a pixel (12 for many detectors): full scale becomes 255. By default
        what the file says, else 16.
    """

    column: str | None = None
    folder: str = "."
    pattern: str | None = None
    separator: str = Field(";", min_length=1)
    max_pixels: int = Field(50_000_000, gt=0, le=MAX_PIXELS)
    max_images: int = Field(256, gt=0)
    bits: int | None = Field(None, ge=9, le=16)

    @model_validator(mode="after")
    def _one_way(self) -> ImageFiles:
        if (self.column is None) == (self.pattern is None):
            raise ValueError("pictures are named by a 'column' or by a 'pattern'")
        if self.pattern is not None and "{id}" not in self.pattern:
            raise ValueError(f"the pattern '{self.pattern}' has no {{id}}")
        return self

    def names(self, id: str, cells: Sequence[str], base: Path) -> list[str]:
        """List the pictures of a sample, as names in the folder; a name that is listed twice counts once.

        Parameters
        ----------
        id : str
            The sample.
        cells : sequence of str
            Its cells of ``column``.
        base : Path
            Folder of the table.
        """
        if self.pattern is None:
            found = [name.strip() for cell in cells for name in cell.split(self.separator)]
            return list(dict.fromkeys(name for name in found if name))
        # what all matches begin with, so that a sorted listing is searched only where they can be
        start = re.split(r"[*?]", self.pattern)[0].replace("{id}", id)
        return _matching(str(base / self.folder), _expression(self.pattern, id), start)

    def read(self, names: Sequence[str], base: Path) -> tuple[np.ndarray, ...]:
        """Decode pictures to uint8 (height, width) or (height, width, 3).

        Raises
        ------
        DataError
            For a picture that is missing, lies outside of the folder, is too large or is none.
        """
        folder = base / self.folder
        if len(names) > self.max_images:
            raise DataError(f"the sample has {len(names)} pictures, more than {self.max_images}", where=folder)
        return tuple(read_image(inside(folder, name), max_pixels=self.max_pixels, bits=self.bits) for name in names)


@lru_cache(maxsize=4)
def _listing(folder: str, changed_ns: int) -> tuple[str, ...]:
    """List the files below a folder as sorted relative names."""
    return tuple(sorted(files_below(Path(folder))))


def _matching(folder: str, expression: re.Pattern[str], start: str) -> list[str]:
    """Return the files that match, all of which begin with ``start``."""
    try:
        files = _listing(folder, os.stat(folder).st_mtime_ns)
    except OSError as error:
        raise DataError(f"the folder of pictures cannot be read: {error.strerror}", where=folder) from None
    found = []
    for index in range(bisect_left(files, start), len(files)):
        if not files[index].startswith(start):
            break
        if expression.fullmatch(files[index]):
            found.append(files[index])
    return found


def _expression(pattern: str, id: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern; ``*`` and ``?`` stop at a slash."""
    spelled = {"{id}": re.escape(id), "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\{id\}|\*|\?)", pattern)
    return re.compile("".join(spelled.get(part, re.escape(part)) for part in parts))


def read_image(path: Path, *, max_pixels: int = 50_000_000, bits: int | None = None) -> np.ndarray:
    """Decode one PNG, JPEG, TIFF or BMP file; see `decode_image`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"the picture has more than {MAX_FILE_BYTES // 10**6} MB", where=path)
        with path.open("rb") as file:
            return decode_image(file, where=str(path), max_pixels=max_pixels, bits=bits)
    except OSError as error:
        raise DataError(f"the picture cannot be read: {error.strerror}", where=path) from None


def decode_image(file: BinaryIO, *, where: str, max_pixels: int = 50_000_000, bits: int | None = None) -> np.ndarray:
    """Decode one PNG, JPEG, TIFF or BMP.

    Parameters
    ----------
    file : binary file
        The picture.
    where : str
        Named in errors.
    max_pixels : int
        Larger ones are refused before they are decoded.
    bits : int, optional
        Significant bits of a picture with 16 bits a pixel; see `ImageFiles`.

    Returns
    -------
    ndarray
        uint8 (height, width) for grey pictures, (height, width, 3) for colour; transparency is left out.

    Raises
    ------
    DataError
        For a file that is no such picture, holds several, or is too large.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as picture:
                _check(picture, max_pixels, where)
                if picture.mode.startswith("I;16"):
                    return _eight_bits(picture, bits, where)
                grey = picture.mode in ("1", "L", "LA", "La")
                upright = ImageOps.exif_transpose(picture)
                return np.asarray(upright.convert("L" if grey else "RGB"), dtype=np.uint8)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"the picture has more than {max_pixels} pixels", where=where) from None
    except Exception as error:  # decoders raise whatever the first surprise in a damaged file causes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"the picture cannot be read: {reason}", where=where, do=f"give one of {', '.join(FORMATS)}"
        ) from None


def _check(picture: Image.Image, max_pixels: int, where: str) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(f"the picture has {width} x {height} pixels, more than {max_pixels}", where=where)
    if getattr(picture, "n_frames", 1) > 1:
        raise DataError("the file holds several pictures", where=where, do="save each as a file of its own")
    if picture.mode in ("I", "F"):
        raise DataError(
            f"the picture has 32 bits a pixel (mode {picture.mode}), whose range is unknown",
            where=where,
            do="save it with 8 or 16 bits",
        )


def _eight_bits(picture: Image.Image, bits: int | None, where: str) -> np.ndarray:
    """Scale a picture with up to 16 bits a pixel linearly, so that full scale becomes 255."""
    tags = getattr(picture, "tag_v2", {})
    stored = tags.get(BITS_PER_SAMPLE, (16,))[0]
    full = 2 ** (bits or stored) - 1
    values = np.asarray(picture).astype(np.uint32)
    if values.max(initial=0) > full:
        raise DataError(
            f"the picture has values up to {values.max()}, more than {full}", where=where, do="raise images.bits"
        )
    # Pillow turns such pictures with 8 bits, but not with 16
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = full - values
    return np.asarray((values * 255 + full // 2) // full, dtype=np.uint8)
