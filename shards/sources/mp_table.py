"""The Materials Project's table of densities of states, where its bucket has one: a Delta table, asked in batches."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from shards.sources.mp_client import TransientError, patiently

PLACE = "core/electronic-structure/total-dos"
COLUMNS = ("identifier", "run_type", "efermi", "energies", "spin_up_densities", "spin_down_densities")


class DosTable:
    """Densities of states by calculation, as the Materials Project's client of today reads them.

    Parameters
    ----------
    parsed : str
        Address of the bucket: on S3, which is read without credentials, or a folder. Other addresses, and
        buckets without the table, have no rows.
    attempts, pause_s : int, float
        See `shards.sources.mp_client.patiently`.
    """

    def __init__(self, parsed: str, *, attempts: int, pause_s: float) -> None:
        self.uri = f"{parsed.rstrip('/')}/{PLACE}/"
        self.attempts, self.pause_s = attempts, pause_s
        self._engine: Any = None
        if parsed.startswith(("http://", "https://")):
            return
        self._engine = patiently(self._open, what=self.uri, attempts=attempts, pause_s=pause_s)

    def rows(self, tasks: Mapping[str, list[str]]) -> dict[str, bytes]:
        """Return what the table knows: material to packed JSON, as a pymatgen ``Dos`` would be written.

        Parameters
        ----------
        tasks : dict of str to list of str
            Material to its calculations.
        """
        wanted = {identifier(task): material for material, found in tasks.items() for task in found}
        if self._engine is None or not wanted:
            return {}
        found = patiently(
            lambda: self._ask(sorted(wanted)), what=self.uri, attempts=self.attempts, pause_s=self.pause_s
        )
        # a calculation that stands in two partitions counts once, the same one each time
        found.sort(key=lambda row: str(row["run_type"]), reverse=True)
        return {wanted[row["identifier"]]: _packed(row) for row in found if row["energies"]}

    def _open(self) -> Any:
        """Return an engine that knows the table as ``dos``, or None where there is no table."""
        from deltalake import DeltaTable, QueryBuilder
        from deltalake.exceptions import TableNotFoundError

        local = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        options = {"AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "us-east-1", "timeout": "60s"}
        options |= {"AWS_ALLOW_HTTP": "true"} if local else {}
        try:
            engine = QueryBuilder()
            engine.register("dos", DeltaTable(self.uri, storage_options=options))
        except TableNotFoundError:
            return None
        except Exception as error:  # the storage raises errors of several libraries
            raise TransientError(str(error)) from None
        return engine

    def _ask(self, identifiers: list[str]) -> list[dict[str, Any]]:
        import pyarrow

        listed = ", ".join(f"'{name}'" for name in identifiers)
        query = f"SELECT {', '.join(COLUMNS)} FROM dos WHERE identifier IN ({listed})"
        try:
            return pyarrow.table(self._engine.execute(query).read_all()).to_pylist()
        except Exception as error:  # as above
            raise TransientError(str(error)) from None


def identifier(task_id: str) -> str:
    """Return the name of a calculation in the table (``mp-149`` is ``aaaaaaft``)."""
    from emmet.core.mpid import AlphaID

    name = str(AlphaID(task_id.split("-")[-1], padlen=8))
    assert re.fullmatch("[a-z]+", name), name
    return name


def _packed(row: Mapping[str, Any]) -> bytes:
    """Return a row as gzipped JSON, the same bytes each time."""
    spins = {"1": row["spin_up_densities"], "-1": row["spin_down_densities"]}
    densities = {spin: values for spin, values in spins.items() if values is not None}
    table = {"efermi": row["efermi"], "energies": row["energies"], "densities": densities}
    return gzip.compress(json.dumps(table).encode(), mtime=0)
