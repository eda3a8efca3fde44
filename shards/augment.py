"""Random variations of training values: pure functions of a value, a generator and strengths.

Every strength is 0 by default, which leaves the value untouched. Each kind of modality uses its own strengths and
ignores the others. Values keep their fields, shapes and dtypes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from pydantic import Field

from shards.schema import Arrays, ModalitySpec, Strict, Value

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Augment(Strict):
    """Strengths of the variations; 0 = off.

    Attributes
    ----------
    jitter_a : float
        graph: standard deviation of each coordinate of each atom, Angstrom.
    strain : float
        graph: standard deviation of each entry of a symmetric strain.
    noise : float
        spectrum, grid, vector, image, table: every entry times ``exp(noise * normal)``.
    scale : float
        spectrum, grid: all entries times one common ``exp(scale * normal)``.
    shift : float
        spectrum: standard deviation of a shift along the axis, in points (linear interpolation).
    stretch : float
        spectrum: standard deviation of a relative stretch of the axis about its first point.
    roll : float
        grid: probability of a random change of origin (periodic roll along each axis).
    permute : float
        grid: probability of a random permutation of the axes.
    flip : float
        grid: probability of a mirror along each axis.
    drop_sentences : float
        text: probability of leaving out each sentence (at least one stays).
    drop_words : float
        text: probability of leaving out each word (at least one stays).
    """

    jitter_a: float = Field(0.0, ge=0.0)
    strain: float = Field(0.0, ge=0.0, le=0.2)
    noise: float = Field(0.0, ge=0.0)
    scale: float = Field(0.0, ge=0.0)
    shift: float = Field(0.0, ge=0.0)
    stretch: float = Field(0.0, ge=0.0, le=0.2)
    roll: float = Field(0.0, ge=0.0, le=1.0)
    permute: float = Field(0.0, ge=0.0, le=1.0)
    flip: float = Field(0.0, ge=0.0, le=1.0)
    drop_sentences: float = Field(0.0, ge=0.0, lt=1.0)
    drop_words: float = Field(0.0, ge=0.0, lt=1.0)


def augment(spec: ModalitySpec, value: Value, rng: np.random.Generator, config: Augment) -> Value:
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
    """
    if isinstance(value, str):
        return augment_text(value, rng, config)
    return _BY_KIND.get(spec.kind, augment_numbers)(value, rng, config)


def augment_text(text: str, rng: np.random.Generator, config: Augment) -> str:
    """Leave out sentences, then words."""
    if config.drop_sentences:
        text = " ".join(_kept(SENTENCE_END.split(text), config.drop_sentences, rng))
    if config.drop_words:
        text = " ".join(_kept(text.split(), config.drop_words, rng))
    return text


def _kept(parts: list[str], probability: float, rng: np.random.Generator) -> list[str]:
    keep = rng.random(len(parts)) >= probability
    keep[rng.integers(len(parts))] = True
    return [part for part, stays in zip(parts, keep, strict=True) if stays]


def augment_graph(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Displace atoms and strain the cell; neighbours and lattice sums stay those of the original."""
    value = dict(value)
    if config.jitter_a:
        moved = rng.normal(0.0, config.jitter_a, value["frac_coords"].shape)
        neighbour, centre = value["edge_index"]
        value["edge_vector"] = _like(value["edge_vector"] + moved[neighbour] - moved[centre], value["edge_vector"])
        fractional = moved @ np.linalg.inv(value["lattice"].astype(np.float64))
        value["frac_coords"] = _like(value["frac_coords"] + fractional, value["frac_coords"])
    if config.strain:
        entries = rng.normal(0.0, config.strain, (3, 3))
        deformation = np.eye(3) + (entries + entries.T) / 2
        for name in ("lattice", "edge_vector"):
            value[name] = _like(value[name] @ deformation, value[name])
    return value


def augment_spectrum(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Shift and stretch the axis, then vary the intensities."""
    if config.shift or config.stretch:
        move, factor = config.shift * rng.normal(), np.exp(config.stretch * rng.normal())
        value = {name: _like(_moved(array, move, factor), array) for name, array in value.items()}
    return augment_numbers(value, rng, config)


def _moved(array: np.ndarray, move: float, factor: float) -> np.ndarray:
    points = np.arange(len(array))
    return np.interp((points - move) / factor, points, array)


def augment_grid(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Choose another origin, order and direction of the axes, then vary the numbers."""
    value = {name: _turned(array, rng, config) for name, array in value.items()}
    return augment_numbers(value, rng, config)


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


def augment_numbers(value: Arrays, rng: np.random.Generator, config: Augment) -> Arrays:
    """Multiply floats by a common and by individual log-normal factors."""
    if not (config.noise or config.scale):
        return value
    varied = {}
    for name, array in value.items():
        if array.dtype.kind == "f":
            factor = np.exp(config.scale * rng.normal() + config.noise * rng.normal(size=array.shape))
            varied[name] = _like(array * factor, array)
        else:
            varied[name] = array
    return varied


def _like(array: np.ndarray, model: np.ndarray) -> np.ndarray:
    return array.astype(model.dtype)


_BY_KIND: Mapping[str, Callable[[Arrays, np.random.Generator, Augment], Arrays]] = {
    "graph": augment_graph,
    "spectrum": augment_spectrum,
    "grid": augment_grid,
}
