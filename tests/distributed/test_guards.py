"""Numbers that are not finite on one rank of two: all ranks decide alike, and bad weights are never saved."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shards.sealed import verify
from tests.distributed.ranks import variables
from tests.distributed.runs import Workshop

WORLD, SAVE, STEPS = 2, 5, 12
POISONED = 1


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator[Workshop]:
    shop = Workshop.make(tmp_path_factory.mktemp("guards"), toy_folder, epochs=4, evaluate=2, save=SAVE)
    with variables(shop.environment()):
        yield shop


def poisoned_rows(bad: range) -> None:
    """Patch this rank: on the second one, a row of the anchor is NaN in the steps ``bad`` (from 0)."""
    from pretrain.feed import Feed

    batches = Feed.batches

    def patched(self: Feed, step: int, stop: int) -> Iterator[tuple[object, float]]:
        for at, (batch, waited) in enumerate(batches(self, step, stop), start=step):
            if at in bad and self.stream.rank == POISONED and batch is not None:
                batch.inputs["a"]["values"][2] = math.nan
                with Path("poisoned").open("a") as file:
                    file.write(f"{batch.ids[2]}\n")
            yield batch, waited

    Feed.batches = patched  # type: ignore[method-assign, assignment]


def poisoned_gradient(bad: range) -> None:
    """Patch this rank: on the second one, a gradient is NaN in the steps ``bad``, while the loss is finite."""
    from pretrain.engine import Engine

    compute = Engine.compute

    def patched(self: Engine, batch: object, step: int, flags: object = None) -> dict[str, float]:
        if step not in bad or self.rank != POISONED:
            return compute(self, batch, step, flags)  # type: ignore[arg-type]
        weight = next(self.module.encoders["dos"].parameters())
        handle = weight.register_hook(lambda gradient: gradient * math.nan)
        try:
            return compute(self, batch, step, flags)  # type: ignore[arg-type]
        finally:
            handle.remove()

    Engine.compute = patched  # type: ignore[method-assign, assignment]


def with_weights(patch: functools.partial[None]) -> None:
    """Patch this rank as told, and let the second one write down its weights' checksum after every step."""
    from pretrain.train import Trainer

    patch()
    advance = Trainer._advance

    def patched(self: Trainer, *args: object) -> bool:
        done = advance(self, *args)  # type: ignore[arg-type]
        total = sum(weight.double().abs().sum().item() for weight in self.model.parameters())
        with (self.out / f"weights-{self.rank}").open("a") as file:
            file.write(json.dumps([self.step, total]) + "\n")
        return done

    Trainer._advance = patched  # type: ignore[method-assign]


def weights(shop: Workshop, out: str) -> list[list[float]]:
    found = [
        [json.loads(line) for line in (shop.folder / out / f"weights-{r}").read_text().splitlines()] for r in (0, 1)
    ]
    assert found[0] == found[1], "the ranks' weights differ"
    return found[0]


@pytest.mark.parametrize("poison", [poisoned_rows, poisoned_gradient])
def test_a_bad_step_is_thrown_away_by_all_ranks(shop: Workshop, poison: object) -> None:
    out = f"skip-{poison.__name__}"  # type: ignore[attr-defined]
    bad = range(6, 7)
    patch = functools.partial(with_weights, functools.partial(poison, bad))  # type: ignore[arg-type]
    ((code, told),) = shop.run(shop.arguments(out), world=WORLD, patch=patch)
    assert code == 0, told
    totals = dict(weights(shop, out))
    assert totals[7] == totals[6] and len(set(totals.values())) == STEPS - 1
    assert all(math.isfinite(total) for total in totals.values())
    lines = {line["step"]: line for line in shop.metrics(out) if "lr" in line}
    assert list(lines) == list(range(1, STEPS + 1))
    if poison is poisoned_rows:
        assert "loss" not in lines[7] and "step 7: the loss is not finite (skip)" in told
        sample = (shop.folder / "poisoned").read_text().split()[-1]
        assert f"rank 1: the embedding 'a' is not finite for {sample}" in told
        assert "rank 0: the embedding" not in told
    else:
        assert "step 7: the gradient is not finite (skip)" in told
        assert "every embedding is finite" in told


