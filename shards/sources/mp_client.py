"""Questions to the Materials Project, asked by its own client, patiently."""

from __future__ import annotations

import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from shards.errors import ConfigError, DataError

T = TypeVar("T")
MAX_PAUSE_S = 60.0
BATCH = 100
ID = re.compile(r"[A-Za-z]{1,10}-[A-Za-z0-9]{1,32}")
STATIC = ("GGA Static", "GGA+U Static")
EXTRA = "pip install 'matloom[materials]'"


class TransientError(Exception):
    """A failure that may pass: the action is tried again."""


def patiently(action: Callable[[], T], *, what: str, attempts: int, pause_s: float) -> T:
    """Call ``action`` until it does not raise `TransientError`.

    Between attempts it waits ``pause_s``, then twice as long each time up to a minute, with a random
    part so that many processes do not come back at once.

    Raises
    ------
    DataError
        After ``attempts`` failures, with the reason of the last one.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except TransientError as error:
            if attempt == attempts:
                raise DataError(
                    f"{attempts} attempts failed",
                    where=what,
                    why=str(error)[:500],
                    do="run the same command again: it goes on where it stopped",
                ) from None
            time.sleep(min(pause_s * 2 ** (attempt - 1), MAX_PAUSE_S) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


class MaterialsApi:
    """The API of the Materials Project.

    Key and address are the client's: ``MP_API_KEY`` and ``MP_API_ENDPOINT`` of the environment, never
    parameters, so that they stand in no recipe and no manifest. Documents come as plain JSON values;
    nothing in them is decoded into objects.

    Parameters
    ----------
    attempts : int
        How often a question is asked before its failure is an error.
    pause_s : float
        Seconds before the second attempt; see `patiently`.

    Raises
    ------
    ConfigError
        Where the client is not installed, or the key is refused.
    DataError
        Where the API does not answer.
    """

    def __init__(self, *, attempts: int, pause_s: float) -> None:
        self.attempts, self.pause_s = attempts, pause_s
        try:
            from mp_api.client import MPRester
        except ImportError as error:
            raise ConfigError("the client of the Materials Project is missing", why=str(error), do=EXTRA) from None
        self._rester = self._ask(
            "heartbeat",
            lambda: MPRester(
                endpoint=os.environ.get("MP_API_ENDPOINT") or None, use_document_model=False, mute_progress_bars=True
            ),
            # the client looks for its version in whatever JSON a busy gateway answers with
            passing=(KeyError,),
        )
        self.db_version = str(self._rester.db_version)

    def close(self) -> None:
        """Close the connections."""
        self._rester.session.close()

    def summaries(self, query: Mapping[str, Any], fields: Iterable[str], *, page: int, size: int) -> list[dict]:
        """Return one page of summary documents, sorted by material id.

        Parameters
        ----------
        query : mapping
            Keyword arguments of the client's ``materials.summary.search``. Deprecated materials are left
            out unless it says otherwise.
        fields : iterable of str
            Fields of the documents.
        page, size : int
            Page number from 1, and documents a page. Without a page number the client would answer a query that
            names nothing by fetching the whole collection into the home folder.
        """
        arguments = {"deprecated": False, **query}
        return self._search(
            f"page {page} of the summary documents",
            "materials.summary",
            **arguments,
            fields=sorted({"material_id", *fields}),
            chunk_size=size,
            _page=page,
            _sort_fields="material_id",
        )

    def dos_tasks(self, material_ids: Iterable[str]) -> dict[str, list[str]]:
        """Return the calculation that each material's density of states is from; one without is left out."""
        documents = self._by_id("materials.electronic_structure", "material_id", material_ids, "dos")
        tasks = {material: _dos_task(document.get("dos")) for material, document in documents}
        return {material: [checked_id(task)] for material, task in tasks.items() if task}

    def static_tasks(self, material_ids: Iterable[str]) -> dict[str, list[str]]:
        """Return each material's static calculations, the last updated first: where charge densities are from."""
        static = {}
        for material, document in self._by_id("materials", "material_id", material_ids, "calc_types"):
            types = document.get("calc_types") or {}
            static[material] = sorted(checked_id(task) for task, kind in types.items() if kind in STATIC)
        tasks = sorted({task for tasks in static.values() for task in tasks})
        # the documents may call a calculation by another of its names
        updated = {
            object_id(task): _date(document["last_updated"])
            for task, document in self._by_id("materials.tasks", "task_id", tasks, "last_updated")
        }
        return {
            material: sorted(
                (task for task in tasks if object_id(task) in updated),
                key=lambda task: updated[object_id(task)],
                reverse=True,
            )
            for material, tasks in static.items()
        }

    def _by_id(self, route: str, key: str, ids: Iterable[str], field: str) -> Iterator[tuple[str, dict]]:
        """Yield id and document of what a route of the client has on some ids, asking for a hundred at a time."""
        listed = list(ids)
        for start in range(0, len(listed), BATCH):
            batch = listed[start : start + BATCH]
            documents = self._search(
                f"documents of {route}", route, **{f"{key}s": batch}, fields=[key, field], chunk_size=2 * BATCH
            )
            yield from ((str(document[key]), document) for document in documents)

    def _search(self, what: str, route: str, **arguments: Any) -> list[dict]:
        """Ask a route of the client (``materials.tasks``) for documents."""
        return self._ask(what, lambda: attrgetter(route)(self._rester).search(**arguments))

    def _ask(self, what: str, question: Callable[[], Any], passing: tuple[type[Exception], ...] = ()) -> Any:
        """Ask, again where that may help (``passing``: besides what always does), and fail with an error of ours."""
        from mp_api.client.core.exceptions import MPRestError
        from requests.exceptions import RequestException

        passes: tuple[type[Exception], ...] = (RequestException, json.JSONDecodeError, *passing)

        def attempt() -> Any:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return question()
            except passes as error:
                raise TransientError(repr(error)) from None
            except MPRestError as error:
                if isinstance(error.__context__, RequestException) or re.search(r"status code (429|5\d\d)", str(error)):
                    raise TransientError(str(error)) from None
                raise _refusal(error, what) from None
            except (KeyError, TypeError, ValueError) as error:
                raise _refusal(error, what) from None

        return patiently(attempt, what=f"Materials Project, {what}", attempts=self.attempts, pause_s=self.pause_s)


