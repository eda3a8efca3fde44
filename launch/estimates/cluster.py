"""What ranks run on: accelerators, links and storage, read from a TOML file with units."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from launch.estimates.units import Bytes, Operations, Rate, Seconds
from shards.errors import ConfigError, suggest
from shards.schema import Strict

HERE = Path(__file__).resolve().parents[1] / "clusters"


class Link(Strict):
    """A way between two ranks.

    Attributes
    ----------
    latency : float
        Seconds of one message. File: ``"4 us"``.
    bandwidth : float
        Bytes a second that ONE rank sends while all ranks send. File: ``"25 GB/s"`` or ``"200 Gb/s"``.
    """

    latency: Seconds
    bandwidth: Rate


class Accelerator(Strict):
    """What a rank computes on.

    Attributes
    ----------
    name : str
        Part of the name that its driver gives, ``A100``.
    memory : float
        Bytes. File: ``"80 GB"``.
    peak : float
        Operations a second at the precision of the training, by the data sheet. File: ``"312 TFLOP/s"``.
    achieved : float
        Share of the peak that a step's forward and backward pass reach; used where the step was measured on another
        device.
    """

    name: str
    memory: Bytes
    peak: Operations
    achieved: float = Field(gt=0, le=1)


class Storage(Strict):
    """The storage that all nodes share.

    Attributes
    ----------
    read, write : float
        Bytes a second for all nodes together.
    read_per_node, write_per_node : float
        And for one node.
    """

    read: Rate
    write: Rate
    read_per_node: Rate
    write_per_node: Rate


class Cache(Strict):
    """Disks of a node, for a copy of the data set (``matloom launch run --stage``).

    Attributes
    ----------
    capacity : float
        Bytes of a node.
    read : float
        Bytes a second of a node.
    """

    capacity: Bytes
    read: Rate


class Cluster(Strict):
    """What the ranks run on.

    Attributes
    ----------
    name : str
        For people.
    per_node : int
        Ranks, which is accelerators, of a node.
    accelerator : Accelerator
        Of a rank.
    within, between : Link
        Between ranks of one node, and of two nodes: there the bandwidth is a rank's share of its node's adapters.
    storage : Storage
        Shared.
    cache : Cache, optional
        A node's own.
    sources : list of str
        Where the figures are from.
    """

    name: str
    per_node: int = Field(gt=0)
    accelerator: Accelerator
    within: Link
    between: Link
    storage: Storage
    cache: Cache | None = None
    sources: list[str] = []

    @model_validator(mode="after")
    def _plausible(self) -> Cluster:
        if self.between.bandwidth > self.within.bandwidth:
            raise ValueError("between nodes it is quicker than within one: is 'between' a whole node's, or in bits?")
        for way in ("read", "write"):
            if getattr(self.storage, f"{way}_per_node") > getattr(self.storage, way):
                raise ValueError(f"one node would {way} more than the storage gives all of them")
        return self

    def places(self, ranks: int) -> tuple[float, int]:
        """Return the ranks of a node, their mean where the last one is not full, and the number of nodes."""
        nodes = -(-ranks // self.per_node)
        return ranks / nodes, nodes


def clusters() -> list[str]:
    """Return the names of the descriptions that come with the package."""
    return sorted(file.stem for file in HERE.glob("*.toml"))


def load_cluster(name_or_path: str | Path) -> Cluster:
    """Read a cluster's description: a file, or the name of one that comes with the package."""
    from shards.recipes import parse, read_tables

    path = HERE / f"{name_or_path}.toml" if str(name_or_path) in clusters() else Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"there is no description of a cluster '{name_or_path}'",
            where="--cluster",
            do=f"a TOML file, or one that comes with the package: {suggest(str(name_or_path), clusters())}",
        )
    return parse(Cluster, read_tables(path), where=str(path))
