"""Hostfiles and filters against DeepSpeed's own parser: equal, or refused, with each difference named here."""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
from deepspeed.launcher.runner import fetch_hostfile, parse_inclusion_exclusion

from launch.hosts.hostfile import Host, filtered, read_hostfile, refuse_loopback
from shards.errors import ConfigError

FUZZED = 1000
OWN_NAMES = ["localhost", "127.0.0.1", socket.gethostname()]
GOOD_NAMES = ["worker-0", "worker-1", "w2", "node_3.example.org", "10.0.0.4", "fd00::1", *OWN_NAMES]
BAD_NAMES = ["-oProxyCommand=id", "a;id", "$(id)", "root@w2", "../w2", "w2|w3", "w..2", "é", "w2-", "a`b`"]
NOISE = list("@:,=#-$;x0 1\t\r\n²٣\u00a0\u2028\x0b\x00_+")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """DeepSpeed logs each text that it refuses."""
    log = logging.getLogger("DeepSpeed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


def has_odd_name(pool: dict[str, int], text: str) -> bool:
    return any(
        not re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][\w.-]*[A-Za-z0-9]", name, re.A) or ".." in name for name in pool
    )


def slots_of(text: str) -> list[str]:
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n")]
    return [line.split("slots=", 1)[1] for line in lines if "slots=" in line and not line.startswith("#")]


# what DeepSpeed takes and we do not: our words for it, and whether that is in the text that was refused
FILE_DIFFERENCES: dict[str, Callable[[dict[str, int], str], bool]] = {
    "is no name of a host": has_odd_name,
    "has 0 slots": lambda pool, text: 0 in pool.values(),
    "has [0-9]{4,} slots": lambda pool, text: max(pool.values()) > 1024,
    "stands there twice": lambda pool, text: (
        len({"" if name.lower() in map(str.lower, OWN_NAMES) else name.lower() for name in pool}) < len(pool)
    ),
    "is no number of slots": lambda pool, text: any(
        not re.fullmatch(r"[0-9]{1,6}", rest.split()[0]) for rest in slots_of(text)
    ),
    "means nothing": lambda pool, text: any(
        len(rest.split(None, 1)) > 1 and not rest.split(None, 1)[1].startswith("#") for rest in slots_of(text)
    ),
}
FILTER_DIFFERENCES: dict[str, Callable[[str], bool]] = {
    "is no number of a slot": lambda text: any(
        not re.fullmatch("[0-9]{1,6}", number) for part in text.split("@") for number in part.split(":")[-1].split(",")
    ),
    "is named as a whole and once more": lambda text: max(Counter(named_hosts(text)).values()) > 1,
    "is named twice": lambda text: max(Counter(named_slots(text)).values()) > 1,
    "no host is left": lambda text: True,
}


def named_hosts(text: str) -> list[str]:
    return [part.split(":")[0] for part in text.split("@")]


def named_slots(text: str) -> list[tuple[str, int]]:
    parts = [part.split(":") for part in text.split("@") if ":" in part]
    return [(name, int(number)) for name, numbers in parts for number in numbers.split(",")]


def deepspeeds(function: Callable[..., Any], *args: Any) -> Any:
    """What DeepSpeed makes of it, or None where it refuses."""
    try:
        return function(*args)
    except ValueError:
        return None


def ours(function: Callable[..., list[Host]], *args: Any) -> list[Host] | str:
    try:
        return function(*args)
    except ConfigError as error:
        return error.what


def hostfile(luck: Random) -> str:
    names = luck.sample(GOOD_NAMES, luck.randint(0, 4))
    if luck.random() < 0.2:
        names.append(luck.choice([*BAD_NAMES, *GOOD_NAMES, *map(str.upper, names)]))
    return mutated("\n".join([entry(name, luck) for name in names]), luck)


def entry(name: str, luck: Random) -> str:
    if luck.random() < 0.05:
        return luck.choice(["", "# rack 1", "  ", "worker-9", "slots=4", "w2 slot=4", "w2, slots=4"])
    slots = luck.choice(["1", "2", "4", "8"] * 20 + ["0", "-1", "2x", "1025", "999999999", "", "1.5", "0x2", "02"])
    after = luck.choice([""] * 20 + [" # rack 3", " max_slots=4", " slots=2", " "])
    return f"{name}{luck.choice([' ', '  ', chr(9)])}slots={slots}{after}"


def filter_of(luck: Random) -> str:
    parts = []
    for _ in range(luck.randint(1, 3)):
        name = luck.choice(["worker-0", "worker-1", "w2"] * 20 + ["w9", "", "WORKER-0", " w2"])
        numbers = luck.choices(
            ["0", "1", "2"] * 20 + ["3", "8", "-1", "+1", "0_1", "", " 1", "x", "1:2"], k=luck.randint(0, 2)
        )
        parts.append(f"{name}:{','.join(numbers)}" if numbers else name)
    return mutated("@".join(parts), luck)


def mutated(text: str, luck: Random) -> str:
    """A text, in a fifth of the cases with one to three characters inserted, replaced or removed."""
    for _ in range(luck.choice([0] * 8 + [1, 3])):
        place = luck.randint(0, len(text))
        text = text[:place] + luck.choice(["", *NOISE]) + text[place + luck.randint(0, 1) :]
    return text


