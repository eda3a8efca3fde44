from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DataError
from shards.manifest import MANIFEST, LabelStats, Manifest, OverlayOf
from shards.overlay import OverlayPlan, pooled
from shards.reader import Dataset
from shards.schema import FieldSpec, ModalitySpec, Sample
from shards.sealed import sealing, sha256
from shards.writer import ShardWriter

SPECS = {
    "pattern": ModalitySpec(
        name="pattern", kind="sequence", fields={"peak": FieldSpec(dtype="float32", shape=("peaks",))}
    ),
    "note": ModalitySpec(name="note", kind="text"),
}


def statistics(values: Sequence[float]) -> LabelStats:
    return LabelStats(
        count=len(values), mean=np.mean(values), std=np.std(values), min=np.min(values), max=np.max(values)
    )


def publish(
    folder: Path, samples: list[Sample], specs: dict[str, ModalitySpec] = SPECS, overlay_of: OverlayOf | None = None
) -> Path:
    values: dict[str, list[float]] = {}
    coverage: Counter[str] = Counter()
    with sealing(folder) as stage:
        writer = ShardWriter(stage, specs, shard_samples=7)
        for sample in samples:
            writer.write(sample)
            coverage.update(sample.modalities)
            for name, value in sample.labels.items():
                values.setdefault(name, []).append(value)
        manifest = Manifest(
            name=folder.name,
            modalities=specs,
            shards=writer.close(),
            samples=len(samples),
            coverage=dict(coverage),
            labels={name: statistics(held) for name, held in values.items()},
            overlay_of=overlay_of,
        )
        (stage / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def further(toy: Dataset) -> list[Sample]:
    """Patterns and notes of every third sample of the toy set, in another order than there."""
    rng = np.random.default_rng(5)
    result = []
    for position in rng.permutation(len(toy))[::3]:
        held = toy[int(position)]
        arrays = {"pattern": {"peak": rng.random(int(rng.integers(0, 6)), np.float32)}} if position % 2 else {}
        text = {"note": f"seen at {position}"} if position % 5 else {}
        # the gap of those that have none in the base
        labels = {"score": float(position)} | ({} if held.labels else {"gap_ev": 9.0 + position})
        result.append(Sample(id=held.id, arrays=arrays, text=text, labels=labels, tags={"beamline": "P02"}))
    return result


def test_reading_joins_by_id(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    samples = further(toy)
    added = {sample.id: sample for sample in samples}
    layer = publish(tmp_path / "xrd", samples, overlay_of=OverlayPlan(toy, SPECS).overlay_of)
    both = Dataset(toy_folder, overlays=[layer])
    assert both.ids == toy.ids
    assert list(both.modalities) == [*toy.modalities, *SPECS]
    for old, new in zip(toy, both, strict=True):
        extra = added.get(old.id, Sample(id=old.id))
        assert new.modalities == old.modalities | extra.modalities
        for name, fields in (old.arrays | extra.arrays).items():
            assert all(np.array_equal(new.arrays[name][field], array) for field, array in fields.items())
        assert new.text == old.text | extra.text
        assert new.labels == old.labels | extra.labels
        assert new.tags == old.tags | extra.tags
        assert new.group == old.group
        assert both[both.position(old.id)].id == old.id


def test_presence_lengths_coverage_and_statistics_work_over_layers(
    toy: Dataset, toy_folder: Path, tmp_path: Path
) -> None:
    both = Dataset(toy_folder, overlays=[publish(tmp_path / "xrd", further(toy))])
    samples = list(both)
    for name in both.modalities:
        held = [name in sample.modalities for sample in samples]
        assert both.presence(name).tolist() == held
        assert both.manifest.coverage[name] == sum(held)
    peaks = [len(sample.arrays["pattern"]["peak"]) if "pattern" in sample.arrays else 0 for sample in samples]
    assert both.lengths("pattern.peaks").tolist() == peaks
    edges = [sample.arrays["crystal"]["edge"].shape[1] if "crystal" in sample.arrays else 0 for sample in samples]
    assert both.lengths("crystal.edges").tolist() == toy.lengths("crystal.edges").tolist() == edges
    for name, stats in both.manifest.labels.items():
        values = [sample.labels[name] for sample in samples if name in sample.labels]
        expected = statistics(values)
        assert stats.model_dump() == pytest.approx(expected.model_dump())
    assert both.manifest.labels.keys() == {"gap_ev", "score"}


def test_pooled_statistics_are_those_of_all_values() -> None:
    a, b = np.random.default_rng(0).normal(size=7), np.random.default_rng(1).normal(3, 2, size=40)
    together = statistics(np.concatenate([a, b]))
    assert pooled(statistics(a), statistics(b)).model_dump() == pytest.approx(together.model_dump())


def test_several_overlays_and_a_choice_of_modalities(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    samples = further(toy)
    patterns = [Sample(id=sample.id, arrays=sample.arrays) for sample in samples]
    notes = [Sample(id=sample.id, text=sample.text, labels=sample.labels) for sample in reversed(samples)]
    layers = [
        publish(tmp_path / "patterns", patterns, {"pattern": SPECS["pattern"]}),
        publish(tmp_path / "notes", notes, {"note": SPECS["note"]}),
    ]
    few = Dataset(toy_folder, ["note", "a"], overlays=layers)
    assert list(few.modalities) == ["note", "a"]
    added = {sample.id: sample for sample in samples}
    for old, new in zip(toy, few, strict=True):
        extra = added.get(old.id, Sample(id=old.id))
        assert new.modalities == (old.modalities & {"a"}) | (extra.modalities & {"note"})
        assert new.labels == old.labels | extra.labels
    again = few.select(["pattern"])
    assert [sample.modalities for sample in again] == [
        added[i].modalities & {"pattern"} if i in added else set() for i in toy.ids
    ]


def test_the_identity_of_what_is_read_tells_overlays_apart(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    samples = further(toy)
    one, two = publish(tmp_path / "one", samples), publish(tmp_path / "two", samples[1:])
    assert toy.sha256 == sha256(toy_folder / MANIFEST)
    assert len({Dataset(toy_folder, overlays=layers).sha256 for layers in ([], [one], [two])}) == 3


def test_a_modality_in_two_layers_is_named(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    layer = publish(tmp_path / "twin", [Sample(id=toy.ids[0], text={"text": "x"})], {"text": toy.modalities["text"]})
    with pytest.raises(DataError, match="modality 'text' stands in two layers"):
        Dataset(toy_folder, overlays=[layer])
    with pytest.raises(DataError, match="has the modality 'text' already"):
        OverlayPlan(toy, ["note", "text"])


def test_an_id_that_the_base_lacks_is_named(toy_folder: Path, tmp_path: Path) -> None:
    layer = publish(tmp_path / "stranger", [Sample(id="mp/unknown", text={"note": "x"})])
    with pytest.raises(DataError, match="'mp/unknown'"):
        Dataset(toy_folder, overlays=[layer])


def test_an_overlay_of_another_base_is_refused(toy: Dataset, toy_folder: Path, tmp_path: Path) -> None:
    foreign = OverlayOf(name="other", sha256="0" * 64)
    layer = publish(tmp_path / "layer", further(toy), overlay_of=foreign)
    made_for = r"made for another data set than 'toy'(.|\n)*0000(.|\n)*" + toy.manifest.content_sha256
    with pytest.raises(DataError, match=made_for):
        Dataset(toy_folder, overlays=[layer])


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (Sample(id="?", labels={"gap_ev": 0.1}), "label 'gap_ev'"),
        (Sample(id="?", tags={"formula": "Si"}), "tag 'formula'"),
    ],
)
def test_layers_that_contradict_each_other_are_named(
    toy: Dataset, toy_folder: Path, tmp_path: Path, sample: Sample, message: str
) -> None:
    labelled = toy.ids[1]
    assert "gap_ev" in toy[1].labels
    bad = Sample(id=labelled, labels=sample.labels, tags=sample.tags, text={"note": "x"})
    both = Dataset(toy_folder, overlays=[publish(tmp_path / "bad", [bad])])
    both[0]
    with pytest.raises(DataError, match=message):
        both[1]
    if sample.tags:
        with pytest.raises(DataError, match=message):
            OverlayPlan(toy, SPECS).reduced(bad)


def test_the_plan_leaves_to_the_base_what_it_holds(toy: Dataset) -> None:
    plan, held = OverlayPlan(toy, SPECS), toy[1]
    whole = Sample(
        id=held.id,
        text={"note": "x"},
        labels=held.labels | {"score": 1.0},
        tags=held.tags | {"beamline": "P02"},
        group="other",
    )
    reduced = plan.reduced(whole)
    assert (reduced.labels, reduced.tags, reduced.group) == ({"score": 1.0}, {"beamline": "P02"}, held.group)
    assert reduced.text == whole.text
    assert plan.overlay_of == OverlayOf(name="toy", sha256=toy.manifest.content_sha256)
    with pytest.raises(DataError, match="differs from that of the base"):
        plan.reduced(Sample(id=held.id, labels={"gap_ev": held.labels["gap_ev"] + 1}))
    with pytest.raises(DataError, match="no sample 'unheard'"):
        plan.reduced(Sample(id="unheard"))


def test_an_overlay_fits_after_a_split_was_added_to_its_base(tmp_path: Path) -> None:
    from shards.build import build
    from shards.resplit import add_split
    from shards.splits import SplitPlan
    from tests.synthetic import FEATURES, build_toy, records

    base = tmp_path / "base"
    build_toy(base, count=30)
    build(records(10), {"later": FEATURES["a"]}, tmp_path / "later", name="later", overlay_of=str(base))
    add_split(base, "random", SplitPlan(by="id"))
    assert Dataset(base, overlays=(tmp_path / "later",)).presence("later").sum() == 10
    build_toy(base, count=31)
    with pytest.raises(DataError, match="another data set"):
        Dataset(base, overlays=(tmp_path / "later",))
