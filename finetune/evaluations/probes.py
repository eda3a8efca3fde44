"""What a frozen embedding knows: linear probe and k nearest neighbours, fitted on train, chosen on val, tested once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.embedding import vectors_of
from finetune.evaluations.properties import DERIVED, known_of
from finetune.loading import Foundation
from pretrain.plots import Row
from shards.errors import DataError

Labelled = tuple[np.ndarray, list[str]]


@EVALUATIONS.register("probes")
class Probes(Evaluation):
    """Linear probe and k-NN of classes on frozen vectors (a testable form of MultiMat's interpretability).

    Attributes
    ----------
    properties : tuple of str
        ``crystal_system``, ``metal``, or tags of the data set.
    embedding : str
        A modality or fusion of the model; empty: the first.
    strengths : tuple of float
        Inverse regularisation strengths of the logistic regression that are tried.
    neighbours : tuple of int
        Numbers of neighbours (cosine) that are tried.
    """

    wants: ClassVar[type] = Foundation

    kind: Literal["probes"] = "probes"
    properties: tuple[str, ...] = Field(DERIVED, min_length=1)
    embedding: str = ""
    strengths: tuple[float, ...] = Field((0.01, 0.1, 1.0, 10.0, 100.0), min_length=1)
    neighbours: tuple[int, ...] = Field((1, 3, 5, 10, 20), min_length=1)

    def __call__(self, subject: Subject) -> Findings:
        """Fit, choose and test every probe of every property that the data set knows."""
        parts = {part: vectors_of(subject, part, self.embedding) for part in ("train", "val", subject.part)}
        rows: list[Row] = []
        for name in self.properties:
            labelled = {part: _labelled(vectors, samples, name) for part, (vectors, samples, _) in parts.items()}
            if min(len(classes) for _, classes in labelled.values()) < 2 or len(set(labelled["train"][1])) < 2:
                continue
            rows += self._rows(name, labelled, subject)
        if not rows:
            raise DataError(
                f"none of {list(self.properties)} is known of two samples of every part, of two classes",
                where=subject.dataset.location,
                do="--set probes.properties='[\"A_TAG\"]'",
            )
        embedding = parts["train"][2]
        return Findings(
            title=f"Probes of the frozen embedding '{embedding}' on part '{subject.part}' of split '{subject.split}'",
            text="Fitted on train; the regularisation or number of neighbours is that of the best balanced accuracy on "
            "val. Balanced accuracy is the mean recall over the classes of the part, so that the most frequent class "
            "of train alone scores 1 / classes.",
            values={f"{row['property']}/{row['probe']}": row["balanced_accuracy"] for row in rows},
            tables={"probes": rows},
            plots={"probes": lambda axes: _bars(axes, rows)},
        )

    def _rows(self, name: str, labelled: dict[str, Labelled], subject: Subject) -> list[Row]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        (train, known), (test, truth) = labelled["train"], labelled[subject.part]
        linear = {
            c: make_pipeline(
                StandardScaler(), LogisticRegression(C=c, max_iter=5000, class_weight="balanced", random_state=0)
            )
            for c in self.strengths
        }
        nearest = {
            k: KNeighborsClassifier(k, metric="cosine", algorithm="brute") for k in self.neighbours if k <= len(train)
        }
        (frequent, _), *_ = Counter(known).most_common()
        shared = {"property": name, "classes": len(set(truth)), "n_train": len(train), "n": len(test)}
        rows: list[Row] = []
        for probe, models in (("linear", linear), ("knn", nearest)):
            chosen, model = _choose(models, labelled["train"], labelled["val"])
            predicted = model.predict(test)
            rows.append(
                {
                    **shared, "probe": probe, "chosen": chosen,
                    "balanced_accuracy": balanced_accuracy(truth, predicted),
                    "accuracy": float(accuracy_score(truth, predicted)),
                    "majority_balanced_accuracy": 1.0 / len(set(truth)) if frequent in truth else 0.0,
                    "majority_accuracy": truth.count(frequent) / len(truth),
                }
            )  # fmt: skip
        return rows


def _labelled(vectors: np.ndarray, samples: Sequence[Any], name: str) -> Labelled:
    known, classes = known_of(samples, name)
    return vectors[known], classes


def _choose(models: dict[Any, Any], train: Labelled, val: Labelled) -> tuple[Any, Any]:
    """Fit every candidate on train and return the one that is best on val; the first of equals."""
    fitted = {key: model.fit(*train) for key, model in models.items()}
    scores = {key: balanced_accuracy(val[1], model.predict(val[0])) for key, model in fitted.items()}
    best = max(scores, key=lambda key: scores[key])
    return best, fitted[best]


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean recall over the classes that ``truth`` has; others may be predicted, and are wrong."""
    from sklearn.metrics import recall_score

    return float(recall_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0))


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    names = [f"{row['property']}\n{row['probe']}" for row in rows]
    axes.bar(names, [row["balanced_accuracy"] for row in rows], color="tab:blue")
    axes.plot(names, [row["majority_balanced_accuracy"] for row in rows], "k_", ms=30, label="most frequent class")
    axes.set(ylabel="balanced accuracy", ylim=(0, 1))
    axes.legend()
