"""Cross-modal retrieval: how often the right partner is the nearest one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.feed import Feed
from pretrain.gather import gather_batch
from pretrain.model import MultimodalModel
from shards.stream import BatchStream

KS = (1, 5, 10)
Row = dict[str, str | int | float]


@torch.no_grad()
def embed_all(
    model: MultimodalModel, stream: BatchStream | Feed, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embed every sample of a stream that is not shuffled, each rank its part.

    Returns
    -------
    z : dict of str to Tensor
        (N, D) unit rows on the CPU, in the order of the stream; rows of absent modalities are zero.
    present : dict of str to Tensor
        (N,) bool.
    """
    training = model.training
    model.eval()
    parts, masks = [], []
    for local in stream.epoch(0):
        batch = local.to(device)
        everything = gather_batch(*model.encode(batch))
        parts.append({name: F.normalize(rows.float(), dim=1).cpu() for name, rows in everything.z.items()})
        masks.append({name: mask.cpu() for name, mask in everything.present.items()})
    model.train(training)
    names = list(parts[0])
    return (
        {name: torch.cat([part[name] for part in parts]) for name in names},
        {name: torch.cat([mask[name] for mask in masks]) for name in names},
    )


def ranks(query: Tensor, gallery: Tensor) -> Tensor:
    """Return the rank (1 = nearest) of each query's own partner by cosine similarity.

    A tie counts against the partner, so that collapsed embeddings score as the worst, not the best.

    Parameters
    ----------
    query, gallery : Tensor
        (N, D) unit rows; row i of the gallery is the partner of query i.

    Returns
    -------
    Tensor
        (N,) int64.
    """
    scores = query @ gallery.T
    own = scores.diagonal().unsqueeze(1)
    # not (scores >= own): a NaN must count against the partner too
    return (~(scores < own)).sum(dim=1)


def retrieval(
    z: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    *,
    complete_only: bool = True,
    ks: Sequence[int] = KS,
) -> list[Row]:
    """Measure retrieval for every ordered pair of modalities.

    Parameters
    ----------
    z : mapping of str to Tensor
        (N, D) unit rows.
    present : mapping of str to Tensor
        (N,) bool.
    complete_only : bool
        Use the samples that have all modalities; otherwise those that have both of a pair.
    ks : sequence of int
        For recall@k.

    Returns
    -------
    list of dict
        ``query``, ``target``, ``n`` (gallery), ``recall_at_k`` and ``chance_at_k``, ``mean_rank``, ``median_rank``,
        ``mrr``.
    """
    complete = torch.stack(list(present.values())).all(dim=0)
    rows: list[Row] = []
    for query, target in permutations(z, 2):
        mask = complete if complete_only else present[query] & present[target]
        n = int(mask.sum())
        if n < 2:
            continue
        rank = ranks(z[query][mask], z[target][mask]).double()
        row: Row = {"query": query, "target": target, "n": n}
        for k in ks:
            row[f"recall_at_{k}"] = float((rank <= k).double().mean())
            row[f"chance_at_{k}"] = min(1.0, k / n)
        row |= {"mean_rank": float(rank.mean()), "median_rank": float(rank.median()), "mrr": float((1 / rank).mean())}
        rows.append(row)
    return rows


def alignment(z: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean squared distance of partners, by pair ``a-b`` (Wang and Isola, ICML 2020); 0 is perfect, 2 unrelated.

    Parameters
    ----------
    z : mapping of str to Tensor
        (N, D) unit rows.
    present : mapping of str to Tensor
        (N,) bool.
    """
    found = {}
    for a, b in combinations(z, 2):
        both = present[a] & present[b]
        if both.any():
            found[f"{a}-{b}"] = float((z[a][both] - z[b][both]).square().sum(1).mean())
    return found


def uniformity(z: Mapping[str, Tensor], present: Mapping[str, Tensor], *, most: int = 4096) -> dict[str, float]:
    """Logarithm of the mean of exp(-2 d^2) over pairs of rows, by modality (Wang and Isola, ICML 2020).

    0 where all rows are one; the lower, the more evenly they cover the sphere.

    Parameters
    ----------
    z, present : mapping of str to Tensor
        As in `alignment`.
    most : int
        Rows that are looked at: pairs grow with their square.
    """
    found = {}
    for name, rows in z.items():
        there = rows[present[name]][:most]
        if len(there) > 1:
            found[name] = float(torch.pdist(there).square().mul(-2).exp().mean().log())
    return found


def validation_values(z: Mapping[str, Tensor], present: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, float]:
    """Return what a validation logs: the recalls of `retrieval`'s rows, alignment and uniformity."""
    values = {
        f"val/{row['query']}-{row['target']}/recall_at_{k}": float(row[f"recall_at_{k}"]) for row in rows for k in KS
    }
    values |= {f"val/alignment/{pair}": value for pair, value in alignment(z, present).items()}
    return values | {f"val/uniformity/{name}": value for name, value in uniformity(z, present).items()}


def mean_reciprocal_rank(rows: Sequence[Row]) -> float:
    """Return the mean over pairs of the mean reciprocal rank: the figure by which checkpoints are compared."""
    return fmean(float(row["mrr"]) for row in rows) if rows else 0.0
