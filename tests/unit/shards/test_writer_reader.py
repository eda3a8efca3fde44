from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shards.batch import collate
from shards.build import label_statistics
from shards.chunks import MAX_LABEL
from shards.codecs import decode_arrays, decode_json, unescape
from shards.errors import DataError
from shards.manifest import MANIFEST, Manifest, parse_manifest
from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from shards.sealed import SEAL, sealing
from shards.splits import SampleInfo
from shards.verify import verify_dataset
from shards.writer import ShardWriter
from tests.synthetic import GRAPH_FIELDS, build_toy, graph

SPECS = {
    "vector": ModalitySpec(name="vector", kind="vector", fields={"v": FieldSpec(dtype="float32", shape=(3,))}),
    "scalar": ModalitySpec(name="scalar", kind="vector", fields={"v": FieldSpec(dtype="float64", shape=())}),
    "crystal": ModalitySpec(name="crystal", kind="graph", fields=GRAPH_FIELDS),
    "text": ModalitySpec(name="text", kind="text"),
}


def publish(folder: Path, samples: list[Sample], shard_samples: int = 3) -> Dataset:
    with sealing(folder) as stage:
        writer = ShardWriter(stage, SPECS, shard_samples=shard_samples)
        for sample in samples:
            writer.write(sample)
        labels = label_statistics(SampleInfo(id=s.id, group=s.group, tags=s.tags, labels=s.labels) for s in samples)
        manifest = Manifest(
            name="t", modalities=SPECS, shards=writer.close(), samples=len(samples), coverage={}, labels=labels
        )
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    return Dataset(folder)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    result = []
    for sample_id in draw(st.lists(WORDS, min_size=1, max_size=9, unique=True)):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        arrays: dict[str, dict[str, np.ndarray]] = {}
        if draw(st.booleans()):
            arrays["vector"] = {"v": rng.normal(size=3).astype(np.float32)}
        if draw(st.booleans()):
            arrays["scalar"] = {"v": np.array(rng.normal())}
        if draw(st.booleans()):
            arrays["crystal"] = graph(rng, atoms=draw(st.integers(1, 4)), edges=draw(st.integers(0, 4)))
        text = {"text": draw(WORDS.filter(str.strip))} if draw(st.booleans()) else {}
        labels = draw(st.dictionaries(WORDS, st.floats(-MAX_LABEL, MAX_LABEL), max_size=2))
        tags = draw(st.dictionaries(WORDS, WORDS, max_size=2))
        result.append(Sample(id=sample_id, arrays=arrays, text=text, labels=labels, tags=tags, group=draw(WORDS)))
    return result


def equal(a: Sample, b: Sample) -> bool:
    same = (a.id, a.text, a.labels, a.tags, a.group) == (b.id, b.text, b.labels, b.tags, b.group)
    return same and bits(a) == bits(b)


def bits(sample: Sample) -> dict[tuple[str, str], object]:
    fields = [(name, field, array) for name, held in sample.arrays.items() for field, array in held.items()]
    return {(name, field): (array.dtype, array.shape, array.tobytes()) for name, field, array in fields}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples(), st.integers(1, 5))
