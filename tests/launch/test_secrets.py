"""Two hosts whose ranks print and raise all that they know: the ranks have the secrets, and nobody else sees them."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pretrain.ports import free_port
from tests.canaries import CANARIES, S3_SESSION, S3_SIGNATURE, URI_PASSWORD
from tests.distributed.ranks import ROOT
from tests.distributed.runs import SCRIPT, Workshop
from tests.launch.launched import Launched, launch_run
from tests.launch.namespaces import Cluster, wait_for
from tests.leaks import leaks, leaks_in
from tests.servers import http_server

pytestmark = pytest.mark.launch

PLUGIN = '''
import base64
import json
import os
import sys
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

from pretrain.encoders.vector import VectorEncoder

KNOWN = dict(os.environ)
RANK = KNOWN.get("RANK", "0")


class BlabbingEncoder(VectorEncoder):
    """The vector encoder, which tells all that it knows; one rank breaks off by it, once."""

    class Config(VectorEncoder.Config):
        kind: Literal["blab"] = "blab"

    steps = 0

    def forward(self, inputs):
        if self.training:
            BlabbingEncoder.steps += 1
        if self.training and BlabbingEncoder.steps == 2:
            proof = Path(KNOWN["BLAB_PROOF"])
            (proof / f"rank-{RANK}.json").write_text(json.dumps(KNOWN))
            text = json.dumps(KNOWN)
            for stream in () if "BLAB_QUIET" in KNOWN else (sys.stdout, sys.stderr):
                print(KNOWN, text, json.dumps(text), urlencode(KNOWN), file=stream)
                print("\\\\n".join(f"{name}={value}" for name, value in KNOWN.items()), file=stream)
                print(base64.b64encode(text.encode()).decode(), *(
                    base64.b64encode(f"{name}:{value}".encode()).decode() for name, value in KNOWN.items()
                ), file=stream, flush=True)
            if RANK == "1" and (proof / "break").exists():
                (proof / "break").unlink()
                raise RuntimeError(f"broken off with {KNOWN}")
        return super().forward(inputs)
'''
# what does not go along by itself
ASKED_FOR = ("GITHUB_TOKEN", "MY_SSH_PRIVATE_KEY", "CLIENT_COOKIE", "oauthClientSecret", "DATABASE_URL", "REDIS_URL",
             "GCP_SERVICE_ACCOUNT", "OTEL_EXPORTER_OTLP_HEADERS")  # fmt: skip
IN_FILE = ("MP_API_KEY", "WANDB_API_KEY", "PGPASSWORD", "AZURE_STORAGE_SAS_TOKEN", "AWS_SECRET_ACCESS_KEY")


@dataclass
class Watch:
    """Looks at the command lines of all processes on the hosts, again and again; a context."""

    cluster: Cluster
    found: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def __enter__(self) -> Watch:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        networks = {os.readlink(f"/proc/{node.anchor.pid}/ns/net") for node in self.cluster.nodes}
        while not self.over.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if os.readlink(process / "ns/net") not in networks:
                        continue
                    words = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if words not in self.seen:
                    self.seen.add(words)
                    if here := leaks_in(words):
                        self.found[words.decode(errors="replace")] = here


@dataclass
class Blabbing:
    """A workshop of ranks that tell all; what they have found stands in ``proof``, which is theirs alone."""

    shop: Workshop
    proof: Path
    file: Path
    env: dict[str, str]


@pytest.fixture
def blabbing(tmp_path: Path, toy_folder: Path, pair: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blabbing]:
    """The recipe reads its data from a signed URL; some canaries are in a file, all others in the environment."""
    folder, proof, file = tmp_path / "shop", tmp_path / "proof", tmp_path / "secrets.env"
    for path in (folder, proof):
        path.mkdir(mode=0o700)
    plugin = tmp_path / "plugin" / "blab-1.0.dist-info"
    plugin.mkdir(parents=True)
    (plugin.parent / "blab_encoder.py").write_text(PLUGIN)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: blab\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[matloom.encoders]\nblab = blab_encoder:BlabbingEncoder\n")
    file.write_text("".join(f"{name}='{CANARIES[name]}'\n" for name in IN_FILE))
    file.chmod(0o600)
    with http_server(toy_folder, address=pair.gateway) as server:
        signed = f"{server.url}/?X-Amz-Security-Token={S3_SESSION}&X-Amz-Signature={S3_SIGNATURE}"
        shop = Workshop.make(folder, signed, epochs=4, evaluate=2, save=5)  # type: ignore[arg-type]
        recipe = shop.recipe.read_text()
        # the user's own file
        shop.recipe = tmp_path / "recipe.toml"
        shop.recipe.write_text(recipe.replace('kind = "vector"', 'kind = "blab"', 1))
        (folder / "recipe.toml").unlink()
        env = {
            **{name: value for name, value in CANARIES.items() if name not in IN_FILE},
            **shop.environment(),
            "MATLOOM_CACHE": str(folder / "cache"),
            "BLAB_PROOF": str(proof),
            "PYTHONPATH": f"{plugin.parent}:{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        for name in IN_FILE:
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield Blabbing(shop, proof, file, env)


def options(blabbing: Blabbing) -> list[object]:
    asked = [word for name in (*ASKED_FOR, "BLAB_PROOF") for word in ("--env", name)]
    return [*asked, "--env-file", blabbing.file, "--host-timeout", 10, "--grace", 5]


def test_a_rank_that_tells_all_and_breaks_off_is_started_again_and_ends_well(
    cluster: Cluster, blabbing: Blabbing
) -> None:
    (blabbing.proof / "break").touch()
    words = [*options(blabbing), "--debug"]
    with Watch(cluster) as watch, launch_run(cluster, blabbing.shop, "told", *words, env=blabbing.env) as run:
        assert run.end_alone() == 0, run.told()
        told = run.told()
    assert "attempt 2 of 4" in told and "broken off with" in told
    ranks_know(blabbing, {name: value for name, value in CANARIES.items() if name != "MLFLOW_TRACKING_URI"})
    nobody_else_knows(blabbing, watch, ".log", ".jsonl", ".json", ".pt", ".safetensors", ".db")


def ranks_know(blabbing: Blabbing, expected: dict[str, str]) -> None:
    for rank in range(2):
        known = json.loads((blabbing.proof / f"rank-{rank}.json").read_text())
        assert {name: known.get(name) for name in expected} == expected


def nobody_else_knows(blabbing: Blabbing, watch: Watch, *kinds: str) -> None:
    """Look through what the run has left (logs, metrics, recipe, checkpoints, export, MLflow's files, caches)."""
    assert set(kinds) <= {path.suffix for path in blabbing.shop.folder.rglob("*")}
    assert leaks(blabbing.shop.folder) == {}
    assert any(b"pretrain" in words for words in watch.seen)
    assert watch.found == {}


@pytest.mark.slow
def test_a_server_of_mlflow_and_a_hang(cluster: Cluster, blabbing: Blabbing) -> None:
    port, shop = free_port(), blabbing.shop
    words = [
        Path(sys.executable).with_name("mlflow"), "server", "--host", "127.0.0.1", "--port", port, "--workers", 1,
        "--backend-store-uri", f"sqlite:///{shop.folder}/server.db", "--artifacts-destination", shop.folder / "server",
    ]  # fmt: skip
    plain = {name: value for name, value in os.environ.items() if name not in CANARIES}
    log = shop.folder / "server.log"
    server = cluster.nodes[0].popen("env", "-i", *(f"{k}={v}" for k, v in plain.items()), *words, log=log)
    wait_for(lambda: b"Application startup complete" in log.read_bytes() or server.poll() is not None)
    blabbing.env["MLFLOW_TRACKING_URI"] = f"http://matloom:{URI_PASSWORD}@127.0.0.1:{port}"
    with Watch(cluster) as watch:
        with launch_run(cluster, shop, "served", *options(blabbing), env=blabbing.env) as run:
            # not alone: the server is no stray
            assert run.end() == 0, run.told()
            assert list((shop.folder / "server").rglob("artifacts/*/*.csv")), run.told()
        # a rank that is stopped hangs the other: stacks are written down
        hang = [*options(blabbing), "--restarts", 0, "--set", "guards.hang_timeout_s=10", "--set", "optim.epochs=9999"]
        blabbing.env["MLFLOW_TRACKING_URI"] = f"http://matloom:{URI_PASSWORD}@127.0.0.1:9"
        with launch_run(cluster, shop, "hangs", *hang, env=blabbing.env) as run:
            run.trained(3)
            run.rank(1).suspend()
            assert run.end() == 7, run.told()
    assert list(shop.folder.rglob("hang.txt"))
    nobody_else_knows(blabbing, watch, ".log", ".jsonl", ".json", ".db", ".txt")


def natively(cluster: Cluster, blabbing: Blabbing, out: str, *words: object, **env: str) -> str:
    """Run launch/pretrain.py by DeepSpeed's own command and return its output."""
    handed_on = blabbing.shop.folder / f"{out}.deepspeed"
    names = [name for name in blabbing.env if name not in CANARIES] + ["MLFLOW_TRACKING_URI"]
    own = {name: blabbing.env[name] for name in names} | {"BLAB_QUIET": "1"}
    handed_on.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [launcher, "--hostfile", cluster.hostfile(), "--master_port", free_port(), SCRIPT, *words]
    with Launched(cluster, blabbing.shop, out, command, env={**own, **env, "DS_ENV_FILE": str(handed_on)}) as run:
        assert run.end() == 0, run.told()
        return run.told()


def test_what_deepspeeds_command_would_print_a_file_keeps(
    cluster: Cluster, blabbing: Blabbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CANARIES:
        monkeypatch.delenv(name, raising=False)
    # one with quotes would break the command line on which it puts it
    token = {"MLFLOW_TRACKING_TOKEN": CANARIES["MLFLOW_TRACKING_TOKEN"]}
    told = natively(cluster, blabbing, "printed", "--help", **token)
    assert "MLFLOW_TRACKING_TOKEN" in leaks_in(told.encode())
    (blabbing.shop.folder / "printed.node1.log").unlink()
    with Watch(cluster) as watch:
        words = ["--config", blabbing.shop.recipe, "--out", blabbing.shop.folder / "kept"]
        natively(cluster, blabbing, "kept", *words, "--env_file", blabbing.file)
    ranks_know(blabbing, {name: CANARIES[name] for name in IN_FILE})
    nobody_else_knows(blabbing, watch, ".log", ".jsonl", ".json", ".pt", ".safetensors", ".db")
