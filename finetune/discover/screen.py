"""Screening: every candidate is predicted and embedded once, in batches; the best by all goals are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from finetune.discover.goals import Goal, InRange, parse_goal, probability_in_range
from finetune.discover.pareto import fronts
from finetune.incoming import Named, incoming
from finetune.loading import Foundation, PropertyModel
from finetune.materials import Material, read_material, to_known_sample
from finetune.prediction import Prediction
from finetune.search.index import Index
from finetune.search.query import embed_query
from finetune.units import describe
from shards.errors import ConfigError, DataError, MatloomError, suggest
from shards.locate import locate
from shards.reader import Dataset
from shards.schema import ModalitySpec, Sample

LIKENESS = "similarity"


@dataclass(frozen=True)
class Discovery:
    """What a screening found.

    Attributes
    ----------
    rows : list of dict
        The best candidates, best first: ``id``, ``front`` (1 = nothing is better in everything), ``score`` (mean over
        the objectives of the share of candidates that it is not worse than), and by goal value, ``_unit``, ``_std``,
        ``_lower``, ``_upper``, ``_probability``; ``similarity``; ``nearest_known`` with ``nearest_known_similarity``.
    objectives : list of str
        What was ranked, in words.
    screened : int
        Candidates that were ranked.
    refused : dict of str to str
        Id to the reason why a candidate could not be.
    """

    rows: list[dict[str, Any]]
    objectives: list[str]
    screened: int
    refused: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return dict(vars(self))


@dataclass
class _Screened:
    """What is kept of the candidates."""

    ids: list[str]
    tags: list[dict[str, str]]
    predictions: list[Prediction]
    vectors: np.ndarray


def discover(
    candidates: Any,
    goals: Sequence[Goal | str] = (),
    *,
    predictors: Sequence[PropertyModel] = (),
    foundation: Foundation | None = None,
    like: Any = None,
    among: str = "crystal",
    known: Index | None = None,
    k: int = 20,
    batch_size: int = 64,
) -> Discovery:
    """Rank candidates by property goals, by likeness to a material, or by all of these: a Pareto front.

    Parameters
    ----------
    candidates : object
        Shards, a folder or file of structures, or materials; see `finetune.incoming.incoming`.
    goals : sequence of Goal or str
        See `parse_goal`; each is looked up among the targets of the predictors.
    predictors : sequence of PropertyModel
        Fine-tuned models; with a calibration, probabilities are those of its intervals.
    foundation : Foundation, optional
        Embeds candidates, for ``like`` and ``known``.
    like : object, optional
        A query of any kind, such as a target density of states: the objective is the cosine similarity to it.
    among : str
        Modality by which candidates are embedded.
    known : Index, optional
        Known materials, as those of the training; the nearest of each candidate is named. See `known_index`.
    k : int
        How many are shown.
    batch_size : int
        Candidates that are read and computed together; of all others ids, tags, predictions and vectors are kept.
    """
    wanted = [parse_goal(goal) if isinstance(goal, str) else goal for goal in goals]
    columns = [_column(goal, predictors) for goal in wanted]
    if not wanted and like is None:
        raise ConfigError("there is nothing to look for", do="give a goal, or a material to be like")
    if foundation is None and (like is not None or known is not None):
        raise ConfigError("likeness and novelty need a pretrained model", do="give foundation")
    query = embed_query(foundation, like) if foundation is not None and like is not None else None
    refused: dict[str, str] = {}
    used = [predictors[i] for i in dict.fromkeys(model for model, _ in columns)]
    # likeness and novelty are the only uses of the embedding
    space = foundation if query is not None or known is not None else None
    screened = _screen(candidates, used, space, among, batch_size, refused)
    named: list[tuple[str, np.ndarray]] = []
    table: list[dict[str, Any]] = [{} for _ in screened.ids]
    for goal, (model, target) in zip(wanted, columns, strict=True):
        found = screened.predictions[used.index(predictors[model])]
        named.append(_reach(goal, predictors[model], found, target, table))
    if query is not None:
        named.append((LIKENESS, (screened.vectors @ query).astype(np.float64)))
        for row, value in zip(table, named[-1][1].tolist(), strict=True):
            row[LIKENESS] = value
    rows = _best(screened, named, table, k)
    if known is not None:
        _name_nearest(rows, screened, known)
    return Discovery(rows, [name for name, _ in named], len(screened.ids), refused)


def known_index(foundation: Foundation, data: str, among: str = "crystal", part: str = "") -> Index:
    """Return the index of known materials: of a data set, or of a part of it, ``SPLIT:PART``."""
    dataset = Dataset(locate(data))
    if not part:
        return Index.build(foundation, dataset, among)
    split, colon, name = part.partition(":")
    if not colon:
        raise ConfigError(f"'{part}' is no part of a split", do="write SPLIT:PART, as in chemical_system:train")
    return Index.build(foundation, dataset, among, positions=dataset.positions(split, name))


def _column(goal: Goal, predictors: Sequence[PropertyModel]) -> tuple[int, int]:
    """Return which predictor, and which of its targets, a goal is about."""
    for number, model in enumerate(predictors):
        if goal.label in model.info.targets:
            return number, model.info.targets.index(goal.label)
    known = [target for model in predictors for target in model.info.targets]
    raise ConfigError(f"no predictor says anything of '{goal.label}'", why=suggest(goal.label, known))


def _screen(
    candidates: Any,
    predictors: Sequence[PropertyModel],
    foundation: Foundation | None,
    among: str,
    batch_size: int,
    refused: dict[str, str],
) -> _Screened:
    space: dict[str, ModalitySpec] = {}
    if foundation is not None:
        if among not in foundation.model.specs:
            raise ConfigError(f"the model has no modality '{among}'", why=suggest(among, foundation.modalities))
        space = {among: foundation.model.specs[among]}
    # one reading serves all models; what a model reads otherwise than the first is computed for it again
    wanted: list[Mapping[str, ModalitySpec]] = [*(model.specs for model in predictors), *([space] if space else [])]
    added = {name for model in predictors for name in model.info.delta}
    union = {name: spec for specs in reversed(wanted) for name, spec in specs.items()}
    materials = chain.from_iterable(incoming(candidates, union, batch_size).parts)
    ids: list[str] = []
    tags: list[dict[str, str]] = []
    blocks: list[list[Prediction]] = [[] for _ in predictors]
    vectors: list[np.ndarray] = []
    while batch := list(islice(materials, batch_size)):
        kept = list(_readable(batch, wanted, added, refused))
        if not kept:
            continue
        ids += [id for id, _, _ in kept]
        tags += [tag for _, tag, _ in kept]
        for number, model in enumerate(predictors):
            blocks[number].append(model.estimate([samples[number] for _, _, samples in kept], batch_size=batch_size))
        if foundation is not None:
            vectors.append(foundation.embed([samples[-1] for _, _, samples in kept], among, batch_size=batch_size))
    if not ids:
        raise DataError("no candidate can be screened", why=next(iter(refused.values()), "there is none"))
    joined = [Prediction.join(block) for block in blocks if block]
    return _Screened(ids, tags, joined, np.concatenate(vectors) if vectors else np.zeros((len(ids), 0)))


def _readable(
    batch: Sequence[Named], wanted: Sequence[Mapping[str, ModalitySpec]], added: set[str], refused: dict[str, str]
) -> Iterator[tuple[str, dict[str, str], list[Sample]]]:
    """Yield what can be read, as one sample for each model; what a material raises of its own puts it aside."""
    for id, read in batch:
        try:
            material = read_material(read(), wanted[0], id=id)
            samples = [to_known_sample(material, specs, id=id) for specs in wanted]
        except ConfigError:
            raise
        except MatloomError as error:
            refused[id] = str(error)
            continue
        lacking = next((specs for specs, s in zip(wanted, samples, strict=True) if not s.modalities & set(specs)), None)
        if lacking is not None:
            refused[id] = f"it has none of the modalities {sorted(lacking)}"
            continue
        if unknown := added - samples[0].labels.keys():
            refused[id] = f"its label '{min(unknown)}' is not known, to which a prediction is added"
            continue
        tags = material.record.tags if isinstance(material, Material) else material.tags
        yield id, dict(tags), samples


def _reach(
    goal: Goal, model: PropertyModel, prediction: Prediction, target: int, table: list[dict[str, Any]]
) -> tuple[str, np.ndarray]:
    """Return an objective in words and for each candidate (N,), and add what is predicted to the table."""
    label = goal.label
    unit = describe(label)[1] if model.info.task == "regression" else ""
    parts = {"_std": prediction.std, "_lower": prediction.lower, "_upper": prediction.upper}
    for number, row in enumerate(table):
        row[label] = float(prediction.value[number, target])
        row[f"{label}_unit"] = unit
        row.update({f"{label}{end}": _finite(p[number, target]) for end, p in parts.items() if p is not None})
    if not isinstance(goal, InRange):
        sign = 1.0 if goal.which == "max" else -1.0
        return f"{goal.which}imum of {label}", sign * prediction.value[:, target].double().numpy()
    calibration = getattr(model.info, "calibration", None) or {}
    probability, source = probability_in_range(
        prediction, target, goal, task=model.info.task, level=calibration.get("level")
    )
    for row, value in zip(table, probability.tolist(), strict=True):
        row[f"{label}_probability"] = value
        row[f"{label}_probability_from"] = source
    return f"probability of {goal.low:g} <= {label} <= {goal.high:g}, from the {source}", probability.numpy()


def _finite(value: Any) -> float | None:
    """Return a number, None for an end of an interval that is infinite."""
    number = float(value)
    return number if np.isfinite(number) else None


def _best(
    screened: _Screened, named: Sequence[tuple[str, np.ndarray]], table: Sequence[dict[str, Any]], k: int
) -> list[dict[str, Any]]:
    points = np.stack([column for _, column in named], axis=1)
    if not np.isfinite(points).all():
        row = int((~np.isfinite(points)).any(1).argmax())
        raise DataError("a prediction is not finite", where=screened.ids[row])
    front = fronts(points, limit=k)
    # the share of candidates that one is not worse than, so that goals of different units weigh the same
    shares = [np.searchsorted(np.sort(column), column, side="right") / len(column) for column in points.T]
    score = np.mean(shares, axis=0)
    reached = np.flatnonzero(front)
    order = reached[np.lexsort((reached, -score[reached], front[reached]))][:k]
    return [
        {"id": screened.ids[i], "front": int(front[i]), "score": float(score[i]), **_formula(screened.tags[i]),
         **table[i], "candidate": int(i)}
        for i in order.tolist()
    ]  # fmt: skip


def _formula(tags: Mapping[str, str]) -> dict[str, str]:
    return {"formula": tags["formula"]} if "formula" in tags else {}


def _name_nearest(rows: list[dict[str, Any]], screened: _Screened, known: Index) -> None:
    queries = screened.vectors[[row["candidate"] for row in rows]]
    for row, hits in zip(rows, known.nearest_of(queries, 1), strict=True):
        row["nearest_known"] = hits[0].id if hits else None
        row["nearest_known_similarity"] = hits[0].similarity if hits else None