@pytest.fixture(scope="module")
def rolled(shop: Workshop) -> str:
    """A run that returns to its first checkpoint once, because of steps 7 and 8."""
    patch = functools.partial(with_weights, functools.partial(poisoned_rows, range(6, 8)))
    ((code, told),) = shop.run(shop.arguments("rolled", "--set", "guards.patience=2"), world=WORLD, patch=patch)
    assert code == 0, told
    assert "step 8: the loss is not finite (roll back)" in told and "returned to" in told
    return told


@pytest.mark.usefixtures("rolled")
def test_a_run_returns_to_its_checkpoint_and_passes_over_bad_batches(shop: Workshop) -> None:
    totals = weights(shop, "rolled")
    assert [step for step, _ in totals] == [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 11, 12]
    before, after = totals[:7], totals[7:]
    assert after[0][1] == before[4][1] and after[1][1] == before[5][1]
    # 7 and 8 change nothing any more
    assert after[1][1] == after[2][1] == after[3][1] != after[4][1]
    steps = [line["step"] for line in shop.metrics("rolled") if "lr" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 9, 10, 11, 12]
    assert shop.checkpoints("rolled") == [10, 12]


@pytest.mark.usefixtures("rolled")
def test_a_run_that_returned_resumes_bit_for_bit(shop: Workshop) -> None:
    folder = shop.copy("rolled", "rolled-resumed")
    shutil.rmtree(folder / "step-00000012")
    ((code, told),) = shop.run(shop.arguments("rolled-resumed", "--resume"), world=WORLD)
    assert code == 0, told
    assert shop.same("rolled-resumed", "rolled")
    state = json.loads((folder / "step-00000012" / "state.json").read_text())["guards"]
    assert (state["passed_over"], state["rollbacks"], state["skipped"]) == ([6, 7], 1, 2)


def test_a_run_that_does_not_recover_stops_and_its_newest_checkpoint_is_good(shop: Workshop) -> None:
    options = ["--set", "guards.patience=2", "--set", "guards.rollbacks=1"]
    patch = functools.partial(poisoned_rows, range(6, 100))
    ((code, told),) = shop.run(shop.arguments("lost", *options), world=WORLD, patch=patch)
    assert code == 6, told
    # steps 7 and 8, then from step 6 on past them 9 and 10
    assert "the loss is not finite, in 2 steps in a row (9 to 10)" in told
    assert "rank 1: the embedding 'a' is not finite for" in told
    assert shop.checkpoints("lost") == [SAVE]
    folder = shop.folder / "lost" / "checkpoints" / f"step-{SAVE:08d}"
    verify(folder)
    states = [torch.load(path, weights_only=False) for path in folder.rglob("mp_rank_00_model_states.pt")]
    assert states and all(torch.isfinite(value).all() for state in states for value in state["module"].values())


def test_a_checkpoint_due_in_a_bad_step_waits_for_a_good_one(shop: Workshop) -> None:
    patch = functools.partial(poisoned_rows, range(2 * SAVE - 1, 2 * SAVE))
    ((code, told),) = shop.run(shop.arguments("late"), world=WORLD, patch=patch)
    assert code == 0, told
    assert f"step {2 * SAVE}: no checkpoint before the weights are known to be good" in told
    assert shop.checkpoints("late") == [2 * SAVE + 1, STEPS]


def test_without_a_checkpoint_to_return_to_a_run_stops(shop: Workshop) -> None:
    patch = functools.partial(poisoned_rows, range(2, 100))
    ((code, told),) = shop.run(shop.arguments("early", "--set", "guards.patience=2"), world=WORLD, patch=patch)
    assert code == 6, told
    assert "before there was a checkpoint to return to" in told
    assert not shop.checkpoints("early") and os.listdir(shop.folder / "early")
