"""Matbench-Discovery: formation energies of the WBM test set, and the YAML that describes the model.

The files stand where its repository wants them: ``models/<family>/<model_key>/<date>-discovery.csv.gz`` (columns
``material_id`` and ``e_form_per_atom``, in eV/atom) and ``models/<family>/<model_key>.yml``
(https://matbench-discovery.materialsproject.org/contribute; Riebesell et al., Nat. Mach. Intell. 7, 836 (2025)).
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from finetune.leaderboards.entries import Values, check_entries, mean_absolute_error, write_gzip
from shards.errors import ConfigError, DataError
from shards.recipes import parse
from shards.schema import Strict

COLUMNS = ("material_id", "e_form_per_atom")
FAMILY = re.compile(r"^[a-z0-9]+(_[a-z0-9]+)*$")
License = Literal[
    "MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "GPL-3.0", "BSD-3-Clause", "LGPL-3.0",
    "Meta Research", "ASL", "unreleased",
]  # fmt: skip
Url = Field(None, pattern=r"^https?://")


class Person(Strict):
    """An author."""

    name: str
    affiliation: str | None = None
    email: str | None = Field(None, pattern=r"^[^@\s]+@[^@\s]+$")
    url: str | None = Url
    orcid: str | None = Url
    github: str | None = Url
    corresponding: bool | None = None


class Dates(Strict):
    """Dates as YYYY-MM-DD."""

    benchmark_added: date | None
    paper_published: date | None


class Licenses(Strict):
    """Of the code and of the weights."""

    code: License
    code_url: str | None = Url
    checkpoint: License
    checkpoint_url: str | None = Url


class Environment(Strict):
    """What runs the model."""

    dependencies: tuple[str, ...] = Field(min_length=1)
    python_version: str = Field(pattern=r"^[0-9]+\.[0-9]+$")


class FileRef(Strict):
    """A file of the submission; the URL is known after the upload."""

    name: str = Field(min_length=1)
    url: str | None = Url


class Discovery(Strict):
    """The predictions of formation energies."""

    pred_file: FileRef


class Metrics(Strict):
    """What the model was tested on."""

    discovery: Discovery


class ModelCard(Strict):
    """The keys of ``tests/model-schema.yml`` that a model without forces needs, and their constraints."""

    model_name: str
    model_key: str = Field(pattern=r"^[a-z0-9]+(?:[.-][a-z0-9]+)*$")
    model_version: str | None
    dates: Dates
    lifecycle: Literal["active", "superseded", "deprecated", "aborted"] = "active"
    superseded_by: str | None = None
    authors: tuple[Person, ...] = Field(min_length=1)
    trained_by: tuple[Person, ...] | None = None
    repo: str | None = Url
    doi: str | None = Url
    paper: str | None = Url
    docs: str | None = Url
    pypi: str | None = Url
    pr_url: str | None = Url
    checkpoint_url: str | None = Url
    license: Licenses
    environment: Environment
    openness: Literal["OSOD", "OSCD", "CSOD", "CSCD"]
    architecture_types: tuple[
        Literal["gnn", "transformer", "random_forest", "fingerprint", "bayesian_optimization", "unknown"], ...
    ] = Field(min_length=1)
    train_task: Literal["RP2RE", "RS2RE", "S2E", "S2RE", "S2EF", "S2EFS", "S2EFSM"]
    test_task: Literal["IP2E", "IS2E", "IS2RE", "IS2RE-SR"]
    targets: Literal["E"] = "E"
    training_sets: tuple[str, ...] = Field(min_length=1)
    model_params: int = Field(ge=0)
    n_estimators: int | None = Field(None, ge=2)
    size: str | None = None
    fine_tune: bool | None = None
    notes: dict[Annotated[str, Field(pattern=FAMILY.pattern)], Any] | None = None
    metrics: Metrics

    @model_validator(mode="after")
    def _complete(self) -> ModelCard:
        """Somebody must be reachable, lists name nothing twice, and what took the place of a model is named."""
        if not self.authors[0].email:
            raise ValueError("the first author needs an email")
        for name in ("architecture_types", "training_sets"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"'{name}' names something twice")
        if self.lifecycle == "superseded" and not self.superseded_by:
            raise ValueError("a superseded model needs 'superseded_by'")
        return self


def write_submission(
    root: Path, family: str, predictions: Values, metadata: Mapping[str, Any], *, parameters: int
) -> tuple[Path, Path]:
    """Write predictions and YAML below ``root``.

    Parameters
    ----------
    root, family : Path, str
        ``root/models/family/`` gets the files; a family is lower-case with underscores.
    predictions : mapping of str to float
        Formation energy in eV/atom by material id.
    metadata : mapping
        The keys of `ModelCard` but ``model_params`` and ``metrics``.
    parameters : int
        Of the model.

    Returns
    -------
    csv, yaml : Path
    """
    import yaml

    if not FAMILY.fullmatch(family):
        raise ConfigError(f"'{family}' is no family", do="use lower-case letters, digits and single underscores")
    key = metadata.get("model_key", "model")
    name = f"models/{family}/{key}/{date.today().isoformat()}-discovery.csv.gz"
    tables = {**metadata, "model_params": parameters, "metrics": {"discovery": {"pred_file": {"name": name}}}}
    card = parse(ModelCard, tables, where="metadata")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([material, repr(value)] for material, value in predictions.items())
    write_gzip(root / name, table.getvalue())
    described = root / "models" / family / f"{key}.yml"
    shown = card.model_dump(mode="json")
    required = {field for field, info in ModelCard.model_fields.items() if info.is_required()} | NULLABLE
    kept = {field: value for field, value in shown.items() if value is not None or field in required}
    described.write_text(yaml.safe_dump(_without_nulls(kept), sort_keys=False, allow_unicode=True))
    return root / name, described


# the schema wants these keys; their value may be null
NULLABLE = {"repo", "doi", "paper", "pr_url", "checkpoint_url"}


def _without_nulls(card: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is not given of authors, licences and files: there the schema has no null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items() if part is not None}
        return [clean(part) for part in value] if isinstance(value, list) else value

    return {key: value if key == "dates" else clean(value) for key, value in card.items()}


def validate_submission(described: Path, ids: Sequence[str], targets: Values) -> float:
    """Read a submission back and return the mean absolute error of its formation energies, in eV/atom.

    Raises
    ------
    DataError, ConfigError
        Where the ids are not exactly those of the test set, or the YAML does not fit the schema.
    """
    import yaml

    try:
        card = parse(ModelCard, yaml.safe_load(described.read_text()), where=str(described))
        root = described.parents[2]
        path = root / card.metrics.discovery.pred_file.name
        rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
        predictions = {row[COLUMNS[0]]: float(row[COLUMNS[1]]) for row in rows}
    except (OSError, KeyError, TypeError, EOFError, yaml.YAMLError) as error:
        raise DataError("this is no submission", where=described, why=repr(error)) from None
    if card.model_key != described.stem:
        raise DataError(f"the file is called '{described.stem}', its model '{card.model_key}'", where=described)
    if len(predictions) < len(rows):
        raise DataError("an id stands in two rows", where=path)
    check_entries(predictions, ids, where=path)
    return mean_absolute_error(predictions, targets)
