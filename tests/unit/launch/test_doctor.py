"""One machine is looked at as each host of a run is."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import doctor
from launch.hosts import facts


def test_every_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    found = {one.name: one for one in doctor.examine(tmp_path)}
    parts = {"python", "torch", "accelerator", "c++", "memory", "shared memory", "open files", "disk", "registry"}
    assert parts <= set(found)
    assert all(one.do for one in found.values() if one.status != "ok")


def test_what_is_missing_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(facts, "version", lambda name: {"torch": "1.0"}.get(name) or facts_version(name))
    found = {one.name: one for one in doctor.examine(tmp_path)}
    assert found["torch"].status == "failed" and "pip install 'torch>=2.6'" in found["torch"].do
    found = {one.name: one for one in doctor.examine(Path("/proc"))}
    assert found["disk"].status == "failed" and "--out" in found["disk"].do


facts_version = facts.version
