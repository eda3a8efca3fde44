"""Variations of one value: pure functions of the value, a generator and the strengths.

Each kind of modality has its own strengths (`shards.augment.config.BY_KIND`) and ignores the others. Values keep
their fields and dtypes, and their shapes too, but for crops and tokens that are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shards.augment.config import Augment
from shards.augment.pictures import augment_pictures, centre_crop
from shards.augment.words import augment_sequence, augment_text
from shards.schema import Arrays, ModalitySpec, Value

KNOWN = "known"
Scales = Mapping[str, np.ndarray]


def augment(
    spec: ModalitySpec, value: Value, rng: np.random.Generator, config: Augment, scales: Scales | None = None
) -> Value:
    """Return a variation of ``value``, which itself is not changed.

    Parameters
    ----------
    spec : ModalitySpec
        The modality; its kind chooses the variations.
    value : arrays or str
        A value that satisfies ``spec``.
    rng : numpy Generator
        The only source of chance: the same state gives the same result.
    config : Augment
        Strengths.
    scales : mapping of str to ndarray, optional
        Standard deviation of each entry of each float field over the training part
        (`shards.statistics.standard_deviations`); ``gaussian_noise`` needs it.
    """
    if isinstance(value, str):
        return augment_text(value, rng, config)
    if spec.kind == "sequence":
        return augment_sequence(spec, value, rng, config)
    if spec.kind == "graph":
        return augment_graph(value, rng, config)
    if spec.kind == "spectrum":
        # noise that is drawn after it is not smoothed by the interpolation
        value = augment_spectrum(value, rng, config)
    value = augment_numbers(spec, value, rng, config, scales or {})
    # after it: the deviations are those of the entries where they are stored
    if spec.kind == "grid":
        return augment_grid(value, rng, config)
    return augment_image(value, rng, config) if spec.kind == "image" else value


def centred(spec: ModalitySpec, value: Value, config: Augment) -> Value:
    """Return what evaluation sees of a value: what of its variations changes shapes, without chance."""
    if isinstance(value, str) or spec.kind != "image" or not config.crop:
        return value
    return {**value, "pixels": centre_crop(value["pixels"], config.crop)}


def cropped(spec: ModalitySpec, config: Augment) -> ModalitySpec:
    """Return the spec of what `augment` and `centred` make of values of ``spec``: pictures of the crop's size."""
    if spec.kind != "image" or not config.crop:
        return spec
    pixels = spec.fields["pixels"]
    size = pixels.model_copy(update={"shape": (*pixels.shape[:-2], config.crop, config.crop)})
    return spec.model_copy(update={"fields": {**spec.fields, "pixels": size}})


def augment_graph(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Displace atoms and strain the cell; neighbours and lattice sums stay those of the original.

    Jitter moves ``frac_coords`` or ``positions``, and ``edge_vector`` where the graph has it; strain deforms the
    ``lattice`` and what of ``positions`` and ``edge_vector`` there is.
    """
    value = dict(value)
    if config.jitter_a:
        moved = rng.normal(0.0, config.jitter_a, value["positions" if "positions" in value else "frac_coords"].shape)
        if "edge_vector" in value:
            neighbour, centre = value["edge_index"]
            value["edge_vector"] = _like(value["edge_vector"] + moved[neighbour] - moved[centre], value["edge_vector"])
        if "positions" in value:
            value["positions"] = _like(value["positions"] + moved, value["positions"])
        if "frac_coords" in value:
            fractional = moved @ np.linalg.inv(value["lattice"].astype(np.float64))
            value["frac_coords"] = _like(value["frac_coords"] + fractional, value["frac_coords"])
    if config.strain:
        entries = rng.normal(0.0, config.strain, (3, 3))
        deformation = np.eye(3) + (entries + entries.T) / 2
        for name in value.keys() & {"lattice", "positions", "edge_vector"}:
            value[name] = _like(value[name] @ deformation, value[name])
    return value


def augment_spectrum(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Shift and stretch the axis."""
    if config.shift or config.stretch:
        move, factor = config.shift * rng.normal(), np.exp(config.stretch * rng.normal())
        value = {name: _like(_moved(array, move, factor), array) for name, array in value.items()}
    return value


def _moved(array: np.ndarray, move: float, factor: float) -> np.ndarray:
    points = np.arange(len(array))
    return np.interp((points - move) / factor, points, array)


def augment_grid(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Choose another origin, order and direction of the axes."""
    return {name: _turned(array, rng, config) for name, array in value.items()}


def _turned(array: np.ndarray, rng: np.random.Generator, config: Augment) -> np.ndarray:
    axes = (0, 1, 2)
    if config.roll and rng.random() < config.roll:
        array = np.roll(array, [int(rng.integers(array.shape[axis])) for axis in axes], axes)
    if config.flip:
        # Index i goes to -i, not to n - 1 - i, so that the origin stays a grid point.
        for axis in axes:
            if rng.random() < config.flip:
                array = np.roll(np.flip(array, axis), 1, axis)
    if config.permute and rng.random() < config.permute and len(set(array.shape[:3])) == 1:
        array = np.transpose(array, rng.permutation(3))
    return np.ascontiguousarray(array)


def augment_image(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Crop, rotate and mirror the pictures."""
    if not (config.crop or config.rotate or config.flip):
        return value
    return {**value, "pixels": augment_pictures(value["pixels"], rng, config)}


def augment_numbers(
    spec: ModalitySpec, value: Arrays, rng: np.random.Generator, config: Augment, scales: Scales
) -> Arrays:
    """Multiply floats by a common and by individual log-normal factors, then add Gaussian noise.

    Integers stay as they are, and so do entries that the field ``known`` of the same shape marks as unknown.
    """
    if not (config.noise or config.scale or config.gaussian_noise):
        return value
    varied = dict(value)
    for name in spec.fields:
        array = value[name]
        if array.dtype.kind != "f":
            continue
        changed = array.astype(np.float64)
        if config.noise or config.scale:
            changed = changed * np.exp(config.scale * rng.normal() + config.noise * rng.normal(size=array.shape))
        if config.gaussian_noise:
            changed = changed + config.gaussian_noise * scales[name] * rng.normal(size=array.shape)
        known = known_entries(value, name)
        varied[name] = _like(changed if known is None else np.where(known, changed, array), array)
    return varied


def known_entries(value: Arrays, name: str) -> np.ndarray | None:
    """Return the bool mask that says which entries of a field are known, or None where all are.

    It is the field ``known`` of the same modality, where that has the shape of the field.
    """
    mask = value.get(KNOWN)
    return None if mask is None or name == KNOWN or mask.shape != value[name].shape else mask.astype(bool)


def _like(array: np.ndarray, model: np.ndarray) -> np.ndarray:
    return array.astype(model.dtype)
