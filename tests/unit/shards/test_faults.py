"""Damage and malice, counted: every fault is refused by name, or provably harmless because unread."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shards.codecs import unescape
from shards.errors import DataError
from shards.manifest import MANIFEST
from shards.reader import Dataset
from shards.schema import Sample
from shards.sealed import SEAL
from shards.verify import verify_dataset
from shards.writer import ShardWriter
from tests.poison import poisons
from tests.synthetic import FEATURES, build_toy

FLIPS, CUTS = 500, 100


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "clean"
    build_toy(folder, count=24, shard_samples=8)
    return folder


@pytest.fixture
def victim(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "victim"))


def plain(sample: Sample) -> object:
    arrays = {m: {f: (a.dtype.str, a.shape, a.tobytes()) for f, a in v.items()} for m, v in sample.arrays.items()}
    return sample.id, arrays, sample.text, sample.labels, sample.tags, sample.group


def contents(folder: Path) -> list[object]:
    return [plain(sample) for sample in Dataset(folder)]


def refusal(folder: Path, expected: list[object]) -> str | None:
    """Return what reading says of the damage, or None where it gives the right data all the same."""
    try:
        found = contents(folder)
    except DataError as error:
        return str(error)
    assert found == expected, "wrong data without an error"
    return None


def kinds(folder: Path) -> dict[str, list[Path]]:
    return {
        "tar": sorted(folder.glob("*.tar")),
        "index": sorted(folder.glob("*.index.safetensors")),
        "manifest": [folder / MANIFEST],
    }


def member_at(path: Path, offset: int) -> str | None:
    """Id of the sample whose payload holds the byte, by Python's own tar reader."""
    import tarfile

    with tarfile.open(path) as tar:
        for member in tar:
            if member.offset_data <= offset < member.offset_data + member.size:
                return unescape(member.name.split(".")[0])
    return None


def payload_bytes(path: Path) -> np.ndarray:
    """Offsets of the bytes of a shard that belong to members, not to tar's headers and padding."""
    import tarfile

    with tarfile.open(path) as tar:
        return np.concatenate([np.arange(m.offset_data, m.offset_data + m.size) for m in tar])