def as_pairs(hosts: list[Host]) -> list[tuple[str, list[int]]]:
    return [(host.name, list(host.slots)) for host in hosts]


def test_fuzzed_hostfiles_are_read_as_deepspeed_reads_them(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    path = tmp_path / "hosts"
    for seed in range(FUZZED):
        text = hostfile(Random(seed))
        path.write_bytes(text.encode())
        theirs, mine = deepspeeds(fetch_hostfile, str(path)), ours(read_hostfile, path)
        if theirs is None:
            assert isinstance(mine, str), f"DeepSpeed refuses {text!r}"
            counts["both refuse"] += 1
        elif isinstance(mine, list):
            assert as_pairs(mine) == [(name, list(range(slots))) for name, slots in theirs.items()], text
            counts["equal"] += 1
        else:
            name = next(name for name in FILE_DIFFERENCES if re.search(name, mine))
            assert FILE_DIFFERENCES[name](theirs, text), f"{mine}: {text!r}"
            counts[name] += 1
    print(f"\nhostfiles: {dict(counts)}")
    assert counts["equal"] >= FUZZED / 4 and set(counts) == {"equal", "both refuse", *FILE_DIFFERENCES}


def test_fuzzed_filters_leave_what_deepspeeds_leave() -> None:
    pool = {"worker-0": 4, "worker-1": 2, "w2": 3}
    hosts = [Host(name, tuple(range(slots))) for name, slots in pool.items()]
    counts: Counter[str] = Counter()
    for seed in range(FUZZED):
        luck = Random(seed)
        which = luck.choice(["include", "exclude"] * 10 + ["both", "neither"])
        include = filter_of(luck) if which in ("include", "both") else ""
        exclude = filter_of(luck) if which in ("exclude", "both") else ""
        theirs = deepspeeds(parse_inclusion_exclusion, pool, include, exclude)
        mine = ours(filtered, hosts, include, exclude)
        if theirs is None:
            assert isinstance(mine, str), f"DeepSpeed refuses {include!r} {exclude!r}"
            counts["both refuse"] += 1
        elif isinstance(mine, list):
            assert as_pairs(mine) == [(name, slots) for name, slots in theirs.items()], (include, exclude)
            counts["equal"] += 1
        else:
            name = next(name for name in FILTER_DIFFERENCES if re.search(name, mine))
            assert FILTER_DIFFERENCES[name](include or exclude), f"{mine}: {include!r} {exclude!r}"
            assert name != "no host is left" or not theirs
            counts[name] += 1
    print(f"\nfilters: {dict(counts)}")
    assert counts["equal"] >= FUZZED / 4 and set(counts) == {"equal", "both refuse", *FILTER_DIFFERENCES}


def test_a_missing_hostfile_is_an_error(tmp_path: Path) -> None:
    # DeepSpeed trains on the local machine
    assert fetch_hostfile(str(tmp_path / "hosts")) is None
    for path in (tmp_path / "hosts", tmp_path):
        with pytest.raises(ConfigError, match="the hostfile is missing"):
            read_hostfile(path)


def test_what_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"worker-0 slots=\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "hosts")


def test_an_error_says_where_and_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# ours\n\nworker-0 slots=4\nworker-1: slots=4\n")
    with pytest.raises(ConfigError) as caught:
        read_hostfile(path)
    assert caught.value.where == f"{path}, line 4"
    with pytest.raises(ConfigError, match="did you mean 'worker-1'"):
        filtered([Host("worker-0", (0,)), Host("worker-1", (0,))], include="wroker-1")


@pytest.mark.parametrize("names", [(socket.gethostname(), "127.0.0.1"), ("::1", "LOCALHOST")])
def test_this_host_by_two_names_is_one_host(tmp_path: Path, names: tuple[str, str]) -> None:
    (tmp_path / "hosts").write_text("".join(f"{name} slots=1\n" for name in ("node-a", *names)))
    with pytest.raises(ConfigError, match=f"'{names[1]}' stands there twice, as '{names[0]}' before"):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("names", "address", "refused"),
    [
        (["localhost"], None, False),
        (["a", "b"], None, False),
        (["localhost", "b"], None, True),
        (["localhost", "b"], "10.0.0.1", False),
        # it would be the first one once the others are lost
        (["a", "localhost", "b"], None, True),
        (["a", "127.0.1.1"], "10.0.0.1", True),
        (["a", "::1"], None, True),
    ],
)
def test_of_several_hosts_none_has_a_name_by_which_each_means_itself(
    names: list[str], address: str | None, refused: bool
) -> None:
    with pytest.raises(ConfigError, match="cannot reach") if refused else nullcontext():
        refuse_loopback([Host(name, (0,)) for name in names], address)


def test_the_example_of_the_docs() -> None:
    hosts = read_hostfile(Path(__file__).resolve().parents[3] / "docs" / "examples" / "launch" / "hosts")
    assert [(host.name, len(host.slots)) for host in hosts] == [("worker-0", 8), ("worker-1", 8), ("10.0.0.12", 4)]
