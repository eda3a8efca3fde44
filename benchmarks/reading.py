"""Reading samples by matloom and its peers, and memcpy of the same bytes, in turn in one run.

python benchmarks/reading.py --samples 3000 --rounds 5

The same samples (crystal graph, 601-point DOS, 32^3 density as fp32, text, label; about 141 kB) are written
in the format of each reader and read from the page cache, one after the other, in one process and one
thread. matloom verifies every member. A peer that is not installed is left out and named:
``pip install litdata mosaicml-streaming``.
"""

from __future__ import annotations

import argparse
import logging
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from shards.batch import collate
from shards.manifest import MANIFEST, Manifest
from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from shards.sealed import sealing
from shards.writer import ShardWriter

SHARD_SAMPLES = 256
BATCH = 64
SPECS = {
    "charge_density": ModalitySpec(
        name="charge_density", kind="grid", fields={"density": FieldSpec(dtype="float32", shape=(32, 32, 32))}
    ),
    "crystal": ModalitySpec(
        name="crystal",
        kind="graph",
        fields={
            "cell": FieldSpec(dtype="float32", shape=(3, 3)),
            "distance": FieldSpec(dtype="float32", shape=("edges",)),
            "edge": FieldSpec(dtype="uint16", shape=(2, "edges"), index_of="atoms"),
            "number": FieldSpec(dtype="uint8", shape=("atoms",)),
            "position": FieldSpec(dtype="float32", shape=("atoms", 3)),
        },
    ),
    "dos": ModalitySpec(name="dos", kind="spectrum", fields={"density": FieldSpec(dtype="float32", shape=(601,))}),
    "text": ModalitySpec(name="text", kind="text"),
}
Read = Callable[[], Iterable[Any]]


def samples(count: int) -> Iterator[Sample]:
    """Yield random samples, the same in every call."""
    rng = np.random.default_rng(0)
    words = np.array(["octahedra", "corner-sharing", "bonded", "to", "six", "equivalent", "O", "atoms", "Ti(1)", "is"])
    for number in range(count):
        atoms, edges = int(rng.integers(4, 20)), int(rng.integers(200, 900))
        crystal = {
            "cell": rng.normal(size=(3, 3)).astype(np.float32),
            "distance": rng.random(edges, np.float32),
            "edge": rng.integers(0, atoms, (2, edges), np.uint16),
            "number": rng.integers(1, 90, atoms, np.uint8),
            "position": rng.random((atoms, 3), np.float32),
        }
        yield Sample(
            id=f"mp-{number}",
            arrays={
                "charge_density": {"density": rng.random((32, 32, 32), np.float32)},
                "crystal": crystal,
                "dos": {"density": rng.random(601, np.float32)},
            },
            text={"text": " ".join(rng.choice(words, 120))},
            labels={"band_gap_ev": float(rng.random())},
            tags={"formula": f"X{number}"},
        )


def matloom(folder: Path, count: int) -> dict[str, Read]:
    """Write shards; read samples, samples whose arrays are copied, shuffled samples, and batches of tensors."""
    with sealing(folder / "matloom") as stage:
        writer = ShardWriter(stage, SPECS, shard_samples=SHARD_SAMPLES)
        for sample in samples(count):
            writer.write(sample)
        manifest = Manifest(
            name="reading", modalities=SPECS, shards=writer.close(), samples=count, coverage={}, labels={}
        )
        (stage / MANIFEST).write_text(manifest.model_dump_json())

    def opened() -> Dataset:
        return Dataset(folder / "matloom")

    def copied() -> Iterator[Any]:
        for sample in opened():
            yield [array.copy() for arrays in sample.arrays.values() for array in arrays.values()]

    def shuffled() -> Iterator[Any]:
        dataset = opened()
        return (dataset[int(position)] for position in np.random.default_rng(1).permutation(count))

    def batches() -> Iterator[Any]:
        dataset = opened()
        for start in range(0, count, BATCH):
            rows = [dataset[position] for position in range(start, min(start + BATCH, count))]
            yield from [collate(rows, SPECS, ["band_gap_ev"])] * len(rows)

    return {
        "matloom": opened,
        "matloom, shuffled": shuffled,
        "matloom, arrays copied out": copied,
        f"matloom, batches of {BATCH} as tensors": batches,
    }


def webdataset(folder: Path, count: int) -> dict[str, Read]:
    """Write .pth, .npy and .json members; read them by webdataset's default decoding."""
    import torch
    import webdataset as wds

    folder = folder / "webdataset"
    folder.mkdir()
    pattern = str(folder / "%06d.tar")
    with wds.ShardWriter(pattern, maxcount=SHARD_SAMPLES, maxsize=1 << 40, verbose=0) as sink:
        for sample in samples(count):
            sink.write(
                {
                    "__key__": sample.id,
                    "crystal.pth": {name: torch.tensor(array) for name, array in sample.arrays["crystal"].items()},
                    "dos.npy": sample.arrays["dos"]["density"],
                    "charge_density.npy": sample.arrays["charge_density"]["density"],
                    "json": {"text": sample.text["text"], "labels": sample.labels, "tags": sample.tags},
                }
            )
    shards = sorted(map(str, folder.glob("*.tar")))
    return {"webdataset, default decode": lambda: wds.WebDataset(shards, shardshuffle=False).decode()}


