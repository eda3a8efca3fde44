"""Findings as files: a page to read, and every table and plot for other programs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluations.base import Findings
from finetune.evaluations.page import render, section
from pretrain.plots import plot, write_csv

PAGE = "report.html"
VALUES = "findings.json"


def write_findings(folder: Path, findings: Findings | Mapping[str, Findings], *, title: str = "Evaluation") -> Path:
    """Write ``report.html``, ``findings.json``, a CSV and a JSON for each table and a PNG for each plot.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    findings : Findings, or mapping of str to Findings
        Of one evaluation, or of several by name: then tables and plots of each stand in a folder of that name.
    title : str
        Of the page of several.

    Returns
    -------
    Path
        The page, which shows everything and needs none of the other files.
    """
    alone = isinstance(findings, Findings)
    several = {"": findings} if isinstance(findings, Findings) else findings
    folder.mkdir(parents=True, exist_ok=True)
    inner = dict.fromkeys(several, "") if alone else _files(several, "")
    sections = [_write(folder / inner[name], found) for name, found in several.items()]
    values = {name: _values(found) for name, found in several.items()}
    _write_json(folder / VALUES, values[""] if alone else values)
    page = folder / PAGE
    page.write_text(render(findings.title if isinstance(findings, Findings) else title, sections), encoding="utf-8")
    return page


def _write(folder: Path, findings: Findings) -> dict[str, Any]:
    """Write tables and plots of one evaluation; return its section of the page."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    tables = _files(findings.tables, ".csv")
    for name, file in tables.items():
        write_csv(folder / file, findings.tables[name])
        _write_json((folder / file).with_suffix(".json"), findings.tables[name])
    images = {}
    for name, file in _files(findings.plots, ".png").items():
        # names from the data may hold a dollar sign, which is no formula
        with matplotlib.rc_context({"text.parse_math": False}):
            plot(folder / file, findings.plots[name])
        images[name] = (folder / file).read_bytes()
    return section(findings, tables, images)


def _files(names: Mapping[str, Any], suffix: str) -> dict[str, str]:
    """Return a file name for each name: none leaves the folder, no two are the same whatever the file system."""
    files: dict[str, str] = {}
    # with .json, a table may be called as the summary is
    taken = {Path(VALUES).stem}
    for name in names:
        stem = base = re.sub(r"[^\w.-]+", "-", name).strip(".-")[:100] or "unnamed"
        count = 1
        while stem.lower() in taken:
            count += 1
            stem = f"{base}-{count}"
        taken.add(stem.lower())
        files[name] = stem + suffix
    return files


def _values(findings: Findings) -> dict[str, Any]:
    return {"title": findings.title, "text": findings.text, "values": findings.values, "tables": findings.tables}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(_plain(value), indent=1, allow_nan=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return a value of which every reader of JSON understands all: NaN and infinities are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
