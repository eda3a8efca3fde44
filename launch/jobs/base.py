"""What a job file says, whichever scheduler reads it, and the pieces that all of them share.

A kind of file is one module of this package with ``render(job) -> str``, named in `KINDS`. Whatever a user has written
goes through `shell` or stands in a comment by `remark`, so no path can become a command; no value of a secret goes in.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pretrain.signals import PREEMPTED, REQUEST
from shards.errors import ConfigError
from shards.quoting import printable
from shards.staged import STAGE

# kind, and how the name of its file ends
KINDS = {"slurm": ".sbatch", "kubernetes": ".yaml", "mpi": ".sh", "torchrun": ".sh", "ssh": ".sh"}
# options that some kinds of file cannot obey, and which can
OBEYED = {
    "hosts": ("slurm", "mpi", "torchrun", "ssh"),
    "cpus": ("slurm", "kubernetes", "mpi"),
    "time": ("slurm", "kubernetes"),
    "partition": ("slurm",),
    "account": ("slurm",),
    "image": ("kubernetes",),
    "claim": ("kubernetes",),
    "env": ("slurm", "mpi", "torchrun", "ssh"),
    "grace": ("slurm", "kubernetes", "ssh"),
    "restarts": ("slurm", "kubernetes", "ssh"),
}
# what schedulers take as the name of a partition, an account, an image or a host, with no room for more
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9@:/._+-]*")
PARTITIONS = re.compile(rf"{WORD.pattern}(,{WORD.pattern})*")
# `seconds` says what they mean
TIME = re.compile(r"([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}")
PORT = 29500


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of pretraining on one host or several.

    Attributes
    ----------
    recipe : Path
        As the hosts see it, absolute or relative to ``folder``.
    name : str
        Of the recipe.
    folder : Path
        The project on all hosts, where the run starts.
    python : str
        Its interpreter there.
    out : Path
        Folder of the run, on storage that all hosts share.
    nodes, ranks_per_node, gpus_per_node : int
        Hosts, ranks on each, and GPUs of each (0: none).
    overrides : tuple of str
        ``A.B=C`` of the recipe.
    deepspeed : str, optional
        DeepSpeed's JSON, or the name of a profile.
    hosts : tuple of str
        Their names, where the kind of job needs them.
    time : str, optional
        Most that it may take, ``D-HH:MM:SS``.
    partition, account, image, claim : str, optional
        Of the scheduler; the image and the volume claim are Kubernetes'.
    cpus : int
        Cores a rank, and threads; 0: what the scheduler gives.
    env : tuple of str
        Names of variables that the ranks get beside those that always go along.
    env_file : Path, optional
        File of variables of mode 600 on shared storage, or the name of a Kubernetes secret with it; each rank reads it.
    stage : Path, optional
        Folder on each host's own disk that gets the data before the ranks start.
    grace_s : int
        Seconds between the signal that asks the run to save, and its end.
    restarts : int
        How often it is started again after a failure.
    """

    recipe: Path
    name: str
    folder: Path
    python: str
    out: Path
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    overrides: tuple[str, ...] = ()
    deepspeed: str | None = None
    hosts: tuple[str, ...] = ()
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    claim: str | None = None
    cpus: int = 0
    env: tuple[str, ...] = ()
    env_file: Path | None = None
    stage: Path | None = None
    grace_s: int = 120
    restarts: int = 3

    def __post_init__(self) -> None:
        for option in ("account", "image", "claim"):
            _check(option, getattr(self, option), WORD)
        _check("partition", self.partition, PARTITIONS)
        _check("time", self.time, TIME)
        for host in self.hosts:
            _check("hosts", host, WORD)
        if self.hosts and len(self.hosts) != self.nodes:
            raise ConfigError(f"--hosts names {len(self.hosts)} hosts, --nodes is {self.nodes}")
        for name in self.env:
            _check("env", name, re.compile(r"[A-Za-z_]\w*", re.ASCII))

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def label(self) -> str:
        """The name as schedulers take it: small letters, digits and dashes, a letter first, at most 44.

        With the 19 characters of ``-launcher-0-0-abcde`` it is the name of a pod, which has at most 63.
        """
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return re.sub(r"^(?=[0-9])", "run-", plain)[:44].strip("-") or "matloom"

    def options(self) -> list[str]:
        """Return the options that launch/pretrain.py and ``matloom launch run`` share, resume included."""
        words = [word for item in self.overrides for word in ("--set", item)]
        words += ["--out", _path(self.out), "--resume", "auto"]
        return words + (["--deepspeed_config", _path(self.deepspeed)] if self.deepspeed else [])

    def module(self) -> list[str]:
        """Return ``-m``, the module that each rank runs where another launcher starts it, and its arguments."""
        words = ["-m", "launch.pretrain", "--config", _path(self.recipe), *self.options()]
        return words + (["--env_file", _path(self.env_file)] if self.env_file else [])

    def rank_command(self) -> list[str]:
        """Return what each rank runs where another launcher starts it."""
        return [self.python, "-u", *self.module()]

    def stage_command(self) -> list[str]:
        """Return what brings the data to the disk of one host."""
        words = [self.python, "-m", "launch.cli", "launch", "stage", _path(self.recipe), _path(self.stage or "")]
        words += [word for item in self.overrides for word in ("--set", item)]
        return words + (["--env-file", _path(self.env_file)] if self.env_file else [])

    def run_command(self) -> list[str]:
        """Return ``matloom launch run`` with the options of this job, without those that name hosts."""
        words = [self.python, "-m", "launch.cli", "launch", "run", _path(self.recipe), *self.options()]
        words += ["--restarts", str(self.restarts), "--grace", str(self.grace_s)]
        words += [word for name in self.env for word in ("--env", name)]
        words += ["--env-file", _path(self.env_file)] if self.env_file else []
        return words + (["--stage", _path(self.stage)] if self.stage else [])


