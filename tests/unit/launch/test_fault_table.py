"""The table of docs/reliability.md has every fault that the tests make, with the exit code that they demand."""

from __future__ import annotations

import re

import pytest

from tests.distributed.ranks import ROOT
from tests.launch import test_faults, test_faults_at_start, test_faults_native

MADE = {
    **{fault.name: fault.code for fault in test_faults.FAULTS},
    **{trouble.name: 0 for trouble in test_faults.TROUBLES},
    **{fault.name: 8 for fault in test_faults_at_start.FAULTS},
    **{f"deepspeed: {fault.name}": fault.code for fault in test_faults_native.FAULTS},
}


@pytest.mark.parametrize("fault", MADE)
def test_the_published_table_has_it(fault: str) -> None:
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    (cells,) = [line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {fault} | ")]
    assert cells[3] == str(int(str(MADE[fault])))
    assert re.fullmatch(r"(\d+) of \1", cells[5])
