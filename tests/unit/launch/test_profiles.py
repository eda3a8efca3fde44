"""DeepSpeed's settings by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.profiles import deepspeed_settings, profiles
from pretrain.settings import check_settings, offloads, zero_stage
from shards.errors import ConfigError
from shards.recipes import read_tables


def test_every_profile_is_what_its_name_says_and_sets_nothing_of_the_recipe() -> None:
    assert profiles() == ["zero1", "zero2", "zero3", "zero3-offload"]
    for name in profiles():
        settings = read_tables(deepspeed_settings(name))
        check_settings(settings)
        assert zero_stage(settings) == int(name[4])
        assert offloads(settings) == name.endswith("offload")


def test_a_file_wins_where_it_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "mine", "zero2"):
        Path(name).write_text("{}")
    assert deepspeed_settings("mine.json") == Path("mine.json")
    assert deepspeed_settings("mine") == Path("mine")
    assert deepspeed_settings("zero2").parent.name == "profiles"
    assert deepspeed_settings("./zero2") == Path("zero2")
    assert deepspeed_settings(tmp_path / "zero2") == tmp_path / "zero2"


@pytest.mark.parametrize(
    ("given", "said"),
    [("zero-2", "did you mean 'zero2'?"), ("fast", "known: zero1"), ("zero2.json", "a profile: zero1")],
)
def test_what_is_neither_is_refused_with_a_hint(given: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DeepSpeed's settings") as refused:
        deepspeed_settings(given)
    assert said in str(refused.value)
