"""Spans, throughput, FLOP utilisation, and what is shown."""

from __future__ import annotations

import io
import time

import pytest
import torch
from torch import nn

from pretrain.display import Display, shown
from pretrain.evaluate import alignment, uniformity
from pretrain.meters import Meter, memory_gib, peak_flops
from pretrain.spans import Spans, span

CPU = torch.device("cpu")


def burn(seconds: float) -> None:
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        pass


def test_spans_add_up_by_name_and_only_while_somebody_measures() -> None:
    with span("a"):
        burn(0.01)
    with Spans() as outer:
        for _ in range(3):
            with span("a"):
                burn(0.01)
        with Spans() as inner, span("b"):
            burn(0.01)
    assert outer.seconds["a"] >= 0.03
    assert "a" not in inner.seconds
    assert inner.seconds["b"] >= 0.01
    assert inner.seconds["b"] <= outer.seconds["b"] + 1e-3


def test_an_error_inside_a_span_does_not_keep_it_open() -> None:
    with Spans() as spans, pytest.raises(ZeroDivisionError), span("a"):
        _ = 1 / 0
    assert "a" in spans.seconds
    with span("later"):
        pass
    assert "later" not in spans.seconds


def test_a_meter_reports_every_so_many_steps_and_counts_all_samples_between() -> None:
    meter, found = Meter(4, CPU), {}
    for step in range(10):
        with meter.step(step, samples=8, waited_s=0.5), span("encode/a"):
            burn(0.002)
        if values := meter.values():
            found[step] = values
    assert sorted(found) == [1, 5, 9]
    assert found[5]["seconds/data"] == 0.5
    assert found[5]["seconds/encode/a"] >= 0.002
    assert 0 < found[5]["samples_per_s"] <= 8 / 0.002
    assert 0.01 < found[5]["memory_gib"] < 100
    assert "mfu" not in found[5]
    assert meter.values() == {}


def test_a_pause_is_not_counted_as_steps() -> None:
    meter = Meter(2, CPU)
    burn(0.2)
    meter.pause()
    with meter.step(1, samples=10, waited_s=0.0):
        burn(0.001)
    assert meter.values()["samples_per_s"] > 10 / 0.2


def test_the_utilisation_is_that_of_a_product_whose_operations_are_known() -> None:
    layer, x = nn.Linear(64, 32, bias=False), torch.randn(16, 64, requires_grad=True)
    meter = Meter(1, CPU, peak_tflops=1e-6)
    with meter.step(0, samples=16, waited_s=0.0):
        layer(x).sum().backward()
    values = meter.values()
    # forward, and backward to weight and input: three products of 2 * 16 * 64 * 32 operations
    assert values["mfu"] == pytest.approx(3 * 2 * 64 * 32 * values["samples_per_s"] / 1e6, rel=1e-6)


def test_an_unknown_accelerator_has_no_peak() -> None:
    assert peak_flops(CPU) is None
    assert memory_gib(CPU) > 0


def test_plain_lines_where_there_is_no_terminal() -> None:
    lines: list[str] = []
    with Display(10, 5, every=4, report=lines.append, stream=io.StringIO()) as display:
        display.start(2)
        for step in range(3, 11):
            display.step(step, step // 2, {"loss": 1.0 / step, "seconds/step": 2.0, "seconds/data": 0.5})
    assert [line.split()[1] for line in lines] == ["4/10", "8/10", "10/10"]
    assert "loss 0.250" in lines[0] and "data 25%" in lines[0] and "left" in lines[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_display_on_a_terminal() -> None:
    stream = Terminal()
    with Display(10, 5, every=4, stream=stream) as display:
        display.start(0)
        display.step(7, 3, {"loss": 0.5})
    text = stream.getvalue()
    assert "7/10" in text and "epoch 4/5" in text and "loss 0.500" in text


def test_other_ranks_show_nothing() -> None:
    stream, lines = Terminal(), list[str]()
    with Display(10, 5, every=1, enabled=False, report=lines.append, stream=stream) as display:
        display.start(0)
        display.step(1, 0, {"loss": 0.5})
    assert stream.getvalue() == "" and lines == []


def test_what_is_shown_is_what_is_known() -> None:
    assert shown({}) == ""
    assert shown({"mfu": 0.412, "lr": 1e-4}) == "lr 1.00e-04  MFU 41.2%"


def test_alignment_and_uniformity_at_their_known_values() -> None:
    eye = torch.eye(8)
    there = torch.ones(8, dtype=torch.bool)
    z = {"a": eye, "b": eye, "c": -eye, "d": eye[:1].expand(8, 8)}
    present = dict.fromkeys(z, there)
    found = alignment(z, present)
    assert found["a-b"] == 0.0
    assert found["a-c"] == pytest.approx(4.0)
    spread = uniformity(z, present)
    assert spread["a"] == pytest.approx(-4.0)  # orthogonal rows: d^2 = 2
    assert spread["d"] == pytest.approx(0.0, abs=1e-6)
    some = {**present, "b": there & (torch.arange(8) < 2)}
    garbage = {**z, "b": torch.where(some["b"][:, None], eye, torch.tensor(float("nan")))}
    assert alignment(garbage, some)["a-b"] == 0.0
