"""Networks on graphs, on a GPU that is not there: its tensors have shapes and types but no values.

An operation that would wait for values (`item`, `bincount`, a boolean mask) or that mixes devices raises.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call

from pretrain.encoders import atoms
from shards.batch import collate_modality
from tests.unit.pretrain.test_encoders import CASES, SMALL, build, rows

READ = ("graph", "molecule", "fingerprint")
GRAPHS = [(kind, table) for kind, table in CASES if SMALL[kind][0] in READ and kind != "composition"]


def forward(table, dtype, tokens=False):
    """Go forward under autocast; return the vector."""
    encoder, spec = build(table)
    encoder.tokens_wanted = tokens
    inputs = collate_modality(spec, rows(SMALL[table["kind"]][0]))
    with FakeTensorMode() as mode:
        there = {name: mode.from_tensor(value).to("cuda") for name, value in inputs.items()}
        state = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
        state = {name: mode.from_tensor(value).detach().to("cuda") for name, value in state.items()}
        with torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            encoded = functional_call(encoder, state, (there,))
        assert (encoded.tokens is not None) == tokens
    return encoded.vector


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(("kind", "table"), GRAPHS, ids=lambda v: v if isinstance(v, str) else f"{len(v)}options")
def test_nothing_waits_and_nothing_is_left_on_the_cpu(kind, table, dtype):
    vector = forward(table, dtype)
    assert vector.device.type == "cuda"
    assert vector.dtype in (torch.float32, dtype)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("counted", lambda row, rows: torch.bincount(row, minlength=rows).float()),
        ("pool_sum", lambda values, row, rows: torch.zeros(rows, values.shape[1]).index_add(0, row, values)),
    ],
)
def test_what_waits_or_stays_behind_is_caught(name, wrong, monkeypatch):
    monkeypatch.setattr(atoms, name, wrong)
    with pytest.raises((DynamicOutputShapeException, RuntimeError), match=r"bincount|device"):
        forward({"kind": "cgcnn"}, None)


def test_tokens_wait_once_for_the_longest_row():
    with pytest.raises(DataDependentOutputException):
        forward({"kind": "cgcnn"}, None, tokens=True)
