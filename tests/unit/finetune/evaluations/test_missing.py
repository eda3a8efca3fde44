"""The missing-modality protocol: what is removed, what it costs, and what it is compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.evaluations import references
from finetune.evaluations.base import Findings, Subject
from finetune.evaluations.missing import Missing, Predictions, label_dependent, removal, subsets_of
from finetune.evaluations.rows import only, rows_of
from shards.errors import ConfigError, DataError
from shards.reader import Dataset
from shards.schema import Sample
from tests.unit.finetune.evaluations.linear import LABEL, linear_model

GROUPS = (("left", "copy"), ("right",), ("junk",))


def subject(dataset: Dataset, groups: tuple[tuple[str, ...], ...] = GROUPS) -> Subject:
    return Subject(model=linear_model(dataset, groups), dataset=dataset, split="chemical_system")


@pytest.fixture(scope="module")
def findings(linear_data: Dataset) -> Findings:
    return Missing()(subject(linear_data))


def row(findings: Findings, modalities: str) -> dict[str, float]:
    return next(r for r in findings.tables["subsets"] if r["modalities"] == modalities)  # type: ignore[return-value]


def test_every_subset_up_to_six_modalities_and_a_sample_beyond() -> None:
    assert subsets_of("abc", 20, 0) == [tuple(s) for s in ("abc", "ab", "ac", "bc", "a", "b", "c")]
    assert len(subsets_of("abcdef", 0, 0)) == 2**6 - 1
    many = subsets_of("abcdefgh", 20, 0)
    assert many[0] == tuple("abcdefgh") and len(many) == len(set(many)) == 1 + 8 + 8 + 20
    assert {s for s in many if len(s) == 1} >= {(name,) for name in "abcdefgh"}
    assert {len(s) for s in many[1:9]} == {7}
    assert many == subsets_of("abcdefgh", 20, 0) != subsets_of("abcdefgh", 20, 1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_each_mechanism_removes(rate: float) -> None:
    label = torch.arange(20000.0)
    kept = {m: removal(m, rate, (20000, 4), label, seed=[0, 0])[0] for m in ("mcar", "mnar", "whole_modality")}
    for mask in kept.values():
        assert mask.any(1).all()
    empty = rate**4
    assert 1 - kept["mcar"].mean() == pytest.approx(rate - empty / 4, abs=0.01)
    # never all: the spared ones are counted
    assert removal("mcar", rate, (20000, 4), label, seed=[0, 0])[1] == pytest.approx(20000 * empty, rel=0.3, abs=8)
    assert (kept["whole_modality"] == kept["whole_modality"][0]).all()
    low, high = kept["mnar"][:10000].mean(), kept["mnar"][10000:].mean()
    assert low - high > 0.2 * min(rate, 1 - rate)
    # the mechanism that looks at no label is told apart
    assert abs(kept["mcar"][:10000].mean() - kept["mcar"][10000:].mean()) < 0.012
    assert label_dependent(rate, label.numpy()).mean() == pytest.approx(rate)
    again = removal("mcar", rate, (20000, 4), label, seed=[0, 0])[0]
    assert (again == kept["mcar"]).all()
    assert (again != removal("mcar", rate, (20000, 4), label, seed=[0, 1])[0]).any()


@pytest.mark.parametrize("payload", [0.0, 1e6, np.nan])
def test_the_payload_of_a_removed_modality_does_not_matter(linear_data: Dataset, payload: float) -> None:
    asked = subject(linear_data)
    rows, model = rows_of(asked, "test"), linear_model(linear_data, GROUPS)

    def spoiled(sample: Sample) -> Sample:
        values = np.full_like(sample.arrays["left"]["values"], payload)
        return replace(sample, arrays={**sample.arrays, "left": {"values": values}})

    bad = replace(rows, samples=[spoiled(sample) for sample in rows.samples])
    kept = np.ones((len(rows.samples), 4), bool)
    kept[:, list(model.specs).index("left")] = False
    expected = Predictions(model, rows).of(kept)
    assert torch.equal(Predictions(model, bad).of(kept), expected)
    # the wrong variant: what is removed is blanked and stays in place
    assert not torch.equal(model.estimate(bad.samples).value, expected)


def test_any_pattern_is_what_the_predictor_says_of_stripped_samples(linear_data: Dataset) -> None:
    rows, model = rows_of(subject(linear_data), "test"), linear_model(linear_data, GROUPS)
    kept, _ = removal("mcar", 0.5, (len(rows.samples), 4), rows.targets[:, 0], seed=[3])
    names = list(model.specs)
    stripped = [only(s, {names[j] for j in np.flatnonzero(kept[i])}) for i, s in enumerate(rows.samples)]
    torch.testing.assert_close(Predictions(model, rows).of(kept), model.estimate(stripped).value)


def test_an_uninformative_modality_costs_nothing_and_a_copy_only_together_with_its_original(
    findings: Findings,
) -> None:
    without_junk = row(findings, "left+copy+right")
    assert without_junk["drop_low"] <= 0 <= without_junk["drop_high"] or abs(without_junk["drop"]) < 0.03
    for one_copy in ("copy+right+junk", "left+right+junk"):
        assert row(findings, one_copy)["drop"] == pytest.approx(0, abs=1e-6)
    both = row(findings, "right+junk")
    assert both["drop_low"] > 1.0 and both["mae"] == pytest.approx(row(findings, "right")["mae"], rel=0.05)
    assert len(findings.tables["subsets"]) == 15


def test_the_references_are_honest(findings: Findings, linear_data: Dataset) -> None:
    train = [
        s.labels[LABEL]
        for s in map(linear_data.select([]).__getitem__, linear_data.positions("chemical_system", "train"))
    ]
    test = [
        s.labels[LABEL]
        for s in map(linear_data.select([]).__getitem__, linear_data.positions("chemical_system", "test"))
    ]
    trivial = float(np.abs(np.array(test) - np.mean(train)).mean())
    assert findings.values["mae/mean_predictor"] == pytest.approx(trivial, rel=1e-5)
    # the label is linear in left and right together; alone each leaves what the other holds; junk holds nothing
    assert row(findings, "left+right+junk")["reference_mae"] < 0.05
    assert 0.3 * trivial < row(findings, "left")["reference_mae"] < 0.9 * trivial
    assert row(findings, "junk")["reference_mae"] == pytest.approx(trivial, rel=0.1)
    assert "linear probe" in str(row(findings, "left")["reference"])


def test_rates_start_at_nothing_and_the_area_is_that_under_the_drop(findings: Findings) -> None:
    for area in findings.tables["areas"]:
        rows = [r for r in findings.tables["rates"] if r["mechanism"] == area["mechanism"]]
        assert rows[0]["rate"] == 0 and rows[0]["drop"] == pytest.approx(0) and rows[0]["removed"] == 0
        drops, rates = [r["drop"] for r in rows], [r["rate"] for r in rows]
        assert drops[-1] > drops[1] > 0
        by_hand = sum((drops[i] + drops[i + 1]) / 2 * (rates[i + 1] - rates[i]) for i in range(5))
        assert area["area"] == pytest.approx(by_hand)


def test_another_predictor_is_the_reference_where_it_is_given(
    linear_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = linear_model(linear_data, (("right",),))
    monkeypatch.setattr(references, "load", lambda uri: alone)
    found = Missing(references={"right": "models:/alone/1"}, rates=(0.0, 0.5))(subject(linear_data))
    line = row(found, "right")
    assert line["reference"] == "models:/alone/1" and line["reference_mae"] == pytest.approx(line["mae"], rel=1e-4)
    with pytest.raises(ConfigError, match="not at"):
        Missing(references={"left": "models:/alone/1"})(subject(linear_data))
    with pytest.raises(ConfigError, match="no subset"):
        Missing(references={"lef": "models:/alone/1"})(subject(linear_data))


def test_a_predictor_of_one_modality_has_nothing_to_lose(linear_data: Dataset) -> None:
    with pytest.raises(DataError, match="nothing to leave out"):
        Missing()(subject(linear_data, (("left",),)))
