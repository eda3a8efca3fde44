from __future__ import annotations

import json
import random
import re
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shards.errors import DataError, MatloomError
from shards.manifest import Split
from shards.recipes import parse
from shards.schema import Strict
from shards.splits import SampleInfo, SplitPlan, group_split, make_split

GROUPS = st.dictionaries(st.text(min_size=1, max_size=4), st.sampled_from("abcdefghij"), min_size=3, max_size=60)
FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
FORMULAS = [
    "Fe2O3",
    "Fe4O6",
    "NaCl",
    "Na2Cl2",
    "MgO",
    "CaO",
    "SiO2",
    "GaAs",
    "TiO2",
    "Li3N",
    "ZnS",
    "CsPbI3",
    "Cu",
    "C",
]
PAIRS = [pair for metal in ("Na", "K", "Mg", "Ca", "Al", "Fe") for pair in ((metal, "Ti"), ("Ti", metal))]
PLANS = {
    "id": SplitPlan(by="id"),
    "group": SplitPlan(by="group"),
    "formula": SplitPlan(by="formula", missing="unassigned"),
    "chemical_system": SplitPlan(by="chemical_system", missing="unassigned"),
    "scaffold": SplitPlan(by="scaffold", missing="unassigned"),
    "top_quantile": SplitPlan(by="top_quantile", label="gap_ev", quantile=0.1, missing="unassigned"),
    "chronological": SplitPlan(by="chronological", key="year", missing="unassigned"),
    "cluster": SplitPlan(by="cluster", clusters=3, held_out=1, missing="unassigned"),
}


@given(GROUPS.filter(lambda groups: len(set(groups.values())) >= 3), st.integers(0, 99))
def test_every_sample_once_and_no_group_in_two_parts(groups: dict[str, str], seed: int) -> None:
    split = group_split(groups, by="tag", fractions=FRACTIONS, seed=seed)
    assert sorted(chain.from_iterable(split.ids.values())) == sorted(groups)
    held = [{groups[sample_id] for sample_id in ids} for ids in split.ids.values()]
    assert all(held)
    assert sum(map(len, held)) == len(set(groups.values()))
    shuffled = dict(reversed(groups.items()))
    assert group_split(shuffled, by="tag", fractions=FRACTIONS, seed=seed) == split


def test_the_shares_are_met_and_the_seed_matters() -> None:
    groups = {f"s{i}": f"g{i // 3}" for i in range(900)}
    splits = [group_split(groups, by="g", fractions=FRACTIONS, seed=seed) for seed in range(3)]
    for split in splits:
        for part, share in FRACTIONS.items():
            assert len(split.ids[part]) == pytest.approx(900 * share, abs=6)
    assert splits[0].ids["test"] != splits[1].ids["test"] != splits[2].ids["test"]


@pytest.mark.parametrize(
    "fractions",
    [
        {"train": 0.5, "val": 0.4},
        {"train": 1.0, "val": 0.0},
        {"train": 1.5, "val": -0.5},
        {"train": float("nan"), "val": 0.5},
        {},
    ],
)
def test_shares_that_are_none_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(DataError):
        group_split({"a": "1", "b": "2"}, by="id", fractions=fractions, seed=0)
    with pytest.raises(ValidationError, match="add up to 1"):
        SplitPlan(by="id", fractions=fractions)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="2 groups"):
        group_split({"a": "1", "b": "2", "c": "1"}, by="id", fractions=FRACTIONS, seed=0)


@st.composite
def infos(draw: st.DrawFn) -> list[SampleInfo]:
    """Samples with groups that tags, labels and dates cut across, some of them unknown."""
    result = []
    for i in range(draw(st.integers(12, 40))):
        known = draw(st.integers(0, 15))
        tags = {
            "formula": draw(st.sampled_from(FORMULAS)),
            "scaffold": draw(st.sampled_from("abcdefghijklmnop")),
            "year": str(draw(st.integers(1990, 2024))),
        }
        labels = {"gap_ev": draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 7.0, 9.0]))}
        group = f"g{draw(st.integers(0, 30))}" if draw(st.integers(0, 3)) == 0 else ""
        result.append(SampleInfo(id=f"s{i}", group=group, tags=tags if known else {}, labels=labels if known else {}))
    return result


