"""Every recipe of the documentation is one that the program takes, and every link leads somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from finetune.config import FinetuneRecipe
from pretrain.config import parse_recipe
from shards.build_recipe import BuildRecipe
from shards.recipes import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(tomllib.loads(block), id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```toml\n(.*?)\n```", page.read_text(), flags=re.DOTALL))
]
# what a recipe must have beside the part that a page shows
BUILD_REST: dict[str, Any] = {
    "name": "page",
    "source": {"kind": "embedded"},
    "modalities": {"crystal": {"step": "crystal"}},
}
FINETUNE_REST = {"name": "page", "model": "models:/demo@champion", "data": "shards/x"}
REST: dict[str, Any] = {
    "name": "page",
    "data": {"path": "shards/x"},
    "modalities": {name: {"encoder": {"kind": kind}} for name, kind in (("crystal", "cgcnn"), ("text", "text"))},
    "objective": {"kind": "all_pairs"},
}


@pytest.mark.parametrize("tables", BLOCKS)
def test_a_recipe_of_the_docs_is_valid(tables: dict[str, Any]) -> None:
    if "rows" in tables:
        for row in parse(FinetuneRecipe, {**FINETUNE_REST, **tables}, where="docs").rows:
            row.check()
    elif {"source", "splits"} & set(tables) or any("step" in table for table in tables.get("modalities", {}).values()):
        recipe = parse(BuildRecipe, {**BUILD_REST, **tables}, where="docs")
        assert recipe.features()
        assert recipe.opened().kind
    else:
        assert parse_recipe({**REST, **tables}, where="docs").resolved()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_every_test_that_the_proofs_name_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "proofs.md").read_text()))
    assert len(named) > 80
    for path, test in sorted(named):
        text = (ROOT / (path if path.startswith("tests/") else f"tests/unit/{path}")).read_text()
        assert re.search(rf"def {test}\(", text), f"{path}::{test}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "data").glob("*.toml")), ids=lambda path: path.stem)
def test_a_build_recipe_is_valid(path: Path) -> None:
    assert parse(BuildRecipe, tomllib.loads(path.read_text()), where=str(path)).features()
