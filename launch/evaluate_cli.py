"""`matloom evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.options import DATA, Data, Json, Uri, show


def evaluate(
    uri: Uri,
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "chemical_system",
    part: Annotated[str, typer.Option(help="Part of the split.")] = "test",
    as_json: Json = False,
) -> None:
    """Measure cross-modal retrieval on held-out materials, for every ordered pair of modalities."""
    from finetune.evaluate import retrieval_table
    from finetune.loading import load_foundation
    from shards.locate import locate
    from shards.reader import Dataset

    rows = retrieval_table(load_foundation(uri), Dataset(locate(data)), split=split, part=part)
    show(
        rows,
        as_json,
        lambda r: (
            f"{r['query']:>15} -> {r['target']:15} n {r['n']:4}  recall@1 {r['recall_at_1']:.2f} "
            f"(chance {r['chance_at_1']:.3f})  @5 {r['recall_at_5']:.2f}  @10 {r['recall_at_10']:.2f}  "
            f"median rank {r['median_rank']:.0f}"
        ),
    )
