"""Which hosts a run uses and how many ranks each has: hostfiles, and what `--include` and `--exclude` leave of them.

The grammar is that of DeepSpeed's launcher (deepspeed/launcher/runner.py, version 0.19): a host a line,
``worker-0 slots=4``, and filters ``NAME[:SLOT[,SLOT ...]][@NAME...]``. What DeepSpeed refuses is refused here. What it
takes and makes something else of than its writer meant is refused too, as are names that ssh or a shell would not take
for the name of a host.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from shards.errors import ConfigError, suggest

ENTRY = re.compile(r"(\S+)\s+slots=(\S+)(?:\s+(.*))?", re.DOTALL)
# labels of RFC 1123, and the underscore that some clusters use; nothing that a shell or ssh reads as more than a name
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
NUMBER = re.compile(r"[0-9]{1,6}")
LINE = "write 'NAME slots=NUMBER', as in 'worker-0 slots=4'"
MOST_SLOTS = 1024


@dataclass(frozen=True)
class Host:
    """A host, by the name that ssh reaches it by.

    Parameters
    ----------
    name : str
        Host name or address.
    slots : tuple of int
        Numbers of its accelerators, or of its processes where there are none, that the run uses; a rank for each.
    """

    name: str
    slots: tuple[int, ...]


def read_hostfile(path: Path) -> list[Host]:
    """Read a hostfile, or raise `ConfigError`; lines that begin with ``#`` and empty lines are passed over."""
    if not path.is_file():
        raise ConfigError("the hostfile is missing", where=path, do="correct --hostfile, or leave it out for this host")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the hostfile cannot be read", where=path, why=str(error)) from None
    # of each machine, by one name for all that it is called
    hosts: dict[str, Host] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        host = _entry(line, where)
        before = hosts.setdefault(_machine(host.name), host)
        if before is not host:
            other = f", as '{before.name}' before" if before.name.lower() != host.name.lower() else ""
            what = f"host '{host.name}' stands there twice{other}"
            raise ConfigError(what, where=where, do="add its slots up in one line")
    if not hosts:
        raise ConfigError("the hostfile names no host", where=path, do=LINE)
    return list(hosts.values())


def refuse_loopback(hosts: Sequence[Host], address: str | None) -> None:
    """Raise `ConfigError` where one host of several has a name by which each of the others means itself.

    Parameters
    ----------
    hosts : sequence of Host
        Those of a run, where any may come to be the first one after others are lost.
    address : str, optional
        Of ``--master-addr``, by which the others find the first host whatever it is called here.
    """
    if len(hosts) < 2:
        return
    for host in hosts[1 if address else 0 :]:
        if is_loopback(host.name):
            do = "give the hostfile the name that all hosts know it by"
            do += ", or --master-addr" if host is hosts[0] else ""
            raise ConfigError(f"the other hosts cannot reach '{host.name}' by that name", do=do)


def is_loopback(name: str) -> bool:
    """Say whether a name or address means this host wherever it is said."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _machine(name: str) -> str:
    """Return one name for all names of this host, and the name itself for others; they do not differ by case."""
    here = socket.gethostname().lower()
    own = is_loopback(name) or name.lower() in (here, here.partition(".")[0])
    return "localhost" if own else name.lower()


def filtered(hosts: Sequence[Host], include: str = "", exclude: str = "") -> list[Host]:
    """Return the hosts, in their order, with the slots that a filter leaves them.

    Parameters
    ----------
    hosts : sequence of Host
        Those of a hostfile.
    include, exclude : str
        ``worker-0@worker-1:0,2``: all slots of worker-0, and slots 0 and 2 of worker-1. One of the two at most.

    Raises
    ------
    ConfigError
        Where a filter is misspelt, names what is not there or the same thing twice, or leaves nothing.
    """
    if include and exclude:
        raise ConfigError("--include and --exclude cannot be used together", do="leave one of them out")
    if not include and not exclude:
        return list(hosts)
    option = "--include" if include else "--exclude"
    named = _named(hosts, include or exclude, f"{option} {include or exclude}")
    left = []
    for host in hosts:
        slots = named.get(host.name, set())
        kept = tuple(slot for slot in host.slots if (slot in slots) == bool(include))
        left += [replace(host, slots=kept)] if kept else []
    if not left:
        raise ConfigError("no host is left", where=f"{option} {exclude}", do="exclude fewer")
    return left


def _entry(line: str, where: str) -> Host:
    match = ENTRY.fullmatch(line)
    if not match:
        raise ConfigError(f"{line!r} is no entry of a hostfile", where=where, do=LINE)
    name, slots, rest = match.groups()
    _check_name(name, where)
    if not NUMBER.fullmatch(slots):
        raise ConfigError(f"'slots={slots}' is no number of slots", where=where, do=LINE)
    if not 1 <= int(slots) <= MOST_SLOTS:
        raise ConfigError(
            f"host '{name}' has {int(slots)} slots",
            where=where,
            why=f"1 to {MOST_SLOTS} ranks can run on a host",
            do="correct the number, or remove the line where the host takes no part",
        )
    if rest and not rest.startswith("#"):
        raise ConfigError(f"{rest!r} after the slots of host '{name}' means nothing", where=where, do=LINE)
    return Host(name, tuple(range(int(slots))))


def _check_name(name: str, where: str) -> None:
    if NAME.fullmatch(name) and ".." not in name and len(name) < 254:
        return
    try:
        ip_address(name)
    except ValueError:
        pass
    else:
        # an interface of the machine that reads the name, not of the others
        if "%" not in name:
            return
    raise ConfigError(
        f"{name!r} is no name of a host",
        where=where,
        why="names have letters, digits, dots, hyphens and underscores, and begin and end with a letter or digit",
        do="give users, ports and keys in ssh's configuration, or by --ssh" if "@" in name else LINE,
    )


def _named(hosts: Sequence[Host], text: str, where: str) -> dict[str, set[int]]:
    """Return the slots that a filter names, for each host."""
    known = {host.name: host for host in hosts}
    named: dict[str, set[int]] = {}
    wholes = set()
    for part in text.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in known:
            raise ConfigError(f"host '{name}' is not in the hostfile", where=where, do=suggest(name, known))
        if name in wholes or (name in named and not colon):
            raise ConfigError(f"host '{name}' is named as a whole and once more", where=where, do="name it once")
        slots = named.setdefault(name, set())
        if not colon:
            wholes.add(name)
            slots.update(known[name].slots)
            continue
        for number in numbers.split(","):
            slot = _slot(number, known[name], where)
            if slot in slots:
                raise ConfigError(f"slot {slot} of host '{name}' is named twice", where=where, do="name it once")
            slots.add(slot)
    return named


def _slot(number: str, host: Host, where: str) -> int:
    if not NUMBER.fullmatch(number):
        raise ConfigError(
            f"{number!r} is no number of a slot of host '{host.name}'",
            where=where,
            do=f"write '{host.name}:0,1', or '{host.name}' for all its slots",
        )
    if int(number) not in host.slots:
        raise ConfigError(
            f"host '{host.name}' has no slot {int(number)}",
            where=where,
            why=f"its slots are {', '.join(map(str, host.slots))}",
        )
    return int(number)
