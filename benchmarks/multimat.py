"""MultiMat's step: matloom's two recipes beside the original formulation; time, memory, and what is learned.

    OMP_NUM_THREADS=1 python benchmarks/multimat.py [--rows 16 32] [--rounds 5]
    OMP_NUM_THREADS=1 python benchmarks/multimat.py --quality quality.jsonl [--seeds 0 1 2] [--epochs 8]

A step is forward, loss, backward and AdamW on batches that are ready: reading and collation are left out. Data are
MultiMat's example materials (densities of states, charge densities, text vectors), 31 % and 12 % of whose rows lack
the first two; they come without usable crystals, so SNUMAT's distance graphs stand in for those. The original encodes
rows of zeros where something is missing, matloom the rows that exist. All sides take the same batches in turn, one
thread. Memory is the growth of each one's largest resident set over a step, in a process of its own. Before anything is
timed, the original's weights are copied into the faithful recipe's encoders and the results compared.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from multimat_data import MODALITIES, SPECS, as_published, batches, complete, samples, tables
from original_multimat import OriginalMultiMat, all_pairs
from original_multimat import ResNeXt3D as OriginalResNeXt3D
from torch import Tensor, nn

from pretrain.accumulate import contrast
from pretrain.config import Recipe, parse_recipe
from pretrain.encoders.resnext3d import norm
from pretrain.model import MultimodalModel
from pretrain.objectives.base import GlobalBatch
from pretrain.optimizer import autocast_type, parameter_groups
from pretrain.parts import fit_encoders
from pretrain.prepare import prepare
from shards.batch import Batch

RECIPES = {"faithful": "multimat", "recommended": "multimat-fast"}
SIDES = ("original, fp32", "original, bf16", *(f"{name}, {kind}" for name in RECIPES for kind in ("fp32", "bf16")))
CPU = torch.device("cpu")
Parts = dict[str, Callable[[], object]]


def recipe(name: str, precision: str) -> Recipe:
    """Return one of the recipes in a precision."""
    found = tables(name)
    found["optim"]["precision"] = precision
    return parse_recipe(found, where=name)


def build(chosen: Recipe) -> MultimodalModel:
    """Return the model of a recipe, fitted to all samples and ready for training."""
    torch.manual_seed(0)
    fitted = fit_encoders(chosen, SPECS, lambda name: filter(None, (sample.value(name) for sample in samples())))
    model = MultimodalModel(chosen, SPECS, fitted, autocast_type(chosen.optim, CPU))
    prepare(model, chosen)
    return model.train()


class Ours:
    """A recipe's model with its objective and optimizer."""

    def __init__(self, chosen: Recipe) -> None:
        self.model, self.clip = build(chosen), chosen.optim.grad_clip
        groups = parameter_groups(self.model, chosen.optim.weight_decay, self.model.lr_scales)
        self.optimizer = torch.optim.AdamW(groups, lr=chosen.optim.lr, betas=chosen.optim.betas)

    def prepared(self, batch: Batch) -> Batch:
        """Return what a step takes."""
        return batch

    def step(self, batch: Batch) -> None:
        """Run forward, backward and the optimizer."""
        self.optimizer.zero_grad()
        contrast(self.model, self.model.objective, Tensor.backward, batch)
        self.update()

    def update(self) -> None:
        """Run the optimizer, with clipping where the recipe has it."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def parts(self, batch: Batch) -> Parts:
        """Return each encoder, the loss, and the optimizer, to be run alone, forward and backward."""
        z, present = self.model(batch)
        leaves = {name: rows.detach().requires_grad_() for name, rows in z.items()}
        everything = GlobalBatch(z=leaves, present=present, local=slice(0, len(batch.ids)))
        found: Parts = {
            name: lambda name=name: self.model.embed(name, batch.inputs[name]).sum().backward() for name in MODALITIES
        }
        return {**found, "loss": lambda: self.model.objective(everything)[0].backward(), "AdamW": self.update}


class Original:
    """The original formulation, in float32 or under autocast to bfloat16."""

    def __init__(self, scaler: MultimodalModel, *, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.model, self.scaler, self.bf16 = OriginalMultiMat(), scaler, bf16
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def prepared(self, batch: Batch) -> tuple[dict, dict[str, Tensor]]:
        """Return the inputs of all rows, and which exist."""
        return as_published(batch, self.scaler), batch.present

    def autocast(self) -> torch.autocast:
        """Return the precision to run in."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def step(self, batch: tuple[dict, dict[str, Tensor]]) -> None:
        """Run forward, backward and the optimizer."""
        self.optimizer.zero_grad()
        with self.autocast():
            z = self.model(batch[0])
        all_pairs(z, batch[1]).backward()
        self.optimizer.step()

    def parts(self, batch: tuple[dict, dict[str, Tensor]]) -> Parts:
        """Return each encoder, the loss, and the optimizer, to be run alone, forward and backward."""
        inputs, present = batch

        def encoded(name: str) -> None:
            with self.autocast():
                z = self.model.encoders[name](inputs[name])
            z.sum().backward()

        leaves = {name: z.detach().requires_grad_() for name, z in self.model(inputs).items()}
        found: Parts = {name: lambda name=name: encoded(name) for name in MODALITIES}
        return {**found, "loss": lambda: all_pairs(leaves, present).backward(), "AdamW": self.optimizer.step}


