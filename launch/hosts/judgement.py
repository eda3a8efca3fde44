"""Whether what one host has found of itself is enough for its ranks; the same for ``matloom doctor``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.findings import Finding
from launch.hosts.facts import requirements

GIB, MIB = 2**30, 2**20
# a checkpoint of a small model, with its staging copy; the dry run says what a recipe's own take
LEAST_DISK, SOME_DISK = GIB, 5 * GIB
# the libraries alone take this much for each rank
LEAST_MEMORY, SOME_MEMORY = GIB // 2, 4 * GIB
# DeepSpeed's and NCCL's buffers of one rank; docker gives 64 MiB to a container
LEAST_SHARED, SOME_SHARED = 32 * MIB, 256 * MIB
LEAST_FILES, SOME_FILES = 256, 1024
USED = 0.1


def packages(versions: Mapping[str, str | None]) -> Iterator[Finding]:
    """Judge the versions of the packages that the project asks for."""
    for requirement in requirements():
        version, do = versions.get(requirement.name), f"pip install '{requirement.name}{requirement.specifier}'"
        if version is None:
            yield Finding(requirement.name, "failed", "not installed", do)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(requirement.name, "failed", f"{version} is not {requirement.specifier}", do)
        else:
            yield Finding(requirement.name, "ok", version)


def memory(free: int, ranks: int = 1) -> Finding:
    """Judge the memory that is free, in bytes."""
    value = f"{free / GIB:.1f} GiB free"
    if free < LEAST_MEMORY * ranks:
        return Finding("memory", "failed", value, f"free {LEAST_MEMORY * ranks / GIB:.1f} GiB, or use fewer slots")
    return _above("memory", free, SOME_MEMORY, value, "end what else runs")


def shared_memory(free: int | None, ranks: int = 1) -> Finding:
    """Judge ``/dev/shm``, whose free bytes are given, or None where there is none."""
    if free is None:
        return Finding("shared memory", "warning", "no /dev/shm", "mount a tmpfs there")
    value, do = f"{free / MIB:.0f} MiB free", "mount -o remount,size=1G /dev/shm (docker: --shm-size=1g)"
    if free < LEAST_SHARED * ranks:
        return Finding("shared memory", "failed", f"{value}, less than {LEAST_SHARED // MIB} MiB a rank", do)
    return _above("shared memory", free, SOME_SHARED, value, do)


def open_files(soft: int, hard: int) -> Finding:
    """Judge the limit of open files of a process."""
    value, do = f"{soft} of at most {hard}", "ulimit -n 65536 (for good: /etc/security/limits.conf)"
    if 0 <= soft < LEAST_FILES:
        return Finding("open files", "failed", value, do)
    return _above("open files", soft if soft >= 0 else SOME_FILES, SOME_FILES, value, do)


def disk(folder: Mapping[str, Any], *, shared: bool) -> Finding:
    """Judge the folder of the run; ``shared``: whether it must be the controller's own."""
    path, free = folder["path"], folder["free_bytes"]
    value = f"{free / GIB:.1f} GiB free"
    if folder["written"] is not None:
        full = any(word in folder["written"].lower() for word in ("space", "quota"))
        do = "free some space" if full else "give the user of the run the right to write there"
        do += ", or choose another folder by --out"
        return Finding("disk", "failed", f"{path} cannot be written: {folder['written']}", do)
    if shared and not folder["same"]:
        do = "put it on storage that all hosts share and mount it there at that path, or choose another --out"
        return Finding("disk", "failed", f"{path} is not the same folder as where the run was started", do)
    if free < LEAST_DISK:
        return Finding("disk", "failed", f"{path}: {value}", "free some space, or choose another folder by --out")
    return _above("disk", free, SOME_DISK, value, "free some space")


def accelerators(found: Mapping[str, Any], slots: Sequence[int] = ()) -> Iterator[Finding]:
    """Judge accelerators; ``slots`` are the numbers of those that the run uses, by default all that are visible."""
    devices = found["devices"]
    if found["error"]:
        do = "nvidia-smi; dmesg | grep Xid; reboot the host or leave it out by --exclude"
        yield Finding("accelerator", "failed", f"the accelerators do not answer: {found['error']}", do)
        return
    if not devices:
        if found["smi"]:
            yield Finding("accelerator", "failed", f"nvidia-smi sees {len(found['smi'])} GPUs and torch none",
                          "install a torch that fits the driver")  # fmt: skip
            return
        yield Finding("accelerator", "ok", "none, runs on the CPU (gloo)")
        return
    missing = [slot for slot in slots if slot >= len(devices)]
    if missing:
        yield Finding("accelerator", "failed", f"{len(devices)} accelerators, and no slot {missing[0]}",
                      "correct its slots in the hostfile")  # fmt: skip
    used = {number: device for number, device in enumerate(devices) if not slots or number in slots}
    for number, device in used.items():
        if device["error"]:
            yield Finding("accelerator", "failed", f"accelerator {number} does not compute: {device['error']}",
                          f"leave it out: --exclude HOST:{number}")  # fmt: skip
    for row in found["smi"]:
        yield from _reported(row, [number for number, device in used.items() if device["uuid"] == row["uuid"]])
    names = ", ".join(sorted({device["name"] for device in devices}))
    yield Finding("accelerator", "ok", f"{len(devices)} x {names} (nccl)")


def _reported(row: Mapping[str, str], slots: Sequence[int]) -> Iterator[Finding]:
    """Judge what nvidia-smi says of one GPU, if it is that of one of the slots."""
    errors, used, total = row["ecc.errors.uncorrected.volatile.total"], row["memory.used"], row["memory.total"]
    if slots and errors.isdigit() and int(errors):
        do = f"reset it (nvidia-smi -r -i {row['index']}) or leave it out: --exclude HOST:{slots[0]}"
        yield Finding("accelerator", "failed", f"GPU {row['index']} has {errors} uncorrected memory errors", do)
    if slots and used.isdigit() and total.isdigit() and int(used) > USED * int(total):
        yield Finding("accelerator", "warning", f"{used} of {total} MiB of GPU {row['index']} are in use",
                      "see whether somebody else computes there: nvidia-smi")  # fmt: skip


def _above(name: str, value: float, enough: float, text: str, do: str) -> Finding:
    return Finding(name, "ok", text) if value >= enough else Finding(name, "warning", text, do)
