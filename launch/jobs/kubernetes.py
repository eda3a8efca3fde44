"""A TrainJob of Kubeflow Trainer v2 with its DeepSpeed runtime, in which one pod a host runs the ranks under mpirun.

The runtime that comes with Kubeflow (``deepspeed-distributed``) keeps its own image, without GPUs and volumes, for all
pods but the launcher's, and a TrainJob cannot change that. So the file brings a runtime like it: kinds and fields are
those of Kubeflow Trainer 2.3 (``trainer.kubeflow.org/v1alpha1``) and JobSet (``jobset.x-k8s.io/v1alpha2``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.jobs import asking, mpi
from launch.jobs.base import Job, remark, seconds
from shards.errors import ConfigError

# of the image, as in Kubeflow's own: user, its home, and the configuration of its sshd
USER, HOME = 1000, "/home/mpiuser"
SCRIPT, SECRETS = "/etc/matloom", "/etc/matloom-secrets"
# another try does not mend them: recipe, data, checkpoint, registry, diverged
FINAL = [2, 3, 4, 5, 6]
NOTES = {
    "failurePolicy:": "all pods start again after a failure, and the run goes on from its newest checkpoint; not after",
    "podFailurePolicy:": "an error of the recipe, the data, a checkpoint or the registry, or a run that diverged",
    "terminationGracePeriodSeconds:": "until KILL, for example when a node is drained: time to save",
    "lifecycle:": "TERM would end sshd, and the ranks with it: before, they are asked to save, and waited for",
    "- name: shm": "ranks of one pod talk through it; 64 MB, the default, are too few",
    "- name: secrets": "kubectl create secret generic {secret} --from-file=run.env=FILE",
    "- name: stage": "the data on the node's own disk",
    "- name: work": "recipe, code, data, checkpoints and logs; ReadWriteMany, since all pods write",
}


def render(job: Job) -> str:
    """Return the manifest, or raise `ConfigError` where no image is named, or no time given."""
    if not job.image:
        raise ConfigError(
            "--kubernetes needs an image", do="--image REGISTRY/NAME:TAG, built on kubeflow's deepspeed-runtime"
        )
    if job.time and not seconds(job.time):
        raise ConfigError(f"--time {job.time}: Kubernetes takes 1 s at least", do="leave it out for no limit")
    secret = f"{job.label}-env"
    runtime = _dump(_runtime(job, secret), {key: note.format(secret=secret) for key, note in NOTES.items()})
    create = f"kubectl create secret generic {secret} --from-file=run.env={job.env_file}   # NAME=VALUE lines"
    none = "secrets: give --env-file FILE to `matloom launch plan`; it becomes a secret that each rank reads"
    head = remark(
        f"Pretrains {job.recipe} on {job.nodes} x {job.ranks_per_node} ranks with Kubeflow Trainer, by"
        " `matloom launch plan`.",
        "Before the first run:",
        f"  a claim '{_claim(job)}' that holds the project; an image with matloom, Open MPI, and {HOME}/.sshd_config,",
        "  for example FROM ghcr.io/kubeflow/trainer/deepspeed-runtime",
        f"  {create if job.env_file else none}",
        f"Then: kubectl apply -f FILE; kubectl logs -f -l jobset.sigs.k8s.io/jobset-name={job.label}",
        "No secret stands in this file, in the environment of a container or on a command line.",
    )
    parts = [head + "\n" + _dump(_script(job)), runtime, _dump(_train_job(job))]
    return "---\n".join(parts)


def _claim(job: Job) -> str:
    return job.claim or "matloom"


def _script(job: Job) -> dict[str, Any]:
    # the hosts are those of Kubeflow's hostfile; the secret is where all pods mount it
    inside = replace(job, hosts=(), env_file=Path(SECRETS) / "run.env" if job.env_file else None)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job.label}-script"},
        "data": {
            "run.sh": mpi.script(
                inside, ["Runs in the launcher's pod; mpirun finds the others in Kubeflow's hostfile."]
            ),
            "stop.sh": asking.stopped(),
        },
    }


def _train_job(job: Job) -> dict[str, Any]:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": job.label},
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": f"{job.label}-deepspeed",
            },
            "trainer": {"numNodes": job.nodes, "numProcPerNode": job.ranks_per_node},
            **({"activeDeadlineSeconds": seconds(job.time)} if job.time else {}),
        },
    }  # fmt: skip


def _runtime(job: Job, secret: str) -> dict[str, Any]:
    ssh = {"command": ["/usr/sbin/sshd"], "args": ["-De", "-f", f"{HOME}/.sshd_config"],
           "readinessProbe": {"tcpSocket": {"port": 2222}, "initialDelaySeconds": 5},
           "lifecycle": {"preStop": {"exec": {"command": ["bash", f"{SCRIPT}/stop.sh"]}}}}  # fmt: skip
    start = {"command": ["bash", f"{SCRIPT}/run.sh"]}
    launcher = _replicated(job, secret, "launcher", start, {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"})
    # at one node the launcher's pod is all; Trainer would make one of the others at least
    others = [_replicated(job, secret, "node", ssh, None)] if job.nodes > 1 else []
    if others:
        launcher["dependsOn"] = [{"name": "node", "status": "Ready"}]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {
            "name": f"{job.label}-deepspeed",
            "labels": {"trainer.kubeflow.org/framework": "deepspeed"},
        },
        "spec": {
            "mlPolicy": {
                "numNodes": job.nodes,
                "mpi": {
                    "mpiImplementation": "OpenMPI",
                    "numProcPerNode": job.ranks_per_node,
                    "runLauncherAsNode": True,
                    "sshAuthMountPath": f"{HOME}/.ssh",
                },
            },
            "template": {
                "spec": {
                    "network": {"publishNotReadyAddresses": True},
                    "successPolicy": {"operator": "All", "targetReplicatedJobs": ["launcher"]},
                    "failurePolicy": {
                        "maxRestarts": job.restarts,
                        "rules": [
                            {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                        ],
                    },
                    "replicatedJobs": [*others, launcher],
                }
            },
        },
    }


def _replicated(
    job: Job, secret: str, name: str, start: dict[str, Any], labels: dict[str, str] | None
) -> dict[str, Any]:
    """Return the job of the launcher's pod, which is a host too, or that of the other hosts' pods."""
    mounts, volumes = _volumes(job, secret)
    amounts = {"nvidia.com/gpu": str(job.gpus_per_node)} if job.gpus_per_node else {}
    amounts |= {"cpu": str(job.cpus * job.ranks_per_node)} if job.cpus else {}
    container = {
        "name": "node",
        "image": job.image,
        **start,
        "securityContext": {"runAsUser": USER, "runAsGroup": USER},
        **({"resources": {"limits": amounts}} if amounts else {}),
        "volumeMounts": mounts,
    }
    rule = {"action": "FailJob", "onExitCodes": {"containerName": "node", "operator": "In", "values": FINAL}}
    spec = {
        "backoffLimit": 0,
        # the other pods have an sshd, whose exit code says nothing
        **({"podFailurePolicy": {"rules": [rule]}} if labels else {}),
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": job.grace_s,
                "securityContext": {"fsGroup": USER},
                "containers": [container],
                "volumes": volumes,
            }
        },
    }
    return {"name": name, "template": {**({"metadata": {"labels": labels}} if labels else {}), "spec": spec}}


def _volumes(job: Job, secret: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return where volumes appear in a container, and what they are."""
    volumes: dict[str, tuple[str, dict[str, Any]]] = {
        "script": (SCRIPT, {"configMap": {"name": f"{job.label}-script"}}),
        "work": (str(job.folder), {"persistentVolumeClaim": {"claimName": _claim(job)}}),
        "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory"}}),
    }
    if job.env_file:
        volumes["secrets"] = (SECRETS, {"secret": {"secretName": secret, "defaultMode": 0o400}})
    if job.stage:
        volumes["stage"] = (str(job.stage), {"emptyDir": {}})
    mounts = [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()]
    return mounts, [{"name": name, **source} for name, (_, source) in volumes.items()]


def _dump(table: dict[str, Any], notes: dict[str, str] | None = None) -> str:
    """Return YAML with a comment above the first line that begins with each of ``notes``."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes text of several lines as such."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(table, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096)
    left, lines = dict(notes or {}), []
    for line in dumped.splitlines(keepends=True):
        key = next((key for key in left if line.strip().startswith(key) and "mountPath" not in line), None)
        if key is not None:
            lines.append(f"{line[: len(line) - len(line.lstrip())]}# {left.pop(key)}\n")
        lines.append(line)
    return "".join(lines)