def side(name: str) -> Ours | Original:
    """Return one of `SIDES`."""
    kind, precision = name.split(", ")
    if kind == "original":
        return Original(build(recipe("multimat", "fp32")), bf16=precision == "bf16")
    return Ours(recipe(RECIPES[kind], precision))


def copied(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters in the order in which they stand."""
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            mine.copy_(theirs)


def group_normed(network: OriginalResNeXt3D) -> OriginalResNeXt3D:
    """Return a copy of the original's convolutional network with the recipe's norms in place of batch norms."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, norm(child.num_features))
    return network


def check() -> None:
    """Print how far the faithful recipe's results are from the original's with the same weights, on complete rows."""
    model, original = build(recipe("multimat", "fp32")), OriginalMultiMat()
    batch = batches(complete(samples()), 4, 1)[0]
    inputs = as_published(batch, model)
    for name in ("dos", "text"):
        copied(original.encoders[name], model.encoders[name])
    grids = group_normed(original.encoders["charge_density"])
    copied(grids, model.encoders["charge_density"])

    def distance(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs().max() / b.abs().max()).detach())

    z = {name: model.encoders[name](batch.inputs[name]).vector for name in ("dos", "text")}
    same = {name: original.encoders[name](inputs[name]) for name in z}
    print("with the original's weights, complete rows, largest difference relative to the largest value:")
    print(f"- dos encoder {distance(z['dos'], same['dos']):.1e}, text encoder {distance(z['text'], same['text']):.1e}")
    density = model.encoders["charge_density"](batch.inputs["charge_density"]).vector, grids(inputs["charge_density"])
    print(f"- charge density encoder, group norms in place of the original's batch norms: {distance(*density):.1e}")
    both = {name: batch.present[name] for name in z}
    pairs = type(model.objective)(model.objective.config, tuple(z))
    loss, expected = pairs(GlobalBatch(z=z, present=both, local=slice(0, 4)))[0], all_pairs(same, both)
    loss.backward()
    expected.backward()
    ours, theirs = model.encoders["dos"], original.encoders["dos"]
    gradients = [torch.cat([p.grad.flatten() for p in encoder.parameters()]) for encoder in (ours, theirs)]
    print(f"- loss dos-text {abs(loss.item() - expected.item()):.1e} of {expected.item():.4f}, ", end="")
    print(f"its gradient in the dos encoder {distance(*gradients):.1e}\n", flush=True)


