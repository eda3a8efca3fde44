"""The manifest for Kubeflow Trainer, on no cluster."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.jobs.base import render
from shards.errors import ConfigError
from tests.unit.launch.jobs.test_jobs import job


def documents(**more: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    config, runtime, train = yaml.safe_load_all(render("kubernetes", job(hosts=(), **more)))
    return config, runtime, train


def test_kubeflows_own_models_know_every_field() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install -e .[dev]")
    planned = job(
        env_file=Path("run.env"), stage=Path("/scratch"), gpus_per_node=8, cpus=4, time="2:00:00", claim="work"
    )
    config, runtime, train = yaml.safe_load_all(render("kubernetes", planned))
    assert (config["kind"], runtime["kind"], train["kind"]) == ("ConfigMap", "TrainingRuntime", "TrainJob")
    for document, model in (
        (runtime, models.TrainerV1alpha1TrainingRuntime),
        (train, models.TrainerV1alpha1TrainJob),
    ):
        # what they do not know they drop
        assert model.from_dict(document).to_dict() == document
    misspelt = {**train, "spec": {**train["spec"], "trainner": {}}}
    assert models.TrainerV1alpha1TrainJob.from_dict(misspelt).to_dict() != misspelt


def test_a_train_job_keeps_what_pods_lose() -> None:
    planned = job(env_file=Path("run.env"), stage=Path("/scratch"), gpus_per_node=8, time="2:00:00", grace_s=300)
    _, runtime, train = yaml.safe_load_all(render("kubernetes", planned))
    assert train["spec"]["activeDeadlineSeconds"] == 7200
    assert train["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    spec = runtime["spec"]["template"]["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    for replicated in spec["replicatedJobs"]:
        pod = replicated["template"]["spec"]["template"]["spec"]
        assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["work"]["persistentVolumeClaim"] == {"claimName": "matloom"}
        assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}
        assert stat.S_IMODE(volumes["secrets"]["secret"]["defaultMode"]) == 0o400
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        assert "env" not in container


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3d-crystals", "run-3d-crystals"),
        ("_9", "run-9"),
        ("Multi_Mat.v2", "multi-mat-v2"),
        ("日本", "matloom"),
        ("x" * 43 + "-" + "y" * 20, "x" * 43),
        ("9" * 80, "run-" + "9" * 40),
    ],
)
def test_names_are_such_that_kubernetes_takes_them(name: str, expected: str) -> None:
    _, _, train = documents(name=name)
    assert train["metadata"]["name"] == expected
    # what the CRD of a TrainJob takes, and what JobSet takes of the name of a pod
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", expected)
    assert len(f"{expected}-launcher-0-0-abcde") <= 63 and len(f"{expected}-node-0-1000-abcde") <= 63


def test_one_node_is_one_pod() -> None:
    """Trainer makes one pod of `node` at least, and the launcher's is a host too."""
    for nodes, names in ((1, ["launcher"]), (2, ["node", "launcher"])):
        _, runtime, train = documents(nodes=nodes, gpus_per_node=8, ranks_per_node=8)
        replicated = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        assert [one["name"] for one in replicated] == names
        assert ("dependsOn" in replicated[-1]) == (nodes > 1)
        assert train["spec"]["trainer"]["numNodes"] == nodes


def test_cores_become_threads() -> None:
    config, runtime, _ = documents(cpus=8)
    assert 'OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"' in config["data"]["run.sh"]
    for replicated in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
        (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == {"cpu": "16"}


@pytest.mark.parametrize("time", ["0", "0-0", "00:00:00"])
def test_no_time_at_all_is_refused(time: str) -> None:
    with pytest.raises(ConfigError, match="1 s at least"):
        documents(time=time)


def test_a_pod_that_is_drained_asks_its_ranks_and_waits_for_them(tmp_path: Path) -> None:
    """In a process file system with a rank that catches nothing at first, and with a process that is none."""
    config, runtime, _ = documents()
    node, launcher = (
        one["template"]["spec"]["template"]["spec"]["containers"][0]
        for one in runtime["spec"]["template"]["spec"]["replicatedJobs"]
    )
    assert node["lifecycle"] == {"preStop": {"exec": {"command": ["bash", "/etc/matloom/stop.sh"]}}}
    assert "lifecycle" not in launcher
    saves = "sleep 0.3; trap 'sleep 0.3; echo saved > saved; exit 75' USR1; while true; do sleep 0.02; done"
    rank = subprocess.Popen(["bash", "-c", saves, "-m", "launch.pretrain"], cwd=tmp_path)
    other = subprocess.Popen(["sleep", "60"])
    (tmp_path / "proc").mkdir()
    for process in (rank, other):
        (tmp_path / "proc" / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    hook = subprocess.Popen(["bash", "-c", config["data"]["stop.sh"].replace("/proc", f"{tmp_path}/proc")])
    try:
        assert rank.wait(30) == 75
        assert (tmp_path / "saved").exists()
        assert hook.wait(30) == 0
        assert other.poll() is None
    finally:
        for process in (rank, other, hook):
            process.kill()
            process.wait()
