"""Who moves an alias next: a lock that takes the right to write on the registered model.

MLflow's tags and aliases are overwritten by whoever comes last. What can be taken once is the name of an experiment;
but anybody may create one. So the one to make promotion N of an alias is found in two steps:

1. Who wants to puts the record of the promotion among the tags of the model, with the sha256 of a secret: the intent.
   That takes the right to write on the model.
2. They create the experiment of that number, with the secret. Whose claim this is, the intents say; a claim of nobody
   who has written an intent is foreign: it is passed over, for the next of a row of names.

A secret is known to nobody before it is used, so no claim can be made in another's name. The names are made of the
record before, so they cannot be taken beforehand by somebody who may not read the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from shards.errors import RegistryError

PREFIX = "matloom promotion"
TAG = "matloom.promotion"
INTENT = "matloom.intent"
# claims that are passed over; each costs a request
FOREIGN = 200


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One move of an alias.

    Attributes
    ----------
    number : int
        Counts from 1.
    alias, version : str
        What points to which version since then.
    previous : str
        The version before, "" where there was none.
    who, why, metric : str
        The user, the reason, and the metric (with its value) that it was decided by.
    time_ms : int
        When, since 1970.
    back : bool
        A rollback.
    mark : str
        sha256 of the secret that it was claimed with.
    """

    number: int
    alias: str
    version: str
    previous: str
    who: str
    why: str
    metric: str
    time_ms: int
    back: bool = False
    mark: str = ""


class OvertakenError(Exception):
    """Somebody else moved the alias at the same moment; ``winner`` is their promotion."""

    def __init__(self, winner: Promotion) -> None:
        super().__init__(f"version {winner.version} was promoted at the same moment by {winner.who}")
        self.winner = winner


def claim(client: Any, name: str, record: Promotion, after: Promotion | None) -> Promotion:
    """Become the one who makes promotion ``record.number``, which follows ``after``; return the record as it counts.

    Raises
    ------
    OvertakenError
        Where somebody else has become that.
    RegistryError
        Where too many names are taken by others who may not promote.
    """
    from mlflow.exceptions import MlflowException

    secret = secrets.token_hex(16)
    record = replace(record, mark=_mark(secret))
    client.set_registered_model_tag(name, _intent(record), json.dumps(asdict(record)))
    for title in _titles(name, record.alias, record.number, after):
        try:
            client.delete_experiment(client.create_experiment(title, tags={TAG: secret}))
            return record
        except MlflowException:
            taken = client.get_experiment_by_name(title)
            if taken is None:
                raise
        # the tags are read after the claim: an intent is there before it
        winner = _owner(taken, client.get_registered_model(name).tags, record.alias, record.number)
        if winner == record:
            # the answer to an earlier try was lost
            return record
        if winner is not None:
            _forget(client, name, _intent(record))
            raise OvertakenError(winner)
    _forget(client, name, _intent(record))
    raise RegistryError(
        f"promotion {record.number} of '{record.alias}' of '{name}' is blocked",
        why=f"{FOREIGN} experiments have its names, and nobody who may write on the model has made them",
        do=f"have those removed whose names begin with '{title.rpartition(' ')[0]}' (mlflow gc), see who makes them",
    )


def claimed(
    client: Any, name: str, tags: Mapping[str, str], alias: str, number: int, after: Promotion | None
) -> Promotion | None:
    """Return promotion ``number`` where it is claimed and its record has not reached the tags of the model yet."""
    if not any(key.startswith(f"{_key(INTENT, alias, number)}.") for key in tags):
        return None
    for title in _titles(name, alias, number, after):
        taken = client.get_experiment_by_name(title)
        if taken is None:
            return None
        if (owner := _owner(taken, tags, alias, number)) is not None:
            return owner
    return None


def recorded(tags: Mapping[str, str], alias: str, number: int) -> Promotion | None:
    """Return promotion ``number`` as it stands in the tags of the model, None where it does not."""
    return _read(tags.get(_key(TAG, alias, number), ""), alias, number)


def numbers(tags: Mapping[str, str], alias: str) -> list[int]:
    """Return the numbers that promotions in the tags of the model have, and those that somebody wants to make."""
    kinds = re.compile(rf"(?:{re.escape(TAG)}|{re.escape(INTENT)})\.{re.escape(alias)}\.([0-9]{{6,9}})(?:\.\w+)?")
    return sorted({int(match[1]) for match in map(kinds.fullmatch, tags) if match})


def write_record(client: Any, name: str, record: Promotion) -> None:
    """Write a promotion, which is claimed, into the tags of the model."""
    client.set_registered_model_tag(name, _key(TAG, record.alias, record.number), json.dumps(asdict(record)))


def tidy(client: Any, name: str, record: Promotion, tags: Mapping[str, str]) -> None:
    """Take away the intents up to a promotion that is written: it is decided."""
    for number in numbers(tags, record.alias):
        begins = f"{_key(INTENT, record.alias, number)}."
        for key in tags if number <= record.number else ():
            if key.startswith(begins):
                _forget(client, name, key)


def _owner(taken: Any, tags: Mapping[str, str], alias: str, number: int) -> Promotion | None:
    """Return the promotion that a claim belongs to, None where it is foreign."""
    mark = _mark(taken.tags.get(TAG, ""))
    for record in (recorded(tags, alias, number), _read(tags.get(_named(alias, number, mark), ""), alias, number)):
        if record is not None and record.mark == mark:
            return record
    return None


def _titles(name: str, alias: str, number: int, after: Promotion | None) -> Iterator[str]:
    """Yield the names of the experiments that claim a promotion, within what databases hold."""
    for attempt in range(FOREIGN):
        parts = json.dumps([name, alias, number, after.mark if after else "", attempt])
        yield f"{PREFIX} {name[:80]}@{alias[:40]} {number} {hashlib.sha256(parts.encode()).hexdigest()[:20]}"


def _mark(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _intent(record: Promotion) -> str:
    return _named(record.alias, record.number, record.mark)


def _named(alias: str, number: int, mark: str) -> str:
    return f"{_key(INTENT, alias, number)}.{mark[:20]}"


def _key(kind: str, alias: str, number: int) -> str:
    return f"{kind}.{alias}.{number:06d}"


def _forget(client: Any, name: str, key: str) -> None:
    from mlflow.exceptions import MlflowException

    # somebody else may have tidied up already
    with suppress(MlflowException):
        client.delete_registered_model_tag(name, key)


def _read(text: str, alias: str, number: int) -> Promotion | None:
    """Return a stored record, None where somebody else wrote something of that name."""
    try:
        record = Promotion(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    words = (record.version, record.previous, record.who, record.why, record.metric, record.mark)
    sound = all(isinstance(word, str) for word in words) and isinstance(record.time_ms, int)
    return record if sound and (record.alias, record.number) == (alias, number) else None
