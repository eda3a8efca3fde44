"""Running evaluations of one model: those that are named, or all that fit it, into one report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.seen import check_unseen
from finetune.evaluations.writer import write_findings
from pretrain.tracking import Tracker
from shards.errors import ConfigError, MatloomError, suggest
from shards.recipes import apply_overrides

REPORT = "report"


def chosen_evaluations(subject: Subject, only: Sequence[str], overrides: Iterable[str]) -> list[Evaluation]:
    """Return the evaluations that are named, or all that fit the model, with their options.

    Parameters
    ----------
    subject : Subject
        Whose model must be what an evaluation wants.
    only : sequence of str
        Kinds; empty: all that fit.
    overrides : iterable of str
        ``KIND.OPTION=VALUE``.

    Raises
    ------
    ConfigError
        Where there is no such kind or option, or a named evaluation does not fit the model.
    """
    tables = apply_overrides({}, overrides)
    for kind in [*only, *tables]:
        if kind not in EVALUATIONS.kinds():
            raise ConfigError(f"there is no evaluation '{kind}'", why=suggest(kind, EVALUATIONS.kinds()))
        if not isinstance(tables.get(kind, {}), dict):
            raise ConfigError(f"'{kind}' is an evaluation, not an option", do=f"--set {kind}.OPTION=VALUE")
    fitting = {kind for kind in EVALUATIONS.kinds() if isinstance(subject.model, EVALUATIONS.get(kind).wants)}
    for kind in [*only, *tables]:
        if kind not in fitting:
            wanted = EVALUATIONS.get(kind).wants.__name__
            raise ConfigError(
                f"'{kind}' evaluates a {wanted}, this is a {type(subject.model).__name__}",
                why=f"what fits: {', '.join(sorted(fitting))}",
            )
    kinds = list(dict.fromkeys(only)) or sorted(fitting)
    return [EVALUATIONS.options({"kind": kind, **tables.get(kind, {})}) for kind in kinds]


def run_evaluations(
    subject: Subject,
    evaluations: Sequence[Evaluation],
    out: Path,
    *,
    must: bool,
    tracker: Tracker | None = None,
    uri: str = "",
    report: Callable[[str], None] = print,
) -> dict[str, Findings]:
    """Evaluate, write ``report/report.html`` with tables and plots in ``report/KIND/``, and log figures and files.

    Parameters
    ----------
    subject, evaluations : Subject, sequence of Evaluation
        What is evaluated, and how.
    out : Path
        Folder of everything.
    must : bool
        False: an evaluation that the data set does not allow (no label, no such tag) is reported and left out.
    tracker : Tracker, optional
        An open run.
    uri : str
        The registered model that the tracked figures are of.
    report : callable
        Gets a line for each evaluation that is left out.

    Returns
    -------
    dict of str to Findings
        By kind.
    """
    check_unseen(subject)
    found: dict[str, Findings] = {}
    for evaluation in evaluations:
        try:
            findings = evaluation(subject)
        except MatloomError as error:
            if must:
                raise
            report(f"{evaluation.kind}: left out, {error.what}")
            continue
        found[evaluation.kind] = findings
        if tracker is not None:
            values = {mlflow_name(f"{evaluation.kind}/{name}"): value for name, value in findings.values.items()}
            tracker.metrics(values, 0, model=uri)
    if not found:
        raise ConfigError("the data set allows none of the evaluations", where=subject.dataset.location)
    title = f"Evaluation on part '{subject.part}' of split '{subject.split}' of '{subject.dataset.name}'"
    write_findings(out / REPORT, found, title=title)
    if tracker is not None:
        tracker.files(out / REPORT, REPORT)
    return found


def mlflow_name(name: str) -> str:
    """Return a name without what MLflow refuses in those of metrics."""
    return re.sub(r"[^\w./ -]", "_", name)


def parameters_of(uri: str, subject: Subject, evaluations: Sequence[Evaluation]) -> Mapping[str, Any]:
    """Return what a tracked run says of itself: the model that it is about, the data, and every option."""
    return {
        "model": uri,
        "data": subject.dataset.name,
        "data_sha256": subject.dataset.sha256,
        "split": subject.split,
        "part": subject.part,
        "seed": subject.seed,
        **{evaluation.kind: evaluation.model_dump(exclude={"kind"}) for evaluation in evaluations},
    }
