"""Which accelerators a rank may see: slots count what is visible on the host, not what is built into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shards.errors import HostError

# NVIDIA's and AMD's, AMD's own, Intel's, Huawei's, Habana's; CUDA and ROCm both read the first one
VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ASCEND_RT_VISIBLE_DEVICES",
             "HABANA_VISIBLE_MODULES")  # fmt: skip


def narrowed(slots: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that leave a host's ranks the accelerators of their slots.

    Parameters
    ----------
    slots : sequence of int
        Numbers of accelerators among those that are visible.
    environment : mapping of str to str
        Of the host; where it names the visible ones itself, slot 1 is the second one that it names.

    Raises
    ------
    HostError
        Where it names fewer.
    """
    if list(slots) == list(range(len(slots))):
        # rank n takes the n-th, whatever is visible
        return {}
    given = {name: environment[name].split(",") for name in VARIABLES if name in environment}
    if not given:
        return {VARIABLES[0]: ",".join(map(str, slots))}
    return {name: _chosen(slots, name, [word.strip() for word in words]) for name, words in given.items()}


def _chosen(slots: Sequence[int], name: str, words: Sequence[str]) -> str:
    # nothing is visible: the ranks compute on the CPU
    if words[0] in ("", "-1"):
        return words[0]
    missing = [slot for slot in slots if slot >= len(words)]
    if missing:
        why = f"{name}={','.join(words)} leaves {len(words)} visible"
        raise HostError(f"there is no slot {missing[0]}", why=why, do="name other slots, or unset the variable there")
    return ",".join(words[slot] for slot in slots)
