"""Everything run once in small: shards, pretraining by DeepSpeed's launcher, registry, fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.ports import free_port
from shards.sources.examples import write_examples
from tests.integration.spine import BIN, ROOT, Spine


@pytest.fixture(scope="session")
def spine(tmp_path_factory: pytest.TempPathFactory, dft_shards: Path) -> Spine:
    spine = Spine(tmp_path_factory.mktemp("spine"))
    spine.run(
        "deepspeed", "--num_accelerators", 1, "--master_port", free_port(), ROOT / "launch" / "pretrain.py",
        "--config", ROOT / "recipes" / "demo.toml", "--set", f"data.path={dft_shards}",
        "--set", "optim.epochs=1", "--set", "optim.warmup_epochs=0",
    )  # fmt: skip
    spine.run(
        BIN / "matloom", "finetune", ROOT / "recipes" / "demo-finetune.toml", "--set", f"data={dft_shards}",
        "--set", "seeds=[0]", "--set", "optim.epochs=1", "--set", "optim.frozen_epochs=40",
    )  # fmt: skip
    write_examples(spine.folder, "GaN_wurtzite")
    return spine