def test_samples_survive(written: list[Sample], shard_samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = publish(Path(folder) / "set", written, shard_samples)
        assert dataset.ids == [sample.id for sample in written]
        assert all(equal(*pair) for pair in zip(written, dataset, strict=True))
        for position, sample in enumerate(written):
            assert dataset.position(sample.id) == position
        assert max(dataset.shard_sizes) <= shard_samples
        assert verify_dataset(Path(folder) / "set") == len(written)


def test_vanilla_webdataset_reads_the_same_keys_and_bytes(toy_folder: Path, toy: Dataset) -> None:
    found: dict[str, dict[str, object]] = {}
    for entry in toy.manifest.shards:
        reader = webdataset.WebDataset(str(toy_folder / entry.file), shardshuffle=False)
        found |= {unescape(raw["__key__"]): raw for raw in reader}
    assert list(found) == toy.ids
    for sample in toy:
        raw = {key: value for key, value in found[sample.id].items() if not key.startswith("__")}
        meta = decode_json(raw.pop("meta.json"), where="")  # type: ignore[arg-type]
        assert (meta["id"], meta["labels"], meta["text"]) == (sample.id, sample.labels, sample.text)
        assert set(raw) == {f"{name}.safetensors" for name in sample.arrays}
        for name, fields in sample.arrays.items():
            arrays = decode_arrays(raw[f"{name}.safetensors"], where="")  # type: ignore[arg-type]
            assert all(arrays[field].tobytes() == array.tobytes() for field, array in fields.items())


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_rebuild_gives_the_same_bytes_with_any_number_of_workers(toy_folder: Path, tmp_path: Path) -> None:
    build_toy(tmp_path / "elsewhere", workers=1)
    build_toy(tmp_path / "two", workers=2)
    assert tree(tmp_path / "elsewhere") == tree(toy_folder)
    assert tree(tmp_path / "two") == tree(toy_folder)


def vector(sample_id: str, **fields: np.ndarray) -> Sample:
    return Sample(id=sample_id, arrays={"vector": fields or {"v": np.zeros(3, np.float32)}})


def crystal(**fields: np.ndarray) -> Sample:
    return Sample(id="x", arrays={"crystal": {**graph(np.random.default_rng(0), atoms=2, edges=1), **fields}})


@pytest.mark.parametrize(
    "sample",
    [
        vector("good"),
        vector("x", v=np.zeros(4, np.float32)),
        vector("x", v=np.zeros(3, np.float64)),
        vector("x", v=np.zeros((3, 1), np.float32)),
        vector("x", v=np.array([0, np.nan, 0], np.float32)),
        vector("x", v=np.array([0, np.inf, 0], np.float32)),
        vector("x", w=np.zeros(3, np.float32)),
        vector("x", v=np.array([None, None, None])),
        vector(""),
        Sample(id="x", arrays={"vector": {}}),
        Sample(id="x", arrays={"other": {"v": np.zeros(3, np.float32)}}),
        Sample(id="x", text={"text": " "}),
        Sample(id="x", text={"vector": "words"}),
        Sample(id="x", labels={"gap_ev": float("nan")}),
        crystal(edge=np.array([[0], [2]], np.uint16)),
        crystal(number=np.ones(3, np.uint8)),
    ],
    ids=["duplicate", "shape", "dtype", "axes", "nan", "inf", "field", "object", "no-id", "no-fields", "unknown",
         "blank", "text-for-array", "nan-label", "index-past-the-end", "unequal-ragged-axis"],
)  # fmt: skip
def test_what_contradicts_the_schema_is_refused(tmp_path: Path, sample: Sample) -> None:
    writer = ShardWriter(tmp_path, SPECS)
    writer.write(vector("good"))
    with pytest.raises(DataError):
        writer.write(sample)
    assert writer.close()[0].samples == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "meta", "kind": "text"},
        {"name": "../x", "kind": "text"},
        {"name": "x", "kind": "graph", "fields": {"f": {"dtype": "int64", "shape": ["a", "b"]}}},
        {"name": "x", "kind": "graph", "fields": {"f": {"dtype": "int64", "shape": ["a"], "index_of": "b"}}},
        {"name": "x", "kind": "sound"},
        {"name": "x", "kind": "text", "flavour": "new"},
    ],
)
def test_a_spec_that_cannot_work_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModalitySpec.model_validate(fields)


def test_the_shards_of_a_chunk_have_its_name(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SPECS, name="shard-000012", shard_samples=2)
    for number in range(5):
        writer.write(vector(f"x{number}"))
    entries = writer.close()
    stems = ["shard-000012", "shard-000012-1", "shard-000012-2"]
    assert [entry.file for entry in entries] == [f"{stem}.tar" for stem in stems]
    assert [entry.index for entry in entries] == [f"{stem}.index.safetensors" for stem in stems]
    assert {path.name for path in tmp_path.iterdir()} == {name for e in entries for name in (e.file, e.index)}
    # on shared storage others read them
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    assert ShardWriter(tmp_path, SPECS, name="empty").close() == []


