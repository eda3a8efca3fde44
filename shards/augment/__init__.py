"""Random variations of training values, as data steps: a function of (seed, epoch, sample) and of nothing else."""

from shards.augment.augmenter import Augmenter
from shards.augment.config import Augment
from shards.augment.values import augment, centred, cropped

__all__ = ["Augment", "Augmenter", "augment", "centred", "cropped"]
