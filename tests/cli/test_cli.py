"""The command line itself: help, dry runs, tables, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

ROOT = Path(__file__).resolve().parents[2]


def matloom(*arguments: object, code: int = 0) -> str:
    """What a user starts."""
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def quick(*arguments: object, code: int = 0) -> str:
    """The same command in a process that has imported torch already."""
    found, told, errors = commands.matloom(*arguments, folder=ROOT, environment={"COLUMNS": "160"})
    assert found == code, told + errors
    return told if code == 0 else told + errors


def test_help_names_every_command() -> None:
    text = matloom("--help")
    for command in (
        "demo",
        "pretrain",
        "finetune",
        "predict",
        "search",
        "evaluate",
        "embed",
        "doctor",
        "shards",
        "config",
    ):
        assert command in text


def test_help_imports_nothing_heavy() -> None:
    """What keeps ``--help`` under 0.7 s: `benchmarks/startup.py` measures it."""
    code = "import sys, launch.cli; print([m for m in ('torch', 'mlflow', 'pymatgen', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_config_show_writes_out_every_default() -> None:
    recipe = json.loads(matloom("config", "show", "recipes/demo.toml", "--set", "optim.lr=0.5"))
    assert recipe["optim"]["lr"] == 0.5 and recipe["objective"]["pair_loss"]["kind"] == "infonce"
    assert "layers" in recipe["modalities"]["crystal"]["encoder"]


def test_config_schema_lists_plugins() -> None:
    schema = json.loads(quick("config", "schema"))
    assert {"potnet", "comformer", "schnet", "visnet", "dmpnn", "vit3d", "image", "text"} <= set(schema["encoders"])
    assert {"concat", "gated", "gmca", "attention_bottleneck", "token_transformer"} <= set(schema["fusions"])
    assert {"anchored", "comm", "gram", "symile", "calmrl", "weighted_sum"} <= set(schema["objectives"])
    assert {"infonce", "ntxent", "siglip", "barlow"} == set(schema["pair losses"])
    assert {"structures", "table", "vasp"} <= set(schema["sources"])
    assert {"crystal", "dos", "image", "molecule"} <= set(schema["feature steps"])
    assert {"regression", "gaussian", "quantile", "bilinear_transduction"} <= set(schema["heads"])
    assert {"frozen", "lora", "scale_shift"} <= set(schema["adaptations"])
    assert {"linear_probe", "random_forest"} <= set(schema["estimators"])
    assert {"retrieval", "missing", "uncertainty", "discovery"} <= set(schema["evaluations"])
    assert "target" in schema["finetuning recipe"]["properties"]
    assert "difficulty" in schema["orders"]["curriculum"]["properties"]


def test_dry_run_prints_what_every_rank_runs() -> None:
    text = quick(
        "pretrain", "recipes/demo.toml", "--accelerators", 2, "--resume", "--dry-run", "--calibrate", 0, "--json"
    )
    plan = json.loads(text)
    command = plan["command"]
    assert command[:2] == [sys.executable, "-u"]
    assert command[2].endswith("launch/pretrain.py") and "--resume" in command
    assert (plan["world"], plan["rank_rows"], plan["total_steps"], plan["warmup_steps"]) == (2, 64, 150, 8)
    assert plan["trained"] == sum(plan["parameters"].values()) > 10**6
    assert 0.45 < plan["coverage"]["dos"] < 0.55
    assert plan["memory"]["total"] > 4 * plan["trained"]


def test_inspect_prints_the_coverage_matrix(toy_folder: Path) -> None:
    text = matloom("shards", "inspect", toy_folder)
    assert "coverage" in text and "60 samples" in text
    summary = json.loads(matloom("shards", "inspect", toy_folder, "--json"))
    assert summary["coverage"]["a"]["a"] == 60 and 0 < summary["coverage"]["b"]["c"] < 60


def test_verify_names_the_damaged_shard(toy_folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(toy_folder, tmp_path / "copy")
    assert "60 samples verified" in matloom("shards", "verify", copy)
    shard = copy / "shard-000002.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert "shard-000002.tar" in matloom("shards", "verify", copy, code=3)


def test_doctor_finds_nothing_missing() -> None:
    findings = {row["name"]: row for row in json.loads(quick("doctor", "--json"))}
    assert findings["torch"]["status"] == "ok" and "disk" in findings
    assert not [row for row in findings.values() if row["status"] == "failed"]


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.toml")))
def test_every_recipe_is_valid(recipe: str) -> None:
    if "finetune" in recipe:
        from finetune.config import load_finetune_recipe

        assert load_finetune_recipe(ROOT / "recipes" / recipe).rows
    else:
        from pretrain.config import load_recipe

        assert load_recipe(ROOT / "recipes" / recipe).modalities


def test_the_objective_is_one_switch() -> None:
    recipe = json.loads(quick("config", "show", "recipes/demo.toml", "--set", "objective.kind=all_pairs"))
    assert recipe["objective"]["kind"] == "all_pairs"
