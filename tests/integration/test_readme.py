"""The README's Python is the examples' Python, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)\n```", README, flags=re.DOTALL)


@pytest.mark.parametrize("name", ["own_data.py", "add_modality.py"])
def test_an_example_is_shown_as_it_is_tested(name: str) -> None:
    source = (ROOT / "docs" / "examples" / name).read_text()
    assert any(block in source for block in BLOCKS)


def test_every_command_shown_is_a_command() -> None:
    from launch.cli import app

    def names(group: Any, before: str = "") -> set[str]:
        found = {before + (c.name or c.callback.__name__) for c in group.registered_commands}
        return found.union(*(names(inner.typer_instance, f"{inner.name} ") for inner in group.registered_groups))

    groups = "|".join(str(group.name) for group in app.registered_groups)
    shown = set(re.findall(rf"^matloom ((?:(?:{groups}) )?[a-z]+)", README, flags=re.MULTILINE))
    assert shown
    assert shown <= names(app)


def test_every_file_linked_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@", README)
