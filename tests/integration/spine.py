"""A folder with a registry of its own, in which commands run as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Spine:
    """A folder in which everything has been run once."""

    folder: Path

    def run(self, *command: object, code: int = 0) -> str:
        """Run a command there and return what it printed."""
        env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [str(part) for part in command], cwd=self.folder, env=env, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def matloom(self, *arguments: object, code: int = 0) -> str:
        return self.run(sys.executable, "-m", "launch.cli", *arguments, code=code)

    def json(self, *arguments: object) -> list[dict[str, object]]:
        return json.loads(self.matloom(*arguments, "--json"))
