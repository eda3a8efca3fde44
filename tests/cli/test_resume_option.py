"""``--resume`` alone, before ``auto``, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.hosts.restarts import Run
from launch.pretrain import arguments

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (["--resume"], "always"),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
        (["--resume", "--out", "x"], "always"),
    ],
)
def test_what_the_ranks_get(given: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(Run, "run", lambda self: commands.extend([self.job.command, self.again]) or 75)
    recipe = str(ROOT / "recipes" / "demo.toml")
    result = CliRunner().invoke(app, ["pretrain", recipe, *given])
    assert result.exit_code == 75, result.output
    command, again = commands
    script = next(i for i, word in enumerate(command) if word.endswith("launch/pretrain.py"))
    assert arguments(command[script + 1 :]).resume == expected
    assert arguments(again[script + 1 :]).resume == "auto"
    # as `deepspeed launch/pretrain.py` gets it from a user
    assert arguments(["--config", recipe, *given]).resume == expected


def test_another_word_is_refused() -> None:
    result = CliRunner().invoke(app, ["pretrain", str(ROOT / "recipes" / "demo.toml"), "--resume=newest"])
    assert result.exit_code == 2 and "newest" in result.output
