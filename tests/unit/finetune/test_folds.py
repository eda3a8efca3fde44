from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from finetune.folds import Fold, FoldPlan, dataset_folds, make_folds, repeats_anything
from finetune.pair_folds import PairPlan, pair_folds
from shards.errors import DataError
from shards.reader import Dataset
from shards.splits import SampleInfo

METALS = ("Li", "Na", "K", "Mg", "Ca", "Fe", "Co", "Ni", "Cu", "Zn")


def samples(count: int = 60) -> list[SampleInfo]:
    """Groups of three, five of a prototype, a label that rises, a date."""
    return [
        SampleInfo(
            id=f"s{i}",
            group=f"g{i // 3}",
            tags={
                "prototype": f"p{i // 15}", "year": str(2000 + i // 6),
                "formula": f"{METALS[i // 3 % 10]}{1 + i // 30}O",
            },
            labels={"gap_ev": 0.1 * i, "metal": float(i % 10 == 0)} if i % 7 else {},
        )
        for i in range(count)
    ]  # fmt: skip


PLANS = {
    "group": FoldPlan(),
    "repeated": FoldPlan(folds=3, repeats=2),
    "stratified": FoldPlan(stratify="gap_ev"),
    "prototype": FoldPlan(by="prototype", folds=4),
    "each": FoldPlan(by="prototype", folds="each"),
    "formula": FoldPlan(by="formula", folds=3),
    "cluster": FoldPlan(by="cluster", folds=4),
    "chronological": FoldPlan(by="chronological", key="year", folds=4),
    "top_quantile": FoldPlan(by="top_quantile", label="gap_ev", quantile=0.1, missing="unassigned"),
}


def assignment(folds: list[Fold], rows: list[SampleInfo]) -> dict[str, tuple[list[str], list[str]]]:
    return {f.name: tuple(sorted(rows[i].id for i in part) for part in (f.train, f.test)) for f in folds}  # type: ignore[misc]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_no_group_is_in_both_parts_and_the_order_of_the_rows_does_not_matter(plan: FoldPlan) -> None:
    rows = samples()
    folds = make_folds(plan, rows)
    for fold in folds:
        assert len(fold.train) and len(fold.test) and (np.diff(fold.train) > 0).all()
        assert not {rows[i].group for i in fold.train} & {rows[i].group for i in fold.test}
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert assignment(make_folds(plan, shuffled), shuffled) == assignment(folds, rows)


@pytest.mark.parametrize("name", ["group", "repeated", "stratified", "prototype", "each", "formula", "cluster"])
def test_every_row_is_held_out_once_a_round(name: str) -> None:
    plan, rows = PLANS[name], samples()
    folds = make_folds(plan, rows)
    held_out = np.bincount(np.concatenate([fold.test for fold in folds]), minlength=len(rows))
    assert (held_out == plan.repeats).all()
    assert all(len(fold.train) + len(fold.test) == len(rows) for fold in folds)


def test_an_id_that_repeats_is_a_group() -> None:
    rows = [SampleInfo(id=f"s{i // 4}") for i in range(40)]
    assert repeats_anything(rows) and not repeats_anything(rows[::4])
    for fold in make_folds(FoldPlan(), rows):
        assert not {rows[i].id for i in fold.train} & {rows[i].id for i in fold.test}
        assert len(fold.test) == 8
    with pytest.raises(DataError, match="two groups"):
        make_folds(FoldPlan(), [SampleInfo(id="a", group="x"), SampleInfo(id="a", group="y")])


def test_rounds_and_seeds_differ() -> None:
    rows = samples()
    first, second = make_folds(FoldPlan(repeats=2), rows)[::5]
    assert not np.array_equal(first.test, second.test)
    assert not np.array_equal(first.test, make_folds(FoldPlan(seed=1), rows)[0].test)


def test_another_process_has_the_same_folds() -> None:
    """What another rank, or a run that is resumed, makes of the same plans."""
    code = (
        "import json; from finetune.folds import make_folds\n"
        "from tests.unit.finetune.test_folds import PLANS, samples\n"
        "folds = [fold for plan in PLANS.values() for fold in make_folds(plan, samples())]\n"
        "print(json.dumps([[f.train.tolist(), f.test.tolist()] for f in folds]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    folds = [fold for plan in PLANS.values() for fold in make_folds(plan, samples())]
    assert json.loads(found.stdout) == [[fold.train.tolist(), fold.test.tolist()] for fold in folds]


def test_stratified_folds_have_equal_shares() -> None:
    rows = [SampleInfo(id=f"s{i}", group=f"g{i // 2}", labels={"metal": float(i < 20)}) for i in range(100)]
    shares = [
        np.mean([rows[i].labels["metal"] for i in fold.test]) for fold in make_folds(FoldPlan(stratify="metal"), rows)
    ]
    plain = [np.mean([rows[i].labels["metal"] for i in fold.test]) for fold in make_folds(FoldPlan(), rows)]
    assert np.allclose(shares, 0.2) and not np.allclose(plain, 0.2)


def test_time_runs_forward() -> None:
    rows = samples()
    folds = make_folds(PLANS["chronological"], rows)
    assert len(folds) == 4
    for fold, following in zip(folds, [*folds[1:], None], strict=True):
        years = [[int(rows[i].tags["year"]) for i in part] for part in (fold.train, fold.test)]
        assert max(years[0]) < min(years[1])
        if following is not None:
            assert set(following.train) == set(fold.train) | set(fold.test)


def test_the_highest_values_are_held_out() -> None:
    rows = samples()
    (fold,) = make_folds(PLANS["top_quantile"], rows)
    gap = [[rows[i].labels["gap_ev"] for i in part if rows[i].labels] for part in (fold.train, fold.test)]
    assert max(gap[0]) < max(gap[1]) and np.mean(gap[1]) > np.max(gap[0]) - 0.3


def test_clusters_by_vectors_are_held_out_one_by_one() -> None:
    rng = np.random.default_rng(0)
    rows = [SampleInfo(id=f"s{i}") for i in range(40)]
    vectors = {f"s{i}": rng.normal(size=3) + 20 * (i % 4) for i in range(40)}
    folds = make_folds(FoldPlan(by="cluster", folds=4, features="vector"), rows, vectors)
    assert sorted(tuple(fold.test % 4) for fold in folds) == [(number,) * 10 for number in range(4)]


def test_samples_that_lack_the_tag_are_an_error_or_in_no_fold() -> None:
    rows = [*samples(), SampleInfo(id="bare")]
    with pytest.raises(DataError, match="prototype"):
        make_folds(FoldPlan(by="prototype", folds=3), rows)
    folds = make_folds(FoldPlan(by="prototype", folds=3, missing="unassigned"), rows)
    assert 60 not in np.concatenate([part for fold in folds for part in (fold.train, fold.test)])


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"folds": 1}, "at least 2"),
        ({"by": "top_quantile"}, "label"),
        ({"by": "chronological", "key": "year", "repeats": 2}, "same folds"),
        ({"by": "cluster", "stratify": "gap_ev"}, "random folds"),
        ({"folds": "each", "repeats": 2}, "nothing to"),
        ({"quantile": 0.1}, "top_quantile"),
        ({"fold": 3}, "extra"),
    ],
)
def test_what_makes_no_sense_is_refused(table: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        FoldPlan(**table)


def test_folds_of_a_data_set_number_the_positions_that_are_asked_for(toy: Dataset) -> None:
    chosen = np.arange(10, 40)
    folds = dataset_folds(FoldPlan(by="chemical_system", folds=3), toy, chosen)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(30))
    for fold in folds:
        systems = [{toy[int(chosen[i])].tags["chemical_system"] for i in part} for part in (fold.train, fold.test)]
        assert not systems[0] & systems[1]


