"""The build recipe: which source, which feature steps, which splits.

One TOML, or the short form ``KIND:PATH`` with feature steps named on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from shards.build import Progress, build
from shards.errors import ConfigError, suggest
from shards.features import FEATURES, Feature, feature
from shards.manifest import Manifest
from shards.recipes import apply_overrides, parse, read_tables
from shards.schema import Strict
from shards.sources import SOURCES, Source, source
from shards.splits import SplitPlan


class BuildRecipe(Strict):
    """What `matloom shards build` reads.

    Attributes
    ----------
    name : str
        Name of the data set.
    source : dict
        Table of a source (`shards.sources.base.SOURCES`).
    modalities : dict of str to dict
        Modality name to the table of a feature step (`shards.features.base.FEATURES`).
    join : dict, optional
        Table of a ``table`` source whose rows are joined to the source's records by id.
    splits : dict of str to SplitPlan
        Divisions to store.
    overlay_of : str, optional
        Data set that the modalities are added to.
    shard_samples, shard_bytes : int
        Records a shard; bytes after which it is continued in another file.
    max_quarantined : float
        Share of records that may be refused.
    """

    name: str = Field(min_length=1)
    source: dict[str, Any]
    modalities: dict[str, dict[str, Any]] = Field(min_length=1)
    join: dict[str, Any] | None = None
    splits: dict[str, SplitPlan] = {}
    overlay_of: str | None = None
    shard_samples: int = Field(256, gt=0)
    shard_bytes: int = Field(256 << 20, gt=0)
    max_quarantined: float = Field(0.05, ge=0.0, le=1.0)

    def features(self) -> dict[str, Feature]:
        """Return the typed feature step of each modality."""
        return {name: feature(table) for name, table in self.modalities.items()}

    def opened(self) -> Source:
        """Return the source, joined with the table of ``join``."""
        records = source(self.source)
        if self.join is None:
            return records
        return SOURCES.options({"kind": "join", "source": records, "table": {"kind": "table", **self.join}})


def load_build_recipe(path: Path, overrides: Iterable[str] = ()) -> BuildRecipe:
    """Read and validate a build recipe; see `shards.recipes.apply_overrides` for the overrides."""
    recipe = parse(BuildRecipe, apply_overrides(read_tables(path), overrides), where=str(path))
    recipe.features()
    return recipe


def short_recipe(
    text: str, steps: Iterable[str], overrides: Iterable[str] = (), *, like: Mapping[str, dict[str, Any]] | None = None
) -> BuildRecipe:
    """Return the recipe of ``KIND:PATH`` with default feature steps, or with those of a model.

    Parameters
    ----------
    text : str
        ``structures:cifs``, ``table:molecules.csv``, ``embedded:dft_crystals``, ...
    steps : iterable of str
        Names of feature steps; each makes the modality of its own name.
    overrides : iterable of str
        ``a.b=c`` assignments to the recipe.
    like : mapping of str to dict, optional
        Feature tables of a model's modalities; ``steps`` are then the names of some of these.
    """
    kind, colon, place = text.partition(":")
    if not colon or kind not in SOURCES.kinds():
        raise ConfigError(
            f"'{text}' is no source",
            why=suggest(kind, SOURCES.kinds()),
            do="give a build recipe (a .toml file), or KIND:PATH",
        )
    named = list(steps)
    for step in named:
        if like is None:
            FEATURES.get(step)
        elif step not in like:
            raise ConfigError(f"the model has no modality '{step}'", why=suggest(step, like))
    if kind == "embedded" and not named and like is None:
        tables = embedded_recipe(place).model_dump(mode="json", exclude_unset=True)
        return parse(BuildRecipe, apply_overrides(tables, overrides), where=text)
    if not named:
        known = FEATURES.kinds() if like is None else like
        raise ConfigError("no modality is asked for", do=f"--feature NAME, one of {', '.join(known)}")
    tables = {
        "name": Path(place).name.split(".")[0] or kind,
        "source": {"kind": kind, "name" if kind == "embedded" else "path": place},
        "modalities": {step: {"step": step} if like is None else like[step] for step in named},
    }
    recipe = parse(BuildRecipe, apply_overrides(tables, overrides), where=text)
    recipe.features()
    return recipe


def embedded_recipe(name: str, *, seed: int = 0) -> BuildRecipe:
    """Return the recipe of an embedded data set, split by chemical system 70 / 10 / 20."""
    return BuildRecipe(
        name=name,
        source={"kind": "embedded", "name": name},
        modalities={step: {"step": step} for step in ("crystal", "dos", "charge_density", "text", "xrd")},
        splits={"chemical_system": SplitPlan(by="chemical_system", seed=seed)},
        shard_samples=128,
    )


def run_build(
    recipe: BuildRecipe,
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Build what a recipe says; see `shards.build.build`."""
    return build(
        recipe.opened(),
        recipe.features(),
        out,
        name=recipe.name,
        splits=recipe.splits,
        overlay_of=recipe.overlay_of,
        workers=workers,
        scheduler=scheduler,
        shard_samples=recipe.shard_samples,
        shard_bytes=recipe.shard_bytes,
        max_quarantined=recipe.max_quarantined,
        progress=progress,
    )
