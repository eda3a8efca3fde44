"""A folder with a registry of its own, in which commands run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.commands import matloom
from tests.distributed.ranks import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Spine:
    """A folder in which everything has been run once."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: object, code: int = 0) -> str:
        """Run a command there and return what it printed."""
        env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **self.environment}
        done = subprocess.run(
            [str(part) for part in command], cwd=self.folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def matloom(self, *arguments: object, code: int = 0) -> str:
        """Run a command of the command line there, which need not import everything anew."""
        found, told, errors = matloom(*arguments, folder=self.folder, environment=self.environment)
        assert found == code, f"{arguments}\n{told[-3000:]}\n{errors[-3000:]}"
        return told if code == 0 else told + errors

    def json(self, *arguments: object) -> list[dict[str, object]]:
        return json.loads(self.matloom(*arguments, "--json"))
