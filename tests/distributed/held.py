"""An encoder that tests bring along: it waits once, in a given phase of the run, until it is let go.

So a signal comes in a known phase, in whatever processes the ranks are, and nothing depends on luck.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from tests.distributed.ranks import ROOT
from tests.distributed.runs import Hold, Workshop

WORLD, SAVE, STEP = 2, 5, 7
# the step of the only checkpoint that a request to end in a phase adds
EXPECTED = {"warm-up": 0, "step": STEP + 2, "save": SAVE, "eval": 6}
NAMES = ("HELD_OUT", "HELD_AT", "HELD_IN")
PLUGIN = '''
import os
import time
from pathlib import Path
from typing import Literal

from pretrain.encoders.vector import VectorEncoder

OUT, HOLD, PHASE = Path(os.environ["HELD_OUT"]), Path(os.environ["HELD_AT"]), os.environ["HELD_IN"]


def wait():
    rank = os.environ["RANK"]
    (HOLD / f"reached-{rank}").touch()
    while not (HOLD / f"go-{rank}").exists():
        time.sleep(0.02)


class HeldEncoder(VectorEncoder):
    """The vector encoder, which waits once, in one phase of the run."""

    class Config(VectorEncoder.Config):
        kind: Literal["held"] = "held"

    steps, held = 0, False

    def here(self):
        if not HeldEncoder.held:
            HeldEncoder.held = True
            wait()

    def __init__(self, spec, config, fitted):
        super().__init__(spec, config, fitted)
        if PHASE == "warm-up":
            self.here()

    def forward(self, inputs):
        if self.training:
            HeldEncoder.steps += 1
        if (PHASE == "step" and HeldEncoder.steps == STEP + 1) or (PHASE == "eval" and not self.training):
            self.here()
        return super().forward(inputs)

    def state_dict(self, *args, **kwargs):
        return super().state_dict(*args, **kwargs)

    def _save_to_state_dict(self, *args, **kwargs):
        if PHASE == "save" and os.environ["RANK"] == "0" and any((OUT / "checkpoints").glob(".step-*.partial")):
            self.here()
        return super()._save_to_state_dict(*args, **kwargs)
'''.replace("STEP", str(STEP))
# Python imports it before anything else
EARLY = """
import os
import time

if os.environ.get("HELD_IN") == "import" and "RANK" in os.environ:
    reached, go = (os.path.join(os.environ["HELD_AT"], f"{word}-{os.environ['RANK']}") for word in ("reached", "go"))
    open(reached, "w").close()
    while not os.path.exists(go):
        time.sleep(0.02)
"""


def held_shop(folder: Path, data: Path) -> Workshop:
    """Make a workshop whose recipe has the encoder; of four epochs, 12 steps."""
    shop = Workshop.make(folder, data, epochs=4, evaluate=2, save=SAVE)
    info = plugin(shop) / "held-1.0.dist-info"
    info.mkdir(parents=True)
    (plugin(shop) / "held_encoder.py").write_text(PLUGIN)
    (plugin(shop) / "sitecustomize.py").write_text(EARLY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[matloom.encoders]\nheld = held_encoder:HeldEncoder\n")
    shop.recipe.write_text(shop.recipe.read_text().replace('kind = "vector"', 'kind = "held"', 1))
    return shop


def plugin(shop: Workshop) -> Path:
    """Return the folder that must be on the path of every rank."""
    return shop.folder / "plugin"


def plugged(folder: str) -> None:
    """Find the plug-in in a forked rank."""
    sys.path.insert(0, folder)


def environment(shop: Workshop, out: str, hold: Hold | None = None, phase: str = "-") -> dict[str, str]:
    """Return the variables of the ranks of a run that waits in a phase; in none by default."""
    at = "-" if hold is None else str(hold.folder)
    return {
        **shop.environment(), "HELD_OUT": str(shop.folder / out), "HELD_AT": at, "HELD_IN": phase,
        "PYTHONPATH": f"{plugin(shop)}:{ROOT}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def finished(shop: Workshop, *jobs: list[str], world: int = WORLD) -> None:
    """Run jobs to the end, or go on to it, in forked ranks: they start at once, and see the plug-in all the same."""
    patch = functools.partial(plugged, str(plugin(shop)))
    for code, told in shop.run(*jobs, world=world, patch=patch):
        assert code == 0, told