def render(kind: str, job: Job) -> str:
    """Return the text of a job file."""
    text: str = importlib.import_module(f"launch.jobs.{kind}").render(job)
    return text


def refuse_unheard(kind: str, given: Iterable[str]) -> None:
    """Raise `ConfigError` where an option that a user has given would change nothing in this kind of file."""
    for option in given:
        if kind not in OBEYED.get(option, KINDS):
            raise ConfigError(
                f"--{option} changes nothing in a file for --{kind}",
                why=f"it is for --{', --'.join(OBEYED[option])}",
                do="write the variable into --env-file FILE" if option == "env" else "leave it out",
            )


def shell(words: Iterable[str]) -> str:
    """Return a command with every word quoted, and a line for each ``--option`` with its value."""
    text = ""
    for word in words:
        text += (" \\\n    " if word.startswith("--") else " ") + shlex.quote(word)
    return text.strip()


def remark(*lines: str) -> str:
    """Return lines of a comment, whatever they hold."""
    return "\n".join(f"# {printable(line)}".rstrip() for line in lines)


def header(job: Job, how: Iterable[str]) -> str:
    """Return the beginning of a shell script: what it is, how it is started, and the strict mode of bash."""
    secrets = (
        f"Secrets: each rank reads {job.env_file}, NAME=VALUE lines, mode 600; none stands here or on a command line."
        if job.env_file
        else "Secrets: give --env-file FILE to `matloom launch plan`; each rank then reads them there."
    )
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            remark(f"Pretrains {job.recipe} on {job.nodes} x {job.ranks_per_node} ranks; by `matloom launch plan`."),
            remark(*how, secrets, "Exit code: 75 if the run saved and ended when asked to. Started again, it resumes."),
            "set -euo pipefail",
            f"cd -- {shlex.quote(str(job.folder))}",
            f"out={shlex.quote(_path(job.out))}",
        ]
    )


def seconds(time: str) -> int:
    """Return seconds from SLURM's ``MIN``, ``MIN:S``, ``H:MIN:S``, ``D-H``, ``D-H:MIN`` or ``D-H:MIN:S``."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, left = (*parts, 0, 0)[:3]
    else:
        hours, minutes, left = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def forgotten() -> str:
    """Return the lines that make the run's folder and forget how an earlier run ended."""
    return f'mkdir -p -- "$out"\nrm -f -- "$out/{PREEMPTED}" "$out/{REQUEST}"'


def staged(job: Job, once_a_host: str = "") -> list[str]:
    """Return the lines that bring the data to the disk of each host, and tell the ranks.

    Parameters
    ----------
    job : Job
        With or without ``stage``.
    once_a_host : str
        What runs a command once on every host, with a blank after it; nothing where the script runs on every host.
    """
    if job.stage is None:
        return []
    said = "# a verified copy of the data on this disk; what is there already is not fetched again"
    return ["", said, f"{once_a_host}{shell(job.stage_command())}", f"export {STAGE}={shlex.quote(str(job.stage))}"]


def _path(path: Path | str) -> str:
    """Return a path that is no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _check(option: str, value: str | None, form: re.Pattern[str]) -> None:
    if value is not None and not form.fullmatch(value):
        raise ConfigError(
            f"--{option} {printable(value)} is not what a scheduler takes", why=f"it takes {form.pattern}"
        )