def test_500_flipped_bits_are_refused_by_name_or_unread(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, counts = contents(victim), Counter[str]()
    rng = np.random.default_rng(0)
    for number in range(FLIPS):
        kind = ("tar", "tar", "index", "manifest")[number % 4]
        paths = kinds(victim)[kind]
        path = paths[rng.integers(len(paths))]
        intact = path.read_bytes()
        offset, bit = int(rng.integers(len(intact))), int(rng.integers(8))
        if number % 4 == 1:
            offset = int(rng.choice(payload_bytes(path)))
        path.write_bytes(intact[:offset] + bytes([intact[offset] ^ 1 << bit]) + intact[offset + 1 :])
        message = refusal(victim, expected)
        payload = member_at(path, offset) if kind == "tar" and message else None
        if message is None:
            # nothing of ours reads the byte; the check of the whole folder sees it nevertheless
            assert kind == "tar", f"a flip in {path.name} went unnoticed"
            with pytest.raises(DataError, match=path.name):
                verify_dataset(victim)
            counts[f"{kind}: unread"] += 1
        else:
            assert path.name in message
            if kind == "tar":
                assert payload is not None and repr(payload) in message
            counts[f"{kind}: refused"] += 1
        path.write_bytes(intact)
    assert contents(victim) == expected
    assert sum(counts.values()) == FLIPS
    with capsys.disabled():
        print(f"\n  {FLIPS} flipped bits: {dict(sorted(counts.items()))}")


def test_100_truncations_are_all_detected(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, counts = contents(victim), Counter[str]()
    rng = np.random.default_rng(1)
    for number in range(CUTS):
        kind = ("tar", "index", "manifest", "seal")[number % 4]
        paths = {**kinds(victim), "seal": [victim / SEAL]}[kind]
        path = paths[rng.integers(len(paths))]
        intact = path.read_bytes()
        path.write_bytes(intact[: int(rng.integers(len(intact)))])
        message = refusal(victim, expected)
        assert message is not None and path.name in message
        counts[kind] += 1
        path.write_bytes(intact)
    assert sum(counts.values()) == CUTS
    with capsys.disabled():
        print(f"\n  {CUTS} truncations, all detected: {dict(sorted(counts.items()))}")


def test_the_poison_is_real(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = poisons(canary)
    pickle.loads(data["pkl"])
    assert canary.exists()


def forged(folder: Path, payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set whose seals, digests and indices are all right, and whose members are ``payload``."""
    with monkeypatch.context() as patched:
        patched.setattr("shards.writer.encode_arrays", lambda arrays: payload)
        build_toy(folder, count=12, shard_samples=8)


def test_poison_in_a_forged_data_set_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canary, refused = tmp_path / "canary", 0
    for kind, payload in poisons(canary).items():
        folder = tmp_path / kind
        forged(folder, payload, monkeypatch)
        for attempt in (lambda f: list(Dataset(f)), verify_dataset):
            with pytest.raises(DataError, match="shard-0"):
                attempt(folder)  # type: ignore[operator]
            refused += 1
    assert not canary.exists()
    with capsys.disabled():
        print(f"\n  {refused} reads of poisoned members refused, 0 executed")


HOSTILE = [
    "../escape", "/etc/passwd", "..", ".", "a/../../b", "C:\\windows", "~root", "-rf", "a\0b", "new\nline", "tab\t",
    "Li0.5CoO2", "Li0.7CoO2", "x" * 300, "a.crystal.safetensors", "%2E%2E%2F", "\u202egnp.exe", "CON", "a b;rm",
    "fi", "\ufb01",
]  # fmt: skip


def test_hostile_ids_stay_distinct_names_inside_the_shard(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "set").mkdir()
    specs = {"a": FEATURES["a"].spec("a")}
    writer = ShardWriter(tmp_path / "set", specs)
    for sample_id in HOSTILE:
        writer.write(Sample(id=sample_id, text={}, arrays={}, group=sample_id))
    entries = writer.close()
    with tarfile.open(tmp_path / "set" / entries[0].file) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names) == len(HOSTILE)
    for name, sample_id in zip(names, HOSTILE, strict=True):
        assert "/" not in name and not name.startswith((".", "~")) and name.isprintable() and name.isascii()
        assert unescape(name.split(".")[0]) == sample_id


def safetensors_bomb(header: object, size: int = 64) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BOMBS: dict[str, bytes] = {
    "header of 2 TiB": (2 << 40).to_bytes(8, "little") + b"{}",
    "header of 1 GiB": (1 << 30).to_bytes(8, "little") + b"{}",
    "tensor of 2 TiB": safetensors_bomb({"v": entry([1 << 39], 0, 1 << 41)}),
    "shape whose product overflows": safetensors_bomb({"v": entry([1 << 32, 1 << 32], 0, 64)}),
    "negative shape": safetensors_bomb({"v": entry([-4, -4], 0, 64)}),
    "offsets that run backwards": safetensors_bomb({"v": entry([16], 64, 0)}),
    "two fields in one place": safetensors_bomb({"v": entry([16], 0, 64), "w": entry([16], 0, 64)}),
    "100,000 fields": safetensors_bomb({f"f{i}": entry([0], 0, 0) for i in range(100_000)}),
    "a header of lists": safetensors_bomb({"v": [[]] * (1 << 19)}),
    "nested header": (50_000).to_bytes(8, "little") + b"[" * 50_000,
    "more axes than numpy has": safetensors_bomb({"v": entry([1] * 1000, 0, 4)}),
    "empty": b"",
    "header cut off": b"\x10",
}


def measured(folders: list[Path]) -> Iterator[list[str]]:
    """Read data sets in a process of their own; yields the errors of each, and checks its CPU time and memory."""
    script = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from shards.errors import DataError\n"
        "from shards.reader import Dataset\n"
        "from shards.verify import verify_dataset\n"
        "import numpy, safetensors.numpy, pydantic\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for folder in sys.argv[1:]:\n"
        "    began = time.process_time()\n"
        "    for attempt in (lambda f: list(Dataset(f)), verify_dataset):\n"
        "        try:\n"
        "            attempt(Path(folder))\n"
        "            print('READ')\n"
        "        except DataError as error:\n"
        "            print('REFUSED', str(error).replace(chr(10), ' '))\n"
        "    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    print('SPENT', time.process_time() - began, more / 1024)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, folders)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-500:]
    lines: list[str] = []
    for line in result.stdout.splitlines():
        if not line.startswith("SPENT"):
            lines.append(line)
            continue
        _, seconds, megabytes = line.split()
        assert float(seconds) < 2.0
        # of all bombs so far
        assert float(megabytes) < 256.0
        yield lines
        lines = []


def test_bombs_are_refused_in_little_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / f"bomb-{number}" for number in range(len(BOMBS))]
    for folder, payload in zip(folders, BOMBS.values(), strict=True):
        forged(folder, payload, monkeypatch)
    for name, lines in zip(BOMBS, measured(folders), strict=True):
        assert len(lines) == 2
        for line in lines:
            assert line.startswith("REFUSED") and "shard-0" in line, f"{name}: {line}"
    with capsys.disabled():
        print(f"\n  {len(BOMBS)} bombs refused in under 2 s and 256 MB each")