@settings(max_examples=60, deadline=None)
@given(infos(), st.sampled_from(sorted(PLANS)), st.integers(0, 3), st.randoms())
def test_every_kind_holds_what_every_split_must(
    samples: list[SampleInfo], kind: str, seed: int, shuffler: random.Random
) -> None:
    plan = PLANS[kind].model_copy(update={"seed": seed})
    try:
        split = make_split(plan, samples)
    except DataError as error:
        # too few that differ, to fill the parts or to form the clusters, or nothing known at all
        assume(not re.search(r"cannot (fill|form)|\b(\d+) of \2 samples have no", str(error)))
        raise
    assert sorted(chain.from_iterable(split.ids.values())) == sorted(sample.id for sample in samples)
    assert all(split.ids.values())
    assert set(split.ids) - {"unassigned"} == set(FRACTIONS)
    part_of = {sample_id: part for part, ids in split.ids.items() for sample_id in ids}
    for key in ("group", kind):
        homes: dict[str, set[str]] = {}
        for sample in samples:
            value = sample.group or sample.id if key == "group" else sample.tags.get(key)
            if value is not None and key in ("group", "scaffold"):
                homes.setdefault(value, set()).add(part_of[sample.id])
        assert all(len(parts) == 1 for parts in homes.values())
    shuffled = list(samples)
    shuffler.shuffle(shuffled)
    assert make_split(plan, shuffled) == split
    assert Split.model_validate_json(split.model_dump_json()) == split


def test_formulas_are_reduced_and_systems_follow_from_them() -> None:
    samples = [SampleInfo(id=f"{i}", tags={"formula": formula}) for i, formula in enumerate(FORMULAS)]
    for seed in range(5):
        part_of = where(make_split(SplitPlan(by="formula", seed=seed), samples))
        assert part_of["0"] == part_of["1"] and part_of["2"] == part_of["3"]
    polymorphs = [
        *samples,
        SampleInfo(id="FeO", tags={"formula": "FeO"}),
        SampleInfo(id="tag", tags={"chemical_system": "Fe-O"}),
    ]
    for seed in range(5):
        part_of = where(make_split(SplitPlan(by="chemical_system", seed=seed), polymorphs))
        assert len({part_of[i] for i in ("0", "1", "FeO", "tag")}) == 1


