"""Are the hosts ready? Asked of all of them at once, before the first GPU hour is spent.

Each host examines itself (`facts`), what it finds is judged (`judgement`) and compared with the others (`comparison`);
then every host connects to where the ranks will meet, and one rank a host adds up tensors for a second (`collective`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.findings import Finding, failures
from launch.hosts import comparison, judgement
from launch.hosts.hostfile import Host
from launch.hosts.orders import Listener, OrderError, ask_all, at_once
from launch.hosts.remote import Remote
from shards.errors import HostError

if TYPE_CHECKING:
    from pretrain.config import DataConfig

SLOW_S = 0.2
SLOW_BYTES_PER_S = 10e6
PINGS = 3
# what a host's finding is called that says that nothing can be found there
UNREACHED = "host"
FIREWALL = "see whether a firewall drops it, and whether --master-addr is on a network that all hosts share"


@dataclass(frozen=True)
class Request:
    """What the hosts must be ready for.

    Attributes
    ----------
    recipe, out : Path
        The recipe, and the folder of the run.
    data : tuple of str
        What the recipe calls its data sets.
    deepspeed_config : Path, optional
        DeepSpeed's own file.
    address : str, optional
        Where the ranks meet; by default the first host's name.
    port : int
        0: any that is free there.
    environment : mapping of str to str
        Variables of the ranks.
    timeout_s : float
        What a host may take for an answer.
    """

    recipe: Path
    out: Path
    data: tuple[str, ...] = ()
    deepspeed_config: Path | None = None
    address: str | None = None
    port: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0

    @property
    def files(self) -> dict[str, str]:
        """What each file is that the ranks read, by path."""
        return {str(self.recipe): "recipe"} | (
            {str(self.deepspeed_config): "DeepSpeed's config"} if self.deepspeed_config else {}
        )


def places(data: DataConfig) -> tuple[str, ...]:
    """Return what a recipe calls its data sets."""
    sets = data.mix or (data,)
    return tuple(str(place) for one in sets for place in (one.path, *one.overlays))


def preflight(
    remote: Remote, hosts: Sequence[Host], request: Request, report: Callable[[str], None] = lambda line: None
) -> list[Finding]:
    """Check that the hosts can run what is asked for.

    Parameters
    ----------
    remote : Remote
        Reaches them.
    hosts : sequence of Host
        At least one; the ranks meet at the first.
    request : Request
        What they must be ready for.
    report : callable
        Gets a line when a part begins.

    Returns
    -------
    list of Finding
        Everything that was looked at; where a host cannot be reached, what could be found of the others.
    """
    findings: list[Finding] = []
    with ExitStack() as stack:
        listeners = [Listener(host.name, remote, "launch.hosts.examine") for host in hosts]
        for listener in listeners:
            stack.callback(listener.close)
        report(f"each of {len(hosts)} hosts examines itself")
        with _signed(request.out) as (token, sign, problem):
            findings += [problem] if problem else []
            facts, errors = ask_all(
                listeners, "examine", request.timeout_s, files=list(request.files), data=list(request.data),
                out=str(request.out), token=token, sign=sign, names=_names(hosts, request),
                environment=dict(request.environment),
            )  # fmt: skip
        findings += _unreachable(errors)
        up = [listener for listener in listeners if listener.host in facts]
        if facts:
            findings += _judged(facts, hosts, request)
            findings += comparison.clocks(_offsets(up, request.timeout_s))
        port = request.port
        if hosts[0].name in facts:
            port, found = _connected(up, _address(hosts, request), request)
            findings += found
    if len(hosts) > 1 and failures(findings):
        # it would fail for the same reasons, and take its time
        findings.append(Finding("collective", "warning", "not tried, as other checks failed", "mend those first"))
    elif len(hosts) > 1:
        report("one rank a host adds up tensors for a second")
        findings += _collective(remote, hosts, request, port, facts)
    return findings


def unreachable(findings: Sequence[Finding]) -> list[str]:
    """Return the hosts that could not be asked."""
    return [finding.host for finding in failures(findings) if finding.name == UNREACHED]


@contextmanager
def _signed(out: Path) -> Iterator[tuple[str, str, Finding | None]]:
    """Leave a file in the run's folder by which hosts can tell that they see the same one."""
    token, made = secrets.token_hex(16), not out.exists()
    sign, problem = out / f".matloom-{token[:8]}", None
    try:
        out.mkdir(parents=True, exist_ok=True)
        sign.write_text(token)
    except OSError as error:
        text = f"{out} cannot be written where the run is started: {error.strerror}"
        problem = Finding("disk", "failed", text, "choose another folder by --out")
    try:
        yield token, sign.name, problem
    finally:
        with suppress(OSError):
            sign.unlink(missing_ok=True)
            if made:
                out.rmdir()


def _judged(facts: Mapping[str, Any], hosts: Sequence[Host], request: Request) -> Iterator[Finding]:
    from launch.hosts.facts import file_sha256
    from shards.urls import without_secrets

    slots = {host.name: host.slots for host in hosts}
    for host, found in facts.items():
        for finding in _of_one(found, slots[host]):
            yield replace(finding, host=host)
    yield from comparison.code(facts)
    yield from comparison.versions(facts)
    here = {path: file_sha256(path) for path in request.files}
    yield from comparison.files(facts, here, request.files)
    shown = {i: without_secrets(place) if "://" in place else place for i, place in enumerate(request.data)}
    yield from comparison.data(facts, shown)
    kinds = {host: bool(found["accelerators"]["devices"]) for host, found in facts.items()}
    _, odd = comparison.odd_ones(kinds)
    for host in odd:
        text = "it has accelerators and most hosts have none" if kinds[host] else "no accelerator, unlike most hosts"
        yield Finding("accelerator", "failed", text, "leave it out by --exclude, or mend its driver", host)
    if len(hosts) > 1:
        yield from comparison.names(facts, _address(hosts, request))


