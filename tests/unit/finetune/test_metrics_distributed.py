from __future__ import annotations

from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from finetune.metrics import evaluate
from finetune.prediction import Prediction
from tests.distributed.ranks import spawn

ROWS = 11


class Given(nn.Module):
    """Predicts what it is given."""

    def forward(self, features: Tensor) -> Tensor:
        return features

    def predict(self, raw: Tensor) -> Prediction:
        return Prediction(raw)


def rows() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (ROWS, 1), generator=draw).float()
    return 0.1 * targets + 0.8 * torch.rand(ROWS, 1, generator=draw), targets


def on_a_rank() -> tuple[dict[str, float], dict[str, float], int]:
    from accelerate import Accelerator

    from finetune.fit import predict

    accelerator = Accelerator(cpu=True)
    predictions, targets = rows()
    mine = range(accelerator.process_index, ROWS, accelerator.num_processes)
    # the last batch of the rank that has fewer rows is filled up, with rows that say that they are none
    padded = [*mine, *[mine[0]] * (6 - len(mine))]
    known = targets[padded]
    known[len(mine) :] = float("nan")
    head = Given()
    batches = [(predictions[padded][i : i + 4], known[i : i + 4]) for i in (0, 4)]
    gathered = predict(head, head, lambda epoch: batches, accelerator)  # type: ignore[arg-type]
    alone = evaluate("classification", predictions[list(mine)], targets[list(mine)])
    return evaluate("classification", *gathered), alone, len(gathered[0])


def test_two_ranks_measure_what_one_process_measures() -> None:
    results = spawn(on_a_rank, 2)
    whole = evaluate("classification", *rows())
    for gathered, _, count in results:
        assert count == ROWS
        assert gathered == pytest.approx(whole)
    # the wrong variant: the mean of what each rank measures of its own rows
    wrong = fmean(alone["auroc"] for _, alone, _ in results)
    assert abs(wrong - whole["auroc"]) > 0.01