def _flat(sample: Sample) -> dict[str, Any]:
    arrays = {f"{name}_{field}": array for name, held in sample.arrays.items() for field, array in held.items()}
    return {"id": sample.id, **arrays, "text": sample.text["text"], "gap": sample.labels["band_gap_ev"]}


def litdata(folder: Path, count: int) -> dict[str, Read]:
    """Write and read LitData's chunks."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = folder / "litdata"
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_size=SHARD_SAMPLES)
    for number, sample in enumerate(samples(count)):
        writer[number] = _flat(sample)
    writer.done()
    writer.merge()
    return {"LitData": lambda: StreamingDataset(str(folder), shuffle=False)}


def mds(folder: Path, count: int) -> dict[str, Read]:
    """Write and read MosaicML MDS shards, with the fastest encoding that each column has."""
    from streaming import MDSWriter, StreamingDataset

    first = _flat(next(samples(1)))
    columns = {
        name: f"ndarray:{value.dtype}" + (":32,32,32" if value.ndim == 3 else "")
        for name, value in first.items()
        if isinstance(value, np.ndarray)
    }
    columns |= {"id": "str", "text": "str", "gap": "float64"}
    out = str(folder / "mds")
    with MDSWriter(out=out, columns=columns, compression=None) as writer:
        for sample in samples(count):
            writer.write(_flat(sample))

    def indexed() -> Iterator[Any]:
        """Read by position, which takes a fifth of the time that its iterator takes."""
        dataset = StreamingDataset(local=out, shuffle=False, batch_size=1)
        return (dataset[position] for position in range(count))

    return {"MosaicML MDS": indexed}


def memcpy(folder: Path, count: int) -> dict[str, Read]:
    """Copy the bytes of the members of matloom's shards into a buffer."""
    blocks, ranges = [], []
    for number, path in enumerate(sorted((folder / "matloom").glob("*.tar"))):
        blocks.append(np.memmap(path, np.uint8, "r"))
        with tarfile.open(path) as tar:
            members = [(info.name.split(".")[0], info.offset_data, info.size) for info in tar]
        keys: dict[str, list[tuple[int, int]]] = {}
        for key, offset, size in members:
            keys.setdefault(key, []).append((offset, size))
        ranges += [(number, parts) for parts in keys.values()]
    target = np.empty(1 << 20, np.uint8)

    def copy() -> Iterator[Any]:
        for number, parts in ranges:
            for offset, size in parts:
                target[:size] = blocks[number][offset : offset + size]
            yield target

    return {"memcpy of the same bytes": copy}


@dataclass
class Times:
    """CPU and wall microseconds a sample, one value a round."""

    cpu: list[float]
    wall: list[float]


def measure(readers: dict[str, Read], count: int, rounds: int) -> dict[str, Times]:
    """Read everything by each reader in turn; one more round before, which fills caches, is not counted."""
    times = {name: Times([], []) for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            source = iter(read())
            wall, cpu = time.perf_counter(), time.process_time()
            seen = sum(1 for _ in source)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if seen != count:
                raise SystemExit(f"{name} gave {seen} of {count} samples")
            if number:
                times[name].cpu.append(1e6 * cpu / count)
                times[name].wall.append(1e6 * wall / count)
    return times


def table(times: dict[str, Times]) -> str:
    """Return a Markdown table; the last column is the median ratio of the rounds, so that drifting load cancels."""
    lines = [
        "| reader | CPU us a sample | wall us a sample | samples/s | x webdataset |",
        "|---|---|---|---|---|",
    ]
    base = times["webdataset, default decode"]
    for name, taken in times.items():
        ratio = median(slow / fast for slow, fast in zip(base.wall, taken.wall, strict=True))
        wall = median(taken.wall)
        lines.append(f"| {name} | {median(taken.cpu):.1f} | {wall:.1f} | {1e6 / wall:,.0f} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and what the targets compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write, default: a temporary folder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        readers: dict[str, Read] = {}
        for write in (matloom, webdataset, litdata, mds, memcpy):
            try:
                readers |= write(Path(root), options.samples)
            except ImportError as error:
                print(f"left out: {write.__name__} ({error})")
        size = sum(path.stat().st_size for path in (Path(root) / "matloom").glob("*.tar"))
        print(f"{options.samples} samples of {size / options.samples / 1000:.0f} kB, {options.rounds} rounds\n")
        times = measure(readers, options.samples, options.rounds)
    print(table(times))
    ours = times["matloom"]
    for name, taken in times.items():
        if not name.startswith("matloom"):
            wall = median(other / mine for other, mine in zip(taken.wall, ours.wall, strict=True))
            cpu = median(other / mine for other, mine in zip(taken.cpu, ours.cpu, strict=True))
            print(f"{name} takes {wall:.2f} x the wall time and {cpu:.2f} x the CPU time of matloom")


if __name__ == "__main__":
    main()