def checked_id(value: Any) -> str:
    """Return an id that names a material or a calculation; it becomes a part of paths, so nothing else may pass."""
    text = str(value)
    if not ID.fullmatch(text):
        raise DataError(f"the Materials Project named something '{text[:80]}', which is no id of its own")
    return text


def object_id(task_id: str) -> str:
    """Return the name under which the public bucket keeps a calculation's objects, as the client makes it."""
    from emmet.core.mpid import AlphaID
    from mp_api.client.core.utils import validate_ids

    return checked_id(AlphaID(validate_ids([checked_id(task_id)])[0].split("-")[-1], prefix="mp").string)


def _refusal(error: Exception, what: str) -> ConfigError:
    """Return the error for an answer that will not change by asking again."""
    text = re.sub(r"\x1b\[\d+m", "", str(error) or repr(error))
    if re.search(r"status code (401|403)|API key", text):
        return ConfigError(
            "the Materials Project refuses the API key", where=what, why=text[:300], do="export MP_API_KEY=<your key>"
        )
    return ConfigError(
        "the Materials Project's client refuses this query",
        where=what,
        why=text[:500],
        do="check [source.query]: it takes the arguments of the client's materials.summary.search",
    )


def _dos_task(dos: Any) -> str | None:
    """Return the calculation of a density-of-states summary, in its present form or the one before it."""
    if not isinstance(dos, Mapping):
        return None
    if dos.get("task_id"):
        return str(dos["task_id"])
    total = dos.get("total")
    spins = total.values() if isinstance(total, Mapping) else ()
    return next((str(spin["task_id"]) for spin in spins if isinstance(spin, Mapping) and spin.get("task_id")), None)


def _date(value: Any) -> str:
    """Return a time stamp as text that sorts: ISO 8601, or MongoDB's ``{"$date": ...}``."""
    return str(value.get("$date", "")) if isinstance(value, Mapping) else str(value)