def test_a_chemical_system_is_one_in_any_order_of_its_elements() -> None:
    samples = [SampleInfo(id=f"{i}", tags={"chemical_system": f"{a}-O-{b}"}) for i, (a, b) in enumerate(PAIRS)]
    for seed in range(5):
        part_of = where(make_split(SplitPlan(by="chemical_system", seed=seed), samples))
        assert all(part_of[f"{2 * i}"] == part_of[f"{2 * i + 1}"] for i in range(len(PAIRS) // 2))


@pytest.mark.parametrize("formula", ["Na0", "Na1e999", "X", "", "a stone"])
def test_what_is_no_formula_is_a_text_of_its_own_and_no_point_of_a_cluster(formula: str) -> None:
    samples = [SampleInfo(id=f"{i}", tags={"formula": name}) for i, name in enumerate([*FORMULAS, formula])]
    assert sorted(where(make_split(SplitPlan(by="formula"), samples))) == sorted(sample.id for sample in samples)
    split = make_split(SplitPlan(by="cluster", clusters=2, missing="unassigned"), samples)
    assert split.ids["unassigned"] == [f"{len(FORMULAS)}"]


def test_a_group_that_two_tags_share_ties_them_together() -> None:
    samples = [SampleInfo(id=f"{i}", group=f"{i // 2}", tags={"process": f"p{(i + 1) // 2 % 4}"}) for i in range(8)]
    with pytest.raises(DataError, match="1 groups"):
        make_split(SplitPlan(by="process"), samples)


def where(split: Split) -> dict[str, str]:
    return {sample_id: part for part, ids in split.ids.items() for sample_id in ids}


@pytest.mark.parametrize(
    ("total", "rest", "validation", "held_out"),
    [(2740, 2473, 130, 137), (1128, 1019, 53, 56), (642, 580, 30, 32), (4200, 3791, 199, 210), (1513, 1367, 71, 75)],
)
def test_the_published_sizes_of_extrapolation_splits(total: int, rest: int, validation: int, held_out: int) -> None:
    """Bilinear transduction (arXiv:2502.05970): the top 5 % are OOD, 5 % of the rest validate."""
    values = np.random.default_rng(0).permutation(total).astype(float)
    samples = [SampleInfo(id=f"{i}", labels={"k_gpa": value}) for i, value in enumerate(values)]
    plan = SplitPlan(by="top_quantile", label="k_gpa", fractions={"train": 0.95, "val": 0.05})
    split = make_split(plan, samples)
    assert len(split.ids["test"]) == held_out
    assert abs(len(split.ids["val"]) - validation) <= 1 and abs(len(split.ids["train"]) - rest) <= 1
    assert min(values[int(i)] for i in split.ids["test"]) == total - held_out
    assert split.parameters == {
        "fractions": {"train": 0.95, "val": 0.05}, "missing": "error", "label": "k_gpa", "quantile": 0.05,
    }  # fmt: skip


def test_a_group_is_held_out_as_a_whole_for_its_highest_value() -> None:
    samples = [SampleInfo(id=f"{i}", group=f"g{i % 10}", labels={"y": float(i)}) for i in range(100)]
    split = make_split(SplitPlan(by="top_quantile", label="y", quantile=0.02), samples)
    assert sorted(map(int, split.ids["test"])) == [i for i in range(100) if i % 10 in (8, 9)]


def test_values_equal_to_the_lowest_held_out_one_are_held_out_too() -> None:
    samples = [SampleInfo(id=f"{i}", labels={"y": 1.0 if i < 40 else 0.0}) for i in range(100)]
    split = make_split(SplitPlan(by="top_quantile", label="y"), samples)
    assert sorted(map(int, split.ids["test"])) == list(range(40))
    equal = [SampleInfo(id=f"{i}", labels={"y": 1.0}) for i in range(100)]
    with pytest.raises(DataError, match="0 groups"):
        make_split(SplitPlan(by="top_quantile", label="y"), equal)


def test_samples_without_the_label_are_an_error_or_a_part_of_their_own() -> None:
    samples = [SampleInfo(id=f"{i}", labels={"y": float(i)} if i % 2 else {}) for i in range(40)]
    with pytest.raises(DataError, match="20 of 40 samples have no label 'y'"):
        make_split(SplitPlan(by="top_quantile", label="y"), samples)
    split = make_split(SplitPlan(by="top_quantile", label="y", missing="unassigned"), samples)
    assert sorted(map(int, split.ids["unassigned"])) == list(range(0, 40, 2))
    for plan in (SplitPlan(by="space_group"), SplitPlan(by="chronological", key="when"), SplitPlan(by="cluster")):
        with pytest.raises(DataError, match="40 of 40 samples have no"):
            make_split(plan, samples)


def test_time_runs_from_train_to_test_and_equal_times_stay_together() -> None:
    rng = np.random.default_rng(1)
    years = rng.integers(2000, 2020, 200)
    samples = [SampleInfo(id=f"{i}", tags={"year": str(year)}) for i, year in enumerate(years)]
    plan = SplitPlan(by="chronological", key="year", fractions={"test": 0.2, "val": 0.1, "train": 0.7})
    split = make_split(plan, samples)
    ranges = [[years[int(i)] for i in split.ids[part]] for part in ("train", "val", "test")]
    assert max(ranges[0]) < min(ranges[1]) and max(ranges[1]) < min(ranges[2])
    for found, share in zip(ranges, (0.7, 0.1, 0.2), strict=True):
        assert len(found) == pytest.approx(200 * share, abs=14)


def test_dates_of_every_form_and_labels_are_times() -> None:
    order = ["1999", "2000-03", "2000-03-02", "2000-03-02T10:00:00+05:00", "2000-03-02T06:00:00", "2001"]
    samples = [SampleInfo(id=f"{i}", tags={"date": date}) for i, date in enumerate(order)]
    thirds = {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}
    split = make_split(SplitPlan(by="chronological", key="date", fractions=thirds), samples)
    assert split.ids == {"train": ["0", "1"], "val": ["2", "3"], "test": ["4", "5"]}
    numbers = [SampleInfo(id=f"{i}", labels={"batch": -float(i)}) for i in range(6)]
    split = make_split(SplitPlan(by="chronological", key="batch", fractions=thirds), numbers)
    assert split.ids == {"train": ["4", "5"], "val": ["2", "3"], "test": ["0", "1"]}
    with pytest.raises(DataError, match="holds no date: 'spring'"):
        make_split(SplitPlan(by="chronological", key="date"), [SampleInfo(id="x", tags={"date": "spring"})])


def test_a_group_counts_from_its_newest_sample() -> None:
    samples = [
        SampleInfo(id=f"{i}", group="old" if i in (0, 19) else "", labels={"year": 2000.0 + i}) for i in range(20)
    ]
    split = make_split(SplitPlan(by="chronological", key="year"), samples)
    assert {"0", "19"} <= set(split.ids["test"])


def test_clusters_are_numbered_by_size_and_held_out_one_by_one() -> None:
    rng = np.random.default_rng(2)
    sizes, vectors = {"a": 50, "b": 30, "c": 20}, {}
    for name, centre in (("a", (0, 0)), ("b", (10, 0)), ("c", (0, 10))):
        vectors |= {f"{name}{i}": rng.normal(centre, 0.5) for i in range(sizes[name])}
    samples = [SampleInfo(id=sample_id) for sample_id in vectors]
    for held_out, name in enumerate("abc"):
        plan = SplitPlan(by="cluster", features="embedding", clusters=3, held_out=held_out)
        split = make_split(plan, samples, vectors)
        assert split.ids["test"] == sorted(i for i in vectors if i[0] == name)
        assert len(split.ids["val"]) == pytest.approx((100 - sizes[name]) / 8, abs=1)
    with pytest.raises(MatloomError, match="shards split"):
        make_split(plan, samples)


def test_clusters_of_compositions_tell_oxides_from_intermetallics() -> None:
    oxides = ["MgO", "CaO", "SrO", "BaO", "Al2O3", "SiO2", "TiO2", "ZrO2", "Li2O", "Na2O"]
    metals = ["FeCo", "NiCu", "FeNi", "CoNi", "CuAu", "AgPd", "NiPt", "FePt"]
    samples = [SampleInfo(id=formula, tags={"formula": formula}) for formula in (*oxides, *metals)]
    split = make_split(SplitPlan(by="cluster", clusters=2, held_out=1), samples)
    assert split.ids["test"] == sorted(metals)


def test_samples_that_are_alike_cannot_form_clusters() -> None:
    samples = [SampleInfo(id=f"{i}", tags={"formula": "NaCl"}) for i in range(20)]
    with pytest.raises(DataError, match="1 different samples cannot form 10 clusters"):
        make_split(SplitPlan(by="cluster"), samples)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"by": "id", "label": "y"}, "'label' is a parameter of by = 'top_quantile'"),
        ({"by": "top_quantile", "label": "y", "key": "year"}, "'key' is a parameter of by = 'chronological'"),
        ({"by": "top_quantile"}, "needs 'label'"),
        ({"by": "chronological"}, "needs 'key'"),
        ({"by": "cluster", "clusters": 3, "held_out": 3}, "held_out must be less"),
        ({"by": "cluster", "fractions": {"test": 1.0}}, "a part other than 'test'"),
        ({"by": "id", "fractions": {"train": 0.5, "unassigned": 0.5}}, "has no share"),
        ({"by": "id", "sed": 1}, "did you mean 'seed'"),
        ({"fractions": {}}, "by"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(table: dict[str, object], reason: str) -> None:
    class Recipe(Strict):
        splits: dict[str, SplitPlan]

    with pytest.raises(MatloomError, match=reason):
        parse(Recipe, {"splits": {"mine": table}}, where="recipe.toml")


def test_plans_are_tables_of_a_recipe() -> None:
    import tomllib

    text = """
    [splits.random]
    by = "id"
    fractions = { train = 0.8, test = 0.2 }
    seed = 3
    [splits.extrapolation]
    by = "top_quantile"
    label = "band_gap_ev"
    quantile = 0.1
    [splits.unlike]
    by = "cluster"
    clusters = 5
    held_out = 4
    """
    plans = {name: SplitPlan(**table) for name, table in tomllib.loads(text)["splits"].items()}
    assert plans["random"].fractions == {"train": 0.8, "test": 0.2}
    assert plans["unlike"].parameters()["clusters"] == 5
    assert all(json.dumps(plan.parameters()) for plan in plans.values())
    # as manifests that were written keep it, to the byte
    stored = json.dumps(SplitPlan(by="cluster", features="v", held_out=1, missing="unassigned").parameters())
    assert stored == (
        '{"fractions": {"train": 0.7, "val": 0.1, "test": 0.2}, "missing": "unassigned", "features": "v", '
        '"clusters": 10, "held_out": 1}'
    )
