"""Cross-modal retrieval among held-out materials, every ordered pair of modalities (MultiMat, arXiv:2312.00111)."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from matplotlib.axes import Axes
from pydantic import Field

from finetune.evaluations.base import EVALUATIONS, Evaluation, Findings, Subject
from finetune.evaluations.embedding import embed_part
from finetune.loading import Foundation
from pretrain.evaluate import KS, Row, mean_reciprocal_rank, retrieval
from shards.errors import DataError
from shards.reader import Dataset

MULTIMAT_KS = (1, 5, 10, 25)


@EVALUATIONS.register("retrieval")
class Retrieval(Evaluation):
    """How often the right partner is among the nearest of all held-out materials.

    Attributes
    ----------
    ks : tuple of int
        For recall@k.
    complete_only : bool
        Look at the samples that have all modalities, so that every pair is measured on the same ones; otherwise at
        those that have both of a pair.
    """

    wants: ClassVar[type] = Foundation

    kind: Literal["retrieval"] = "retrieval"
    ks: tuple[int, ...] = Field(MULTIMAT_KS, min_length=1)
    complete_only: bool = True

    def __call__(self, subject: Subject) -> Findings:
        """Measure every ordered pair."""
        assert isinstance(subject.model, Foundation)
        rows = retrieval_table(
            subject.model,
            subject.dataset,
            split=subject.split,
            part=subject.part,
            complete_only=self.complete_only,
            ks=self.ks,
        )
        values = {
            f"{row['query']}-{row['target']}/recall_at_{k}": float(row[f"recall_at_{k}"])
            for row in rows
            for k in self.ks
        }
        return Findings(
            title=f"Cross-modal retrieval on part '{subject.part}' of split '{subject.split}'",
            text="Candidates are all samples of the part, by cosine; a tie counts against the partner. chance_at_k is "
            "the recall of a random order among the n candidates, whose mean rank is (n + 1) / 2.",
            values={"mrr": mean_reciprocal_rank(rows), **values},
            tables={"retrieval": list(rows)},
            plots={"retrieval": lambda axes: recall_matrix(axes, rows, self.ks[0])},
        )


def retrieval_table(
    foundation: Foundation,
    dataset: Dataset,
    *,
    split: str = "chemical_system",
    part: str = "test",
    complete_only: bool = True,
    ks: tuple[int, ...] = KS,
) -> list[Row]:
    """Measure retrieval for every ordered pair of the model's modalities; see `pretrain.evaluate.retrieval`.

    Raises
    ------
    DataError
        Where the part has fewer than two samples to retrieve among.
    """
    embedded = embed_part(foundation, dataset, split, part)
    rows = retrieval(embedded.z, embedded.present, complete_only=complete_only, ks=ks)
    if not rows:
        raise DataError(f"part '{part}' of split '{split}' has fewer than 2 complete samples", where=dataset.location)
    return rows


def recall_matrix(axes: Axes, rows: list[Row], k: int) -> None:
    """Draw recall@k of every ordered pair as a matrix."""
    names = list(dict.fromkeys(str(row["query"]) for row in rows))
    matrix = np.full((len(names), len(names)), np.nan)
    for row in rows:
        matrix[names.index(str(row["query"])), names.index(str(row["target"]))] = row[f"recall_at_{k}"]
    axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    for i, j in np.argwhere(~np.isnan(matrix)):
        axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color="w" if matrix[i, j] < 0.6 else "k")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="target", ylabel="query")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_title(f"recall@{k}, chance {float(rows[0][f'chance_at_{k}']):.3f}")
