"""Metrics of generated text: procedures (Vaucher et al., Nat. Commun. 12 (2021) 2573), SMILES; by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SHARES = (100, 90, 75)


def sequence(predicted: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Measure N texts against N texts.

    Returns
    -------
    dict of str to float
        ``exact``: share of equal texts; ``levenshtein``: the mean of `levenshtein_similarity`;
        ``similar_100``, ``similar_90``, ``similar_75``: share of the texts that are at least so similar, in per cent;
        ``bleu``: of the words of the whole corpus, up to four in a row, without smoothing.
    """
    from torchmetrics.functional.text import bleu_score

    if not truth:
        return dict.fromkeys(("exact", "levenshtein", *(f"similar_{share}" for share in SHARES), "bleu"), math.nan)
    similarity = levenshtein_similarity(predicted, truth)
    return {
        "exact": float(np.mean([a == b for a, b in zip(predicted, truth, strict=True)])),
        "levenshtein": float(similarity.mean()),
        **{f"similar_{share}": float((similarity >= share / 100).mean()) for share in SHARES},
        "bleu": float(bleu_score(list(predicted), [[text] for text in truth])),
    }


def levenshtein_similarity(predicted: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """Return 1 - distance / length of the longer text (N,), of CHARACTERS: of words it is much lower."""
    from torchmetrics.functional.text import edit_distance

    distance = edit_distance(list(predicted), list(truth), reduction="none").numpy().astype(float)
    longest = [max(len(a), len(b), 1) for a, b in zip(predicted, truth, strict=True)]
    return 1 - distance / np.array(longest)
