"""Which of this host's addresses and interfaces other hosts reach it by; quick to import: agents and ranks use it."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Iterable

import psutil

from shards.errors import HostError

# a host of TEST-NET-1 (RFC 5737), which exists nowhere: the way to it is the default route
ELSEWHERE = "192.0.2.1"
# of no meaning: a datagram socket that is connected sends nothing
PORT = 9
LOOK_S = 0.5


def resolved(host: str, timeout_s: float = 0.0) -> list[str]:
    """Return the addresses of a name, which may get one only once its host is up (a pod's), or raise `HostError`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = socket.getaddrinfo(host, PORT, type=socket.SOCK_DGRAM)
            return list(dict.fromkeys(str(address[0]) for *_, address in found))
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= deadline:
                raise HostError(
                    f"the name '{host}' has no address on this host",
                    where=socket.gethostname(),
                    why=str(error),
                    do=f"getent hosts {host}; or give the address itself",
                ) from None
        time.sleep(LOOK_S)


def address_towards(host: str) -> str | None:
    """Return the address of this host that it uses towards another one, None where there is no way to it."""
    for address in resolved(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, PORT))
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return None


def interface_of(address: str) -> str | None:
    """Return the interface that has an address of this host."""
    if is_loopback(address):
        # all of 127.0.0.0/8 is there, of which it lists 127.0.0.1 alone
        address = "::1" if ":" in address else "127.0.0.1"
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address.partition("%")[0] for entry in entries):
            # an alias of an interface is called eth0:1
            return name.partition(":")[0]
    return None


def interface_towards(host: str, *, across: bool = True) -> str | None:
    """Return the interface for what this host has to say to others: ``GLOO_SOCKET_IFNAME``.

    Parameters
    ----------
    host : str
        The master; this host itself on one of them.
    across : bool
        Whether there are other hosts. They do not hear what is said on the loopback interface, even where the master's
        own host resolves its name to 127.0.1.1, as Debian has it.
    """
    address = address_towards(host)
    if across and (address is None or is_loopback(address)):
        address = address_towards(ELSEWHERE) or address
    return None if address is None else interface_of(address)


def own_addresses() -> list[str]:
    """Return this host's IPv4 addresses but for loopback."""
    entries = (entry for entries in psutil.net_if_addrs().values() for entry in entries)
    return [e.address for e in entries if e.family == socket.AF_INET and not is_loopback(e.address)]


def reachable_address(contacts: Iterable[str]) -> str | None:
    """Return the address of this host at which others reach it, None where that cannot be told.

    Parameters
    ----------
    contacts : iterable of str
        Addresses of a host that all others have reached, which may be this one.
    """
    mine, contacts = own_addresses(), [contact for contact in contacts if not is_loopback(contact)]
    try:
        named = [address for address in resolved(socket.gethostname()) if address in mine]
    except HostError:
        named = []
    theirs = [contact for contact in contacts if contact not in mine]
    if len(theirs) == len(contacts):
        towards = (address_towards(contact) for contact in theirs)
        found = [address for address in towards if address and not is_loopback(address)]
    else:
        # they are this host's own: where it has several, the one that its name stands for
        found = [contact for contact in contacts if contact in named] or [c for c in contacts if c in mine]
    return next(iter([*found, *named]), None)


def is_loopback(address: str) -> bool:
    """Say whether an address is this host's own and nobody else's."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def contacts_in(uris: str) -> list[str]:
    """Return the IPv4 addresses in what Open MPI and PMIx call a URI: ``1.0;tcp://10.0.0.1,10.0.1.1:4711;tcp6://...``."""
    return [a for group in re.findall(r"tcp4?://([\d.,]+):\d+", uris) for a in group.split(",") if a]