def test_a_shard_that_grows_too_large_is_followed_by_another(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, SPECS, name="s", shard_bytes=4000)
    for number in range(4):
        writer.write(vector(f"x{number}"))
    assert [entry.samples for entry in writer.close()] == [2, 2]


def test_a_sample_that_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    for folder, bad in (("clean", False), ("refused", True)):
        (tmp_path / folder).mkdir()
        writer = ShardWriter(tmp_path / folder, SPECS)
        for number in range(3):
            if bad:
                with pytest.raises(DataError):
                    writer.write(Sample(id=f"y{number}", arrays=vector("x").arrays, tags={"tag": object()}))  # type: ignore[dict-item]
            writer.write(vector(f"x{number}"))
        writer.close()
    assert tree(tmp_path / "clean") == tree(tmp_path / "refused")


def test_more_shards_than_are_kept_open_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.store.OPEN_SHARDS", 2)
    dataset = publish(tmp_path / "set", [vector(f"x{number}") for number in range(7)], shard_samples=1)
    held = dataset[0]
    for position in np.random.default_rng(0).integers(7, size=50):
        assert dataset[int(position)].id == f"x{position}"
    assert held.arrays["vector"]["v"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [1, 3])
def test_batches_own_their_memory(toy: Dataset, rows: int) -> None:
    """A tensor over a mapped shard could not be written to, and would keep the shard open."""
    samples = list(toy)[:rows]
    for name, inputs in collate(samples, toy.modalities).inputs.items():
        for field, tensor in inputs.items():
            arrays = [sample.arrays[name][field] for sample in samples if field in sample.arrays.get(name, {})]
            if isinstance(tensor, torch.Tensor):
                assert tensor.numpy().flags.writeable
                assert not any(np.shares_memory(tensor.numpy(), array) for array in arrays)


@pytest.fixture
def broken(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(toy_folder, tmp_path / "broken"))


