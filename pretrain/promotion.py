"""Moving an alias of a registered model: one winner at a time, and a history that is only added to.

Promotion N of an alias is that of whoever has claimed it (`pretrain.claim`). Its record stands among the tags of the
registered model; only then is the alias moved.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pretrain.claim import (
    OvertakenError,
    Promotion,
    claim,
    claimed,
    numbers,
    recorded,
    tidy,
    write_record,
)

CHAMPION = "champion"
SCORE_TAG = "matloom.score"
# tags of MLflow hold 5,000 characters
MOST = 1000


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
    tags = client.get_registered_model(name).tags
    found: list[Promotion] = []
    for number in numbers(tags, alias):
        # one that was cut off before its record reached the tags has happened all the same
        before = found[-1] if found else None
        record = recorded(tags, alias, number) or claimed(client, name, tags, alias, number, before)
        found += [record] if record else []
    return found


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
    last = before[-1] if before else None
    if last is not None and after is not None and last.number != after:
        raise OvertakenError(last)
    if last is not None and recorded(client.get_registered_model(name).tags, alias, last.number) is None:
        # whoever was cut off is helped, so that what is in the tags is the history
        write_record(client, name, last)
    record = Promotion(
        number=last.number + 1 if last else 1,
        alias=alias,
        version=version,
        previous=current(client, name, alias),
        who=who[:MOST],
        why=why[:MOST],
        metric=metric[:MOST],
        time_ms=int(time.time() * 1000),
        back=back,
    )
    record = claim(client, name, record, last)
    first = recorded(client.get_registered_model(name).tags, alias, record.number)
    if first is not None and first != record:
        # the claim of whoever was first has been taken away since (renamed, or removed for good)
        raise OvertakenError(first)
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
        write_record(client, name, record)
        client.set_registered_model_alias(name, record.alias, record.version)
        tags = client.get_registered_model(name).tags
        tidy(client, name, record, tags)
        following = recorded(tags, record.alias, record.number + 1)
        if following is None:
            return
        record = following
