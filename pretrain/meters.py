"""What a run measures of itself: throughput, where the time of a step goes, memory, share of the accelerator's peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.spans import Spans

GIB = 2**30
# dense peak of the tensor cores in bf16 / fp16, TFLOP/s, from the vendors' data sheets; the first that matches counts
PEAKS = {
    "GB200": 2500, "B200": 2250, "B100": 1750, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100": 989, "H800": 989,
    "A100": 312, "A800": 312, "L40S": 362, "L4": 121, "A40": 150, "A10": 125, "V100": 125, "T4": 65,
    "MI325X": 1307, "MI300X": 1307, "MI250X": 383,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Return the accelerator's peak in FLOP/s, None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for key, peak in PEAKS.items() if key in name), None)


def memory_gib(device: torch.device) -> float:
    """Return the memory in GiB that this rank holds: the allocator's peak on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return psutil.Process().memory_info().rss / GIB


class Meter:
    """Measures steps; every ``every``-th in detail, since a span waits for the device.

    Parameters
    ----------
    every : int
        Steps between two detailed measurements.
    device : torch.device
        Of this rank.
    peak_tflops : float, optional
        Peak of one accelerator, for the model FLOP utilisation; by default that of the vendor's data sheet.
    """

    def __init__(self, every: int, device: torch.device, peak_tflops: float | None = None) -> None:
        self.every, self.device = every, device
        self.peak = peak_tflops * 1e12 if peak_tflops else peak_flops(device)
        self._flops_a_sample: float | None = None
        self._found: dict[str, float] = {}
        self.pause()

    def pause(self) -> None:
        """Start the clock of the throughput anew: after an evaluation or a checkpoint, which are no steps."""
        self._since, self._samples = time.perf_counter(), 0

    def due(self, step: int) -> bool:
        """Whether a step (from 0) is measured in detail: the second, since the first warms up, then every so many."""
        return step % self.every == min(1, self.every - 1)

    @contextmanager
    def step(self, step: int, *, samples: int, waited_s: float) -> Iterator[None]:
        """Measure one step over ``samples`` samples of the global batch, which waited ``waited_s`` for its data."""
        with ExitStack() as stack:
            spans = stack.enter_context(Spans()) if self.due(step) else None
            # the operations of one step, once, where a peak is known to compare them with
            counts = self.peak is not None and self._flops_a_sample is None and samples > 0
            counter = stack.enter_context(FlopCounterMode(display=False)) if counts else None
            yield
        self._samples += samples
        if counter is not None:
            self._flops_a_sample = counter.get_total_flops() / samples
        if spans is not None:
            spans.seconds["data"] = waited_s
            self._found = self._measured(spans)
            self.pause()

    def values(self) -> dict[str, float]:
        """Return what the last detailed step found, once."""
        found, self._found = self._found, {}
        return found

    def _measured(self, spans: Spans) -> dict[str, float]:
        a_second = self._samples / max(time.perf_counter() - self._since, 1e-9)
        found = {"samples_per_s": a_second, "memory_gib": memory_gib(self.device)}
        found |= {f"seconds/{name}": seconds for name, seconds in spans.seconds.items()}
        if self.peak and self._flops_a_sample:
            found["mfu"] = self._flops_a_sample * a_second / self.peak
        return found