def member_ranges(path: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def test_a_flipped_bit_is_named_with_shard_and_member(broken: Path) -> None:
    shard = broken / "shard-000001.tar"
    good = shard.read_bytes()
    rng = np.random.default_rng(0)
    for name, (offset, size) in list(member_ranges(shard).items())[:12]:
        bad = bytearray(good)
        bit = int(rng.integers(8 * size))
        bad[offset + bit // 8] ^= 1 << bit % 8
        shard.write_bytes(bad)
        key, part, _ = name.split(".")
        dataset = Dataset(broken)
        with pytest.raises(DataError) as caught:
            dataset[dataset.position(unescape(key))]
        assert "shard-000001.tar" in str(caught.value)
        assert repr(unescape(key)) in str(caught.value)
        assert part in str(caught.value)
        with pytest.raises(DataError, match=r"shard-000001\.tar"):
            verify_dataset(broken)


def test_every_flip_anywhere_in_a_shard_is_refused_or_harmless(broken: Path, toy: Dataset) -> None:
    """Flips in tar headers and padding do not reach our reader; `verify` sees those too."""
    shard = broken / "shard-000002.tar"
    good = shard.read_bytes()
    rng = np.random.default_rng(1)
    for bit in rng.integers(8 * len(good), size=60):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(bad)
        with pytest.raises(DataError, match=r"shard-000002\.tar"):
            verify_dataset(broken)
        dataset = Dataset(broken)
        for position in range(32, 48):
            try:
                assert equal(dataset[position], toy[position])
            except DataError as error:
                assert "shard-000002.tar" in str(error)  # noqa: PT017


@pytest.mark.parametrize("cut", [1, 512, 5000])
def test_a_truncated_shard_is_always_detected(broken: Path, cut: int) -> None:
    shard = broken / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        Dataset(broken)[0]


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000000.index.safetensors", MANIFEST, "seal.json"])
def test_a_missing_file_is_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(DataError, match=name):
        Dataset(broken)[0]


@pytest.mark.parametrize("name", ["shard-000003.index.safetensors", MANIFEST])
def test_a_flip_in_index_or_manifest_is_named(broken: Path, name: str) -> None:
    good = (broken / name).read_bytes()
    for bit in np.random.default_rng(2).integers(8 * len(good), size=40):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (broken / name).write_bytes(bad)
        with pytest.raises(DataError, match=name):
            Dataset(broken)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a member was executed",))


@pytest.mark.parametrize("name", ["evil.pkl", "mp.dos.pickle", "mp.dos.pth", "mp.pyd", "x.dos.npy", "../../evil.json"])
def test_a_foreign_member_is_refused_even_in_a_set_that_is_sealed_anew(broken: Path, tmp_path: Path, name: str) -> None:
    import pickle

    old = Dataset(broken).manifest
    target = tmp_path / "poisoned"
    with sealing(target) as stage:
        for path in broken.iterdir():
            if path.name != "seal.json":
                shutil.copy(path, stage / path.name)
        shard = stage / old.shards[0].file
        with tarfile.open(shard, "a") as tar:
            data = pickle.dumps(Bomb())
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        first = old.shards[0].model_copy(update={"bytes": shard.stat().st_size})
        manifest = old.model_copy(update={"shards": [first, *old.shards[1:]]})
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    assert len(list(Dataset(target))) == old.samples
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        verify_dataset(target)


@pytest.mark.parametrize("name", ["../shard.tar", "/etc/passwd", "a/b.tar", "..", "", "a\nb"])
def test_a_manifest_that_points_outside_of_its_folder_is_refused(toy: Dataset, name: str) -> None:
    tables = toy.manifest.model_dump()
    tables["shards"][0]["file"] = name
    with pytest.raises(ValidationError):
        Manifest.model_validate(tables)


def test_only_the_modalities_asked_for_are_read(broken: Path, toy: Dataset) -> None:
    shard = broken / "shard-000000.tar"
    bad = bytearray(shard.read_bytes())
    for name, (offset, size) in member_ranges(shard).items():
        if ".a." in name:
            bad[offset : offset + size] = bytes(size)
    shard.write_bytes(bad)
    for sample, whole in zip(Dataset(broken, ["b", "text"]), toy, strict=True):
        assert sample.modalities == whole.modalities & {"b", "text"}
    with pytest.raises(DataError):
        list(Dataset(broken, ["a"]))


def test_unknown_names_are_refused_with_a_suggestion(toy: Dataset, toy_folder: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'crystal'"):
        Dataset(toy_folder, ["cristal"])
    with pytest.raises(DataError, match=r"did you mean 'mp/3\.Li0\.10CoO2'"):
        toy.position("mp/3.Li0.10CoO")
    with pytest.raises(DataError, match="did you mean 'val'"):
        toy.positions("chemical_system", "vall")
    with pytest.raises(DataError, match="chemical_system"):
        toy.positions("random", "train")
    with pytest.raises(IndexError):
        toy[len(toy)]


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set"):
        Dataset(tmp_path)
    with pytest.raises(DataError, match="no data set"):
        Dataset(tmp_path / "nowhere")


def test_a_data_set_that_is_replaced_while_it_is_opened_is_refused(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one manifest would be read under the identity of the other."""

    def replaced(data: bytes, *, where: object) -> Manifest:
        with sealing(broken) as stage:
            shutil.copytree(broken, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SEAL))
            (stage / MANIFEST).write_bytes(data + b"\n")
        return parse_manifest(data, where=where)

    monkeypatch.setattr("shards.layer.parse_manifest", replaced)
    with pytest.raises(DataError, match="replaced"):
        Dataset(broken)