PAIRS = [(f"d{a}", f"d{b}") for a in range(12) for b in range(12) if a != b]


def parts(fold: Fold, pairs: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return [pairs[i] for i in fold.train], [pairs[i] for i in fold.test]


@pytest.mark.parametrize("leave", ["random", "pair", "first", "second", "entity", "both"])
def test_pairs_are_as_new_as_the_plan_says(leave: str) -> None:
    folds = pair_folds(PairPlan(leave=leave, folds=3), PAIRS)
    times = np.bincount(np.concatenate([fold.test for fold in folds]), minlength=len(PAIRS))
    for fold in folds:
        train, test = parts(fold, PAIRS)
        known = {drug for pair in train for drug in pair}
        if leave == "pair":
            assert not {frozenset(pair) for pair in train} & {frozenset(pair) for pair in test}
        if leave in ("first", "second"):
            side = 0 if leave == "first" else 1
            assert not {pair[side] for pair in train} & {pair[side] for pair in test}
        if leave == "entity":
            assert all(set(pair) - known for pair in test) and len(train) + len(test) == len(PAIRS)
        if leave == "both":
            assert not any(set(pair) & known for pair in test) and len(train) + len(test) < len(PAIRS)
    assert set(times) == {"entity": {1, 2}, "both": {0, 1}}.get(leave, {1})


def test_random_folds_of_pairs_leak_both_drugs_and_even_the_reversed_pair() -> None:
    """The folds of the published synergy models: why the other plans are there."""
    fold = pair_folds(PairPlan(leave="random", folds=3), PAIRS)[0]
    train, test = parts(fold, PAIRS)
    assert {frozenset(pair) for pair in train} & {frozenset(pair) for pair in test}
    assert {drug for pair in test for drug in pair} <= {drug for pair in train for drug in pair}


def test_a_drug_and_a_target_of_one_name_are_two_entities() -> None:
    pairs = [(f"x{a}", f"x{b}") for a in range(9) for b in range(9)]
    folds = pair_folds(PairPlan(leave="both", symmetric=False, folds=3), pairs)
    for fold in folds:
        train, test = parts(fold, pairs)
        assert not {a for a, _ in train} & {a for a, _ in test} and not {b for _, b in train} & {b for _, b in test}
    assert any({a for a, _ in parts(f, pairs)[1]} != {b for _, b in parts(f, pairs)[1]} for f in folds)
    order = np.random.default_rng(0).permutation(len(pairs))
    again = pair_folds(PairPlan(leave="both", symmetric=False, folds=3), [pairs[i] for i in order])
    assert [set(order[fold.test]) for fold in again] == [set(fold.test) for fold in folds]


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(DataError):
        pair_folds(PairPlan(leave="both", folds=2), [("a", "b")])
