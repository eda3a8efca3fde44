"""What a run shows while it trains: a live display on a terminal, plain lines everywhere else. Rank 0 alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# of the values that are shown: name, label, format
SHOWN = [
    ("loss", "loss", "{:.3f}"),
    ("val/mrr", "val MRR", "{:.3f}"),
    ("lr", "lr", "{:.2e}"),
    ("temperature", "tau", "{:.3f}"),
    ("grad_norm", "grad", "{:.2f}"),
    ("samples_per_s", "samples/s", "{:.0f}"),
    ("memory_gib", "GiB", "{:.1f}"),
    ("mfu", "MFU", "{:.1%}"),
]


def shown(values: Mapping[str, float]) -> str:
    """Return the values worth a look, on one line."""
    parts = [f"{label} {form.format(values[name])}" for name, label, form in SHOWN if name in values]
    step = values.get("seconds/step", 0.0)
    if step and "seconds/data" in values:
        parts.append(f"data {values['seconds/data'] / step:.0%}")
    return "  ".join(parts)


class Display:
    """The display of one run, used as a context.

    Parameters
    ----------
    total : int
        Steps of the run.
    epochs : int
        Epochs of the run.
    every : int
        Steps between two plain lines.
    report : callable
        Gets the plain lines.
    enabled : bool
        False on every rank but the first: then nothing is shown.
    stream : file, optional
        Where the live display goes if it is a terminal; default: standard output.
    """

    def __init__(
        self,
        total: int,
        epochs: int,
        *,
        every: int,
        report: Callable[[str], None] = print,
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.epochs, self.every, self.report, self.enabled = total, epochs, every, report, enabled
        stream = stream or sys.stdout
        self.live = enabled and stream.isatty()
        self._last: dict[str, float] = {}
        self._began, self._first = time.monotonic(), 0
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=Console(file=stream),
            disable=not self.live,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Begin at a step; a resumed run does not at 0."""
        self._began, self._first = time.monotonic(), step
        self._task = self._progress.add_task("", total=self.total, completed=step, epoch="", values="")

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Show a step (from 1) of an epoch (from 0)."""
        self._last |= values
        if self.live and self._task is not None:
            epoch_text = f"{epoch + 1}/{self.epochs}"
            self._progress.update(self._task, completed=step, epoch=epoch_text, values=shown(self._last))
        elif self.enabled and (step % self.every == 0 or step == self.total):
            self.report(
                f"step {step}/{self.total}  epoch {epoch + 1}/{self.epochs}  {shown(self._last)}{self._left(step)}"
            )

    def values(self, values: Mapping[str, float]) -> None:
        """Take note of values that come between steps, such as those of an evaluation."""
        self._last |= values

    def _left(self, step: int) -> str:
        done = step - self._first
        if done < 1 or step >= self.total:
            return ""
        left = (time.monotonic() - self._began) / done * (self.total - step)
        return f"  left {timedelta(seconds=round(left))}"
