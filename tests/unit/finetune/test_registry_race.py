"""Registering while a better one is between its claim and the move of the alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.registry.promotions import promoted
from pretrain import promotion
from tests.unit.finetune.test_registry import register, store

__all__ = ["store"]


def test_a_worse_model_does_not_overtake_a_better_one_that_is_being_promoted(
    store: Path, export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(export_folder, tmp_path / "first", "race", 0.5)
    with monkeypatch.context() as cut:
        cut.setattr(promotion, "_carry_out", lambda *_: None)
        register(export_folder, tmp_path / "better", "race", 0.7)
    register(export_folder, tmp_path / "worse", "race", 0.6)
    assert [record.version for record in promoted("race")] == ["1", "2"]
    register(export_folder, tmp_path / "best", "race", 0.8)
    assert [record.version for record in promoted("race")] == ["1", "2", "4"]
