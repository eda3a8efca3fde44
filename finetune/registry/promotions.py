"""Which version is in use: promoting, going back, and the history of both."""

from __future__ import annotations

from finetune.registry.entries import Entry, find
from finetune.registry.store import asking
from finetune.registry.uris import fetch
from pretrain.promotion import OvertakenError, Promotion, history, promote, somebody
from shards.errors import RegistryError


def promoted(name: str, alias: str = "champion") -> list[Promotion]:
    """Return the promotions of an alias, the first first."""
    with asking(f"the registry has no model '{name}'", about=name) as client:
        return history(client, name, alias)


def promote_version(
    name: str,
    version: str,
    *,
    alias: str = "champion",
    why: str,
    metric: str | None = None,
    after: int | None = None,
    back: bool = False,
) -> Promotion:
    """Let an alias point to a version, once what it points to has been verified.

    Parameters
    ----------
    name, version, alias : str
        What is to point where.
    why : str
        For the history.
    metric : str, optional
        A metric of that version; its value goes into the history.
    after : int, optional
        Number of the last promotion that was known when this was decided.
    back : bool
        A rollback.

    Raises
    ------
    RegistryError
        Where there is no such version, or somebody else promoted at the same moment.
    """
    entry = find(f"models:/{name}/{version}")
    if entry is None:
        raise RegistryError(f"'{name}' is a logged model, which has no versions", do="matloom registry list")
    fetch(entry.uri)
    with asking(f"'{alias}' of '{name}' cannot be moved", about=name) as client:
        try:
            return promote(
                client,
                name,
                alias,
                entry.version,
                who=somebody(),
                why=why,
                metric=_value(entry, metric),
                after=after,
                back=back,
            )
        except OvertakenError as error:
            raise RegistryError(
                f"'{alias}' of '{name}' was moved by somebody else at the same moment",
                why=f"to version {error.winner.version}, by {error.winner.who}: {error.winner.why}",
                do=f"matloom registry show {name}, then decide again",
            ) from None


def rollback(name: str, *, alias: str = "champion", why: str) -> Promotion:
    """Let an alias point to the version before; the history says so, nothing is taken out of it.

    A rollback after a rollback goes one further back.
    """
    done = promoted(name, alias)
    # what is in use now, and under it what would be again: promotions put on a pile, rollbacks take off
    pile: list[str] = []
    for record in done:
        if len(pile) > 1 and record.back:
            pile.pop()
        else:
            pile += [record.version] if pile else [version for version in (record.previous, record.version) if version]
    if len(pile) < 2:
        raise RegistryError(f"'{alias}' of '{name}' has never pointed to another version", do="matloom registry show")
    return promote_version(name, pile[-2], alias=alias, why=f"rollback: {why}", after=done[-1].number, back=True)


def _value(entry: Entry, metric: str | None) -> str:
    if metric is None:
        return ""
    if metric not in entry.metrics:
        raise RegistryError(
            f"version {entry.version} of '{entry.name}' has no metric '{metric}'", why=f"it has {sorted(entry.metrics)}"
        )
    return f"{metric} = {entry.metrics[metric]:.6g}"
