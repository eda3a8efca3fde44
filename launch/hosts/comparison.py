"""What must be the same on all hosts: code, packages, recipe, data, clocks. Who differs from most is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from statistics import median_low
from typing import Any, TypeVar

from launch.findings import Finding, Status

T = TypeVar("T", bound=Hashable)
# a certificate, a log or a build is wrong by seconds at most; by more, somebody's clock is not kept
CLOCK_WARNS_S, CLOCK_FAILS_S = 1.0, 10.0
SHOWN = 3
SHARE = "put the project on storage that all hosts share, or copy it there anew"


def odd_ones(values: Mapping[str, T]) -> tuple[str, list[str]]:
    """Return a host that has what most have, the first one's where there is a tie, and those that have not."""
    counts = Counter(values.values())
    reference = max(values, key=lambda host: counts[values[host]])
    return reference, [host for host in values if values[host] != values[reference]]


def code(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare the Python files of the project."""
    codes = {host: found["code"] for host, found in facts.items()}
    reference, odd = odd_ones({host: frozenset(files.items()) for host, files in codes.items()})
    for host in odd:
        theirs, ours = codes[host], codes[reference]
        files = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        yield Finding("code", "failed", f"{_some(files)} not as on {reference}", SHARE, host)
    if not odd:
        yield Finding("code", "ok", f"{len(codes[reference])} files")


def versions(facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare Python and the packages that the project asks for, and what the accelerators are driven by."""
    of = {host: _versions(found) for host, found in facts.items()}
    names = list(dict.fromkeys(name for found in of.values() for name in found))
    different = False
    for name in names:
        values = {host: found.get(name) for host, found in of.items()}
        reference, odd = odd_ones(values)
        for host in odd:
            different = True
            do = f"pip install '{name}=={values[reference]}' there" if name in facts[host]["versions"] else ""
            do = do or f"install {name} {values[reference]} there"
            text = f"{name} {values[host]}, but {values[reference]} on {reference}"
            yield Finding("versions", "warning" if name == "driver" else "failed", text, do, host)
    if not different:
        yield Finding("versions", "ok", f"python and {len(names) - 1} packages")


def files(
    facts: Mapping[str, Mapping[str, Any]], here: Mapping[str, str], names: Mapping[str, str]
) -> Iterator[Finding]:
    """Compare files with those of the controller, which has planned the run by them.

    Parameters
    ----------
    facts : mapping
        By host.
    here : mapping of str to str
        sha256 of the controller's, by path.
    names : mapping of str to str
        What each file is.
    """
    for path, name in names.items():
        odd = [host for host, found in facts.items() if found["files"][path] != here[path]]
        for host in odd:
            theirs = facts[host]["files"][path]
            text = f"{path}: {theirs}" if ":" in theirs else f"{path} is another one than where the run was started"
            yield Finding(name, "failed", text, "put it on storage that all hosts share, or copy it there", host)
        if not odd:
            yield Finding(name, "ok", f"{path}, sha256 {here[path][:12]}")


def data(facts: Mapping[str, Mapping[str, Any]], places: Mapping[int, str]) -> Iterator[Finding]:
    """Compare the manifests of the data sets, whose names without secrets are given by their number."""
    for number, place in places.items():
        found = {host: facts[host]["data"][number] for host in facts}
        if place.startswith("embedded:") and all("error" in manifest for manifest in found.values()):
            text = f"{place} is not built yet, the first rank does it"
            yield Finding("data", "warning", text, "MATLOOM_CACHE must be a folder that all hosts share")
            continue
        bad = {host: manifest["error"] for host, manifest in found.items() if "error" in manifest}
        for host, why in bad.items():
            yield Finding("data", "failed", f"{place}: {why}", "put it on storage that all hosts share", host)
        good = {host: manifest["sha256"] for host, manifest in found.items() if "sha256" in manifest}
        if not good:
            continue
        reference, odd = odd_ones(good)
        for host in odd:
            text = f"the manifest of {place} is another one than on {reference}"
            yield Finding("data", "failed", text, "copy the data set there anew: matloom shards fetch", host)
        if not odd and not bad:
            yield Finding("data", "ok", f"{place}, manifest {good[reference][:12]}")


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Iterator[Finding]:
    """Compare the clocks.

    Parameters
    ----------
    offsets : mapping of str to (float, float)
        By host: how far its clock is ahead of the controller's, in seconds, and by how much that may be wrong: half
        the time of request and answer (RFC 5905, section 8).
    """
    # the controller's own clock is one of them
    middle = median_low([0.0, *(offset for offset, _ in offsets.values())])
    skewed = False
    for host, (offset, error) in offsets.items():
        skew = offset - middle
        if abs(skew) - error > CLOCK_WARNS_S:
            skewed = True
            status: Status = "failed" if abs(skew) - error > CLOCK_FAILS_S else "warning"
            text = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the others"
            yield Finding("clock", status, text, "let NTP keep it: timedatectl set-ntp true, or chronyc makestep", host)
    if not skewed:
        widest = max((abs(offset - middle) + error for offset, error in offsets.values()), default=0.0)
        yield Finding("clock", "ok", f"within {widest:.2g} s")


def names(facts: Mapping[str, Mapping[str, Any]], master: str) -> Iterator[Finding]:
    """Judge what the hosts make of the others' names."""
    fine = True
    for host, found in facts.items():
        for name, addresses in found["names"].items():
            if isinstance(addresses, str):
                fine = False
                # the ranks ask for the master's alone
                status: Status = "failed" if name == master else "warning"
                do = "name it in DNS or in /etc/hosts there, or give --master-addr as an address"
                yield Finding("names", status, f"it does not know '{name}': {addresses}", do, host)
    if fine:
        yield Finding("names", "ok", "every host knows every name")


def _versions(found: Mapping[str, Any]) -> dict[str, str | None]:
    accelerators = found["accelerators"]
    return {
        "python": found["python"],
        **found["versions"],
        **{name: accelerators[name] for name in ("nccl", "driver") if accelerators[name]},
    }


def _some(files: list[str]) -> str:
    shown = ", ".join(files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"{shown}{more} {'is' if len(files) == 1 else 'are'}"
