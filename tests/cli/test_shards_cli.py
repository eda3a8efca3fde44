"""``matloom shards inspect | verify | leakage | split | fetch``: what they print, write and exit with."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from launch.cli import app
from launch.guard import guarded
from launch.periodic_table import places
from launch.tables import sparkline
from shards.build import build
from shards.errors import DataError
from shards.features import feature
from shards.reader import Dataset
from shards.sources.base import Record
from shards.splits import SplitPlan
from tests.synthetic import FEATURES, records


def shards(*arguments: object, code: int = 0) -> str:
    """Run a command in this process and return what it wrote to stdout."""
    done = CliRunner().invoke(app, ["shards", *map(str, arguments)], env={"COLUMNS": "160"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.fixture
def copy(toy_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy_folder, tmp_path / "copy")


def test_help_names_the_commands() -> None:
    text = shards("--help")
    assert all(command in text for command in ("build", "inspect", "verify", "leakage", "split", "fetch"))


def test_inspect_prints_everything_once(toy_folder: Path) -> None:
    text = shards("inspect", toy_folder)
    for part in ("60 samples", "coverage", "bytes", "chemical_system", "gap_ev", "█", "3 elements: Co 60, Li 60, O 59"):
        assert part in text, part
    assert text.count("example") == 2 and "float32[6]" in text
    assert "example" not in shards("inspect", toy_folder, "--quick")


def test_inspect_writes_json_tables_and_pictures(dft_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = json.loads(shards("inspect", dft_shards, "--out", out, "--json"))
    assert json.loads((out / "summary.json").read_text()) == printed
    assert printed["coverage"]["dos"]["text"] == 279 and len(printed["survey"]["examples"]) == 2
    elements = {row["element"]: int(row["samples"]) for row in csv.DictReader((out / "elements.csv").open())}
    symbols = [sample.tags["chemical_system"].split("-") for sample in Dataset(dft_shards, [])]
    assert elements == {symbol: sum(symbol in held for held in symbols) for symbol in {s for h in symbols for s in h}}
    bins = list(csv.DictReader((out / "labels.csv").open()))
    assert sum(int(row["samples"]) for row in bins if row["label"] == "band_gap_ev") == 279
    coverage = list(csv.DictReader((out / "coverage.csv").open()))
    assert [row["modality"] for row in coverage] == list(printed["coverage"])
    for name in ("coverage.png", "elements.png", "labels.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 400 and len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_inspect_copes_with_a_set_without_labels_texts_or_elements(tmp_path: Path) -> None:
    build((Record(id=f"s{i}") for i in range(3)), {"a": FEATURES["a"]}, tmp_path / "set", name="bare")
    shards("inspect", tmp_path / "set", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.json", "coverage.csv", "coverage.png"}


def test_brackets_in_names_are_printed() -> None:
    from rich.console import Console

    from launch.tables import table

    with (console := Console(width=100)).capture() as held:
        console.print(table("split '[red]'", [{"gap [eV]": 1.0, "part": "[b]"}]))
    assert all(name in held.get() for name in ("split '[red]'", "gap [eV]", "[b]"))


def test_inspect_groups_what_was_refused(tmp_path: Path) -> None:
    broken = [Record(id=f"x{i}", tags={"broken": "a"}) for i in range(3)]
    build([*records(9), *broken], FEATURES, tmp_path / "set", name="x", max_quarantined=0.5)
    text = shards("inspect", tmp_path / "set", "--out", tmp_path / "out")
    assert "3 quarantined" in text and "this record is broken on purpose" in text
    rows = list(csv.DictReader((tmp_path / "out" / "quarantined.csv").open()))
    assert rows == [{"reason": "this record is broken on purpose", "count": "3", "example": "x0"}]


def test_the_periodic_table_is_complete_and_in_order() -> None:
    from pymatgen.core import Element

    found = places()
    assert set(found) == {Element.from_Z(z).symbol for z in range(1, 119)}
    for symbol, (row, column) in found.items():
        element = Element(symbol)
        if row < 7:
            assert (row + 1, column + 1) == (element.row, element.group)
        else:
            assert element.is_lanthanoid or element.is_actinoid
            assert column - 2 == element.Z - (57 if element.is_lanthanoid else 89)


def test_sparklines_show_the_smallest_bar_and_leave_empty_bins_empty() -> None:
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([]) == "" and sparkline([0]) == " "


def test_verify_counts_and_names_damage(copy: Path) -> None:
    assert "60 samples verified" in shards("verify", copy)
    table = json.loads(shards("verify", copy, "--json", "--workers", 2))
    assert table["samples"] == 60 and {leak["sets"] for leak in table["leakage"]["leaks"]} == {0}
    assert json.loads(shards("verify", copy, "--json", "--no-leakage"))["leakage"] is None
    shard = copy / "shard-000002.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000002\.tar"):
        shards("verify", copy)
    assert guarded(lambda: shards("verify", copy)) == 3


def test_leakage_fails_for_a_structure_in_two_parts_and_says_where(tmp_path: Path) -> None:
    from tests.unit.shards.test_fingerprint import PEROVSKITE, ROCK_SALT, RUTILE, ZINC_BLENDE, disguised

    cells = [ROCK_SALT, RUTILE, PEROVSKITE, ZINC_BLENDE, disguised(RUTILE, 0)]
    plans = {
        "each": SplitPlan(by="id", fractions={f"p{i}": 0.2 for i in range(5)}),
        "one": SplitPlan(by="formula", fractions={"train": 0.5, "test": 0.5}),
    }
    samples = [Record(id=f"s{i}", structure=cell, tags={"formula": cell.formula}) for i, cell in enumerate(cells)]
    build(samples, {"crystal": feature({"step": "crystal"})}, tmp_path / "set", name="x", splits=plans)
    text = shards("leakage", tmp_path / "set", code=3)
    assert "each, structure: " in text and "s1" in text and "s4" in text
    table = json.loads(shards("leakage", tmp_path / "set", "--json", code=3))
    assert [(leak["split"], leak["kind"]) for leak in table["leaks"] if leak["sets"]] == [("each", "structure")]
    assert "same structure: 1 sets" in shards("verify", tmp_path / "set")


def test_a_split_is_added_and_a_wrong_one_is_explained(copy: Path) -> None:
    text = shards("split", copy, "mine", "--by", "id", "--set", "seed=2", "--set", "fractions={train=0.5, test=0.5}")
    assert "train 30, test 30" in text
    assert Dataset(copy).manifest.splits["mine"].seed == 2
    assert json.loads(shards("inspect", copy, "--json", "--quick"))["splits"]["mine"]["test"]["samples"] == 30
    for arguments, reason in (
        (("--by", "top_quantile"), "needs 'label'"),
        (("--by", "id", "--set", "sed=1"), "did you mean 'seed'"),
        (("--by", "space_group"), "have no tag 'space_group'"),
    ):
        with pytest.raises(ValueError, match=reason):
            shards("split", copy, "other", *arguments)


def test_fetch_copies_and_says_what(copy: Path, tmp_path: Path) -> None:
    text = shards("fetch", copy, tmp_path / "there")
    assert "60 samples in 4 shards" in text and "verified" in text
    assert "60 samples verified" in shards("verify", tmp_path / "there", "--no-leakage")
