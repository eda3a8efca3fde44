"""How test files are spread over the workers of pytest-xdist."""

from __future__ import annotations

from typing import Any

import pytest

# they share what takes longest to set up
TOGETHER = ("tests/integration/test_spine.py", "tests/integration/test_notebook.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a whole file, whose tests share fixtures; the long ones stand first in the collection."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER[0] if file in TOGETHER else file

    config.option.loadscopereorder = False
    return Files(config, log)
