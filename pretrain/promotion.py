"""Moving an alias of a registered model: one winner at a time, and a history that is only added to.

MLflow's aliases and tags are overwritten by whoever comes last. The name of an experiment is unique in every store,
so promotion N of an alias is the experiment ``matloom promotion NAME@ALIAS N``: who creates it has won, and what it
says (tags) is written in the same transaction. It is deleted at once, which hides it from lists, keeps the name taken
and leaves it readable; a copy of the record stands in the tags of the registered model.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

PREFIX = "matloom promotion"
TAG = "matloom.promotion"
CHAMPION = "champion"
SCORE_TAG = "matloom.score"
# tags of MLflow hold 5,000 characters
MOST = 1000


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


class OvertakenError(Exception):
    """Somebody else moved the alias at the same moment; ``winner`` is their promotion."""

    def __init__(self, winner: Promotion) -> None:
        super().__init__(f"version {winner.version} was promoted at the same moment by {winner.who}")
        self.winner = winner


def somebody() -> str:
    """Return who is at work here: the user of the server, or of this machine."""
    name = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def history(client: Any, name: str, alias: str) -> list[Promotion]:
    """Return the promotions of an alias, the first first."""
    found = {}
    tags = client.get_registered_model(name).tags
    for key, text in tags.items():
        number = key.removeprefix(f"{TAG}.{alias}.")
        if number.isdecimal() and (record := _read(text, alias, int(number))) is not None:
            found[record.number] = record
    # a promotion that was cut off before its record reached the tags has happened all the same, the last or not
    last, number = max(found, default=0), 1
    while True:
        if number not in found:
            record = _claimed(client, name, alias, number)
            if record is not None:
                found[number] = record
            elif number > last:
                break
        number += 1
    return [found[number] for number in sorted(found)]


def current(client: Any, name: str, alias: str) -> str:
    """Return the version that an alias points to, "" where it points to none."""
    return str(dict(client.get_registered_model(name).aliases).get(alias, ""))


def promote(
    client: Any,
    name: str,
    alias: str,
    version: str,
    *,
    who: str,
    why: str,
    metric: str = "",
    after: int | None = None,
    back: bool = False,
) -> Promotion:
    """Let an alias point to a version.

    Parameters
    ----------
    client : MlflowClient
        Of the store.
    name, alias, version : str
        What is to point where.
    who, why, metric : str
        For the history.
    after : int, optional
        Number of the promotion that the decision was based on, 0 for none; by default the last one now.
    back : bool
        A rollback.

    Raises
    ------
    OvertakenError
        Where there has been another promotion since; nothing has changed then.
    """
    before = history(client, name, alias)
    last = len(before) and before[-1].number
    if after is not None and last != after:
        raise OvertakenError(before[-1])
    record = Promotion(
        number=last + 1,
        alias=alias,
        version=version,
        previous=current(client, name, alias),
        who=who[:MOST],
        why=why[:MOST],
        metric=metric[:MOST],
        time_ms=int(time.time() * 1000),
        back=back,
    )
    _claim(client, name, record)
    _carry_out(client, name, record)
    return record


def contend(client: Any, name: str, version: str, score: float, contest: Mapping[str, str]) -> None:
    """Make a version champion if it wins the contest, whoever else is at it at the same moment.

    Parameters
    ----------
    client : MlflowClient
        Of the store.
    name, version : str
        The registered model's.
    score : float
        Higher is better.
    contest : mapping of str to str
        What makes scores comparable, which stands in the tags of every version.
    """
    while True:
        before = history(client, name, CHAMPION)
        # also whoever has won already, and is about to move the alias
        held = {current(client, name, CHAMPION), before[-1].version if before else ""} - {""}
        if any(not _beats(client, name, version, score, contest, holder) for holder in held):
            return
        metric = f"{contest.get('metric', 'score')} = {score:.6g}"
        with suppress(OvertakenError):
            after = before[-1].number if before else 0
            why = "the best of its contest when it was registered"
            promote(client, name, CHAMPION, version, who=somebody(), why=why, metric=metric, after=after)
            return


def _beats(client: Any, name: str, version: str, score: float, contest: Mapping[str, str], holder: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_model_version(name, holder).tags
    except MlflowException as error:
        # a record may name a version that was deleted since, or that never was
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return True
    comparable = all(tags.get(key) == value for key, value in contest.items())
    return holder != version and comparable and score > float(tags.get(SCORE_TAG, "-inf"))


def _carry_out(client: Any, name: str, record: Promotion) -> None:
    """Move the alias; where somebody has been promoted since, to theirs: the last promotion counts, not the writer.

    Theirs counts once it stands in the tags of the model: everybody may create an experiment, but not write there. Who
    has not come so far sets the alias after this.
    """
    while True:
        client.set_registered_model_tag(name, _key(record.alias, record.number), json.dumps(asdict(record)))
        client.set_registered_model_alias(name, record.alias, record.version)
        text = client.get_registered_model(name).tags.get(_key(record.alias, record.number + 1), "")
        following = _read(text, record.alias, record.number + 1)
        if following is None:
            return
        record = following


def _key(alias: str, number: int) -> str:
    return f"{TAG}.{alias}.{number:06d}"


def _claim(client: Any, name: str, record: Promotion) -> None:
    from mlflow.exceptions import MlflowException

    try:
        experiment_id = client.create_experiment(
            _title(name, record.alias, record.number), tags={TAG: json.dumps(asdict(record))}
        )
    except MlflowException:
        winner = _claimed(client, name, record.alias, record.number)
        if winner is None:
            raise
        raise OvertakenError(winner) from None
    client.delete_experiment(experiment_id)


def _claimed(client: Any, name: str, alias: str, number: int) -> Promotion | None:
    experiment = client.get_experiment_by_name(_title(name, alias, number))
    return None if experiment is None else _read(experiment.tags.get(TAG, ""), alias, number)


def _title(name: str, alias: str, number: int) -> str:
    return f"{PREFIX} {name}@{alias} {number}"


def _read(text: str, alias: str, number: int) -> Promotion | None:
    """Return a stored record, None where somebody else wrote something of that name."""
    try:
        record = Promotion(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    words = (record.version, record.previous, record.who, record.why, record.metric)
    sound = all(isinstance(word, str) for word in words) and isinstance(record.time_ms, int)
    return record if sound and (record.alias, record.number) == (alias, number) else None