def _of_one(found: Mapping[str, Any], slots: Sequence[int]) -> Iterator[Finding]:
    ranks = len(slots)
    yield from (finding for finding in judgement.packages(found["versions"]) if finding.status != "ok")
    yield judgement.memory(found["memory_bytes"], ranks)
    yield judgement.shared_memory(found["shared_memory_bytes"], ranks)
    yield judgement.open_files(*found["open_files"])
    yield judgement.disk(found["folder"], shared=True)
    yield from judgement.accelerators(found["accelerators"], slots)


def _offset(listener: Listener, timeout_s: float) -> tuple[float, float] | None:
    """Return how far a host's clock is ahead of this one, and half the time of the quickest of three questions."""
    best: tuple[float, float] | None = None
    with suppress(HostError):
        for _ in range(PINGS):
            began, at = time.perf_counter(), time.time()
            theirs = listener.ask("clock", timeout_s)
            half = (time.perf_counter() - began) / 2
            best = (theirs - at - half, half) if best is None or half < best[1] else best
    return best


def _offsets(listeners: Sequence[Listener], timeout_s: float) -> dict[str, tuple[float, float]]:
    found = at_once(lambda listener: _offset(listener, timeout_s), listeners)
    return {listener.host: offset for listener, offset in zip(listeners, found, strict=True) if offset is not None}


def _connected(listeners: Sequence[Listener], address: str, request: Request) -> tuple[int, list[Finding]]:
    """Open the port where the ranks will meet, and let every host connect to it."""
    first, token, patience = listeners[0], secrets.token_hex(8), request.timeout_s
    try:
        port = first.ask("open", patience, port=request.port, token=token)
    except OrderError as error:
        do = "choose another --master-port, or end what listens there"
        text = f"port {request.port} is not free: {_reason(error)}"
        return request.port, [Finding("port", "failed", text, do, first.host)]
    except HostError as error:
        return request.port, list(_unreachable({first.host: error}))
    findings = [Finding("port", "ok", f"{port} is free", host=first.host)]
    if len(listeners) > 1:
        findings += _reached(listeners, address, port, token, patience)
    with suppress(HostError):
        first.ask("close", patience)
    return port, findings


def _reached(
    listeners: Sequence[Listener], address: str, port: int, token: str, patience_s: float
) -> Iterator[Finding]:
    times, errors = ask_all(
        listeners, "reach", patience_s, address=address, port=port, token=token, timeout_s=patience_s / 2
    )
    for host, error in errors.items():
        if isinstance(error, OrderError):
            text = f"no connection to {address}:{port}: {_reason(error)}"
            yield Finding("network", "failed", text, FIREWALL, host)
        else:
            yield from _unreachable({host: error})
    slow = {host: seconds for host, seconds in times.items() if seconds > SLOW_S}
    for host, seconds in slow.items():
        text = f"{_ms(seconds)} to {address} and back"
        yield Finding("network", "warning", text, "see its cable and route: ping, mtr", host)
    if not errors and not slow:
        yield Finding("network", "ok", f"{_ms(max(times.values()))} to {address}:{port} and back")


def _collective(
    remote: Remote, hosts: Sequence[Host], request: Request, port: int, facts: Mapping[str, Any]
) -> Iterator[Finding]:
    cuda = all(found["accelerators"]["devices"] for found in facts.values())
    with ExitStack() as stack:
        members = [Listener(host.name, remote, "launch.hosts.collective") for host in hosts]
        for member in members:
            stack.callback(member.close)
        patience = request.timeout_s
        came, errors = ask_all(
            members, "come", 2 * patience, *({"rank": rank} for rank in range(len(hosts))), world=len(hosts),
            address=_address(hosts, request), port=port, timeout_s=patience, environment=dict(request.environment),
        )  # fmt: skip
        for rank in came.get(hosts[0].name, []):
            errors.setdefault(hosts[rank].name, HostError(f"it has not come within {patience:.0f} s"))
        results: dict[str, Any] = {}
        if not errors:
            each = ({"slot": host.slots[0] if cuda else None} for host in hosts)
            results, errors = ask_all(members, "reduce", patience, *each, timeout_s=patience / 2)
    for host, error in errors.items():
        do = (
            error.do or "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs) to the interface that hosts share: ip addr"
        )
        yield Finding("collective", "failed", error.what, do, host)
    if results and not errors:
        speed = min(result["bytes_per_s"] for result in results.values())
        latency = max(result["latency_s"] for result in results.values())
        text = f"{'nccl' if cuda else 'gloo'}, {speed / 1e6:.3g} MB/s, {_ms(latency)}"
        slow = speed < SLOW_BYTES_PER_S or latency > SLOW_S
        yield Finding(
            "collective", "warning" if slow else "ok", text, "see the network between the hosts" if slow else ""
        )


def _unreachable(errors: Mapping[str, HostError]) -> Iterator[Finding]:
    for host, error in errors.items():
        why = f" ({error.why})" if error.why else ""
        yield Finding(UNREACHED, "failed", f"{error.what}{why}", error.do or "", host)


def _reason(error: OrderError) -> str:
    """Return an error of a host without the name of its class."""
    return error.what.partition(": ")[2] or error.what


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds > 0.01 else f"{1e3 * seconds:.2g} ms"


def _address(hosts: Sequence[Host], request: Request) -> str:
    return request.address or hosts[0].name


def _names(hosts: Sequence[Host], request: Request) -> list[str]:
    return list(dict.fromkeys([_address(hosts, request), *(host.name for host in hosts)]))