def clocked(run: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU and the wall time of a call, in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(names: Sequence[str], rows: int, rounds: int, *, whole: bool) -> None:
    """Time steps in turn and print a table; ``whole``: on samples that have all modalities."""
    sides = {name: side(name) for name in names}
    ready = batches(complete(samples()) if whole else samples(), rows, rounds + 1)
    lacking = {name: sum(int((~batch.present[name]).sum()) for batch in ready[1:]) for name in MODALITIES}
    cpu, wall = defaultdict(list), defaultdict(list)
    for number, batch in enumerate(ready):
        for name, one in sides.items():
            mine = one.prepared(batch)
            seconds = clocked(lambda one=one, mine=mine: one.step(mine))
            if number:  # the first batch warms up
                cpu[name].append(1e3 * seconds[0] / rows)
                wall[name].append(1e3 * seconds[1] / rows)
    what = "complete samples alone" if whole else f"samples as they come, of {rows * rounds} lacking {lacking}"
    print(f"batch {rows}, {rounds} rounds, {what}; ms a sample\n")
    print("| step | CPU | wall | x the original, CPU | wall |\n|---|---|---|---|---|")
    for name in names:
        ratios = [median(a / b for a, b in zip(times[names[0]], times[name], strict=True)) for times in (cpu, wall)]
        print(f"| {name} | {median(cpu[name]):.1f} | {median(wall[name]):.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    print(flush=True)


def split(names: Sequence[str], rows: int, rounds: int) -> None:
    """Time each encoder, the loss and the optimizer alone, in turn, and print a table."""
    batch = batches(samples(), rows, 1)[0]
    parts = {name: (one := side(name)).parts(one.prepared(batch)) for name in names}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for part in next(iter(parts.values())):
            for name in names:
                seconds, _ = clocked(parts[name][part])
                if number:
                    found[part, name].append(1e3 * seconds / rows)
    print(f"batch {rows}, forward and backward of each part alone, CPU ms a sample\n")
    print(f"| part | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for part in next(iter(parts.values())):
        print(f"| {part} | {' | '.join(f'{median(found[part, name]):.2f}' for name in names)} |")
    print(flush=True)


def resident(field: str) -> float:
    """Return a line of the process's memory in MiB: VmRSS now, VmHWM the largest so far."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def grown(name: str, rows: int) -> dict[str, float]:
    """Return what a step adds to this process's largest resident set, and that set, after a step of two samples."""
    one = side(name)
    small, large = (one.prepared(batches(complete(samples()) if n == 2 else samples(), n, 1)[0]) for n in (2, rows))
    one.step(small)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest so far
    before = resident("VmRSS")
    one.step(large)
    return {"step": resident("VmHWM") - before, "all": resident("VmHWM")}


def memory(names: Sequence[str], rows: int) -> None:
    """Measure the sides' memory, each in a process of its own, and print a table."""
    print(f"batch {rows}, samples as they come, MiB\n")
    print("| step | the step adds | of the original | whole process |\n|---|---|---|---|")
    first = 0.0
    for name in names:
        command = [sys.executable, __file__, "--grown", name, "--rows", str(rows)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        first = first or found["step"]
        print(f"| {name} | {found['step']:,.0f} | {found['step'] / first:.2f} | {found['all']:,.0f} |")
    print(flush=True)


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32], help="samples a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=Path, help="train both recipes and append each run to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, help="peak learning rate of the quality runs")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES.values(), default=list(RECIPES.values()))
    parser.add_argument("--grown", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.grown:
        print(json.dumps(grown(options.grown, options.rows[0])))
    elif options.quality:
        from multimat_quality import quality

        quality(options.quality, options.recipes, options.seeds, options.epochs, options.lr)
    else:
        print(f"torch {torch.__version__}, 1 thread\n")
        check()
        for rows in options.rows:
            for whole in (False, True):
                compare(SIDES, rows, options.rounds, whole=whole)
            memory(SIDES, rows)
        split(SIDES, options.rows[0], options.rounds)


if __name__ == "__main__":
    main()
