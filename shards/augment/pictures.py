"""Variations of pictures: each of a sample's pictures is cropped, turned and mirrored for itself."""

from __future__ import annotations

import numpy as np

from shards.augment.config import Augment

QUARTERS = 4


def augment_pictures(pixels: np.ndarray, rng: np.random.Generator, config: Augment) -> np.ndarray:
    """Crop, rotate and mirror pictures at random.

    Parameters
    ----------
    pixels : ndarray
        (..., H, W); each picture, whatever its channels, is (C, H, W) with all leading axes before C.
    rng : numpy Generator
        The source of chance.
    config : Augment
        ``crop``, ``rotate``, ``flip``.

    Returns
    -------
    ndarray
        (..., H', W'), H' = W' = ``crop`` where it is set.
    """
    height, width = pixels.shape[-2:]
    crop = config.crop
    pictures = pixels.reshape(-1, *pixels.shape[-3:])
    varied = []
    for picture in pictures:
        if crop:
            top, left = int(rng.integers(height - crop + 1)), int(rng.integers(width - crop + 1))
            picture = picture[..., top : top + crop, left : left + crop]
        varied.append(_turned(picture, rng, config))
    if not varied:
        return centre_crop(pixels, crop)
    return np.ascontiguousarray(np.stack(varied)).reshape(*pixels.shape[:-2], *varied[0].shape[-2:])


def _turned(picture: np.ndarray, rng: np.random.Generator, config: Augment) -> np.ndarray:
    if config.rotate and rng.random() < config.rotate:
        square = picture.shape[-1] == picture.shape[-2]
        picture = np.rot90(picture, int(rng.integers(1, QUARTERS)) if square else 2, axes=(-2, -1))
    if config.flip:
        for axis in (-2, -1):
            if rng.random() < config.flip:
                picture = np.flip(picture, axis)
    return picture


def centre_crop(pixels: np.ndarray, crop: int) -> np.ndarray:
    """Cut the central square of side ``crop`` out of pictures (..., H, W); 0 leaves them whole."""
    if not crop:
        return pixels
    top, left = (pixels.shape[-2] - crop) // 2, (pixels.shape[-1] - crop) // 2
    return np.ascontiguousarray(pixels[..., top : top + crop, left : left + crop])
