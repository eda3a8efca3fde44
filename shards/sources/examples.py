"""Example inputs for a tour: a CIF and a density of states of an embedded material."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards.errors import DataError
from shards.sources.embedded import embedded_records


def write_examples(folder: Path, sample_id: str, *, name: str = "dft_crystals") -> tuple[Path, Path]:
    """Write ``<id>.cif`` and ``<id>_dos.csv`` of one material of an embedded data set.

    Raises
    ------
    DataError
        Where there is no such material, or it has no density of states.
    """
    record = next((record for record in embedded_records(name) if record.id == sample_id), None)
    if record is None or record.structure is None or record.dos is None:
        raise DataError(f"'{sample_id}' has no structure with a density of states", where=f"embedded:{name}")
    folder.mkdir(parents=True, exist_ok=True)
    cif, csv = folder / f"{sample_id}.cif", folder / f"{sample_id}_dos.csv"
    record.structure.to(filename=str(cif), fmt="cif")
    dos = record.dos
    rows = np.stack([dos.energy_ev - dos.zero_ev, dos.states_per_ev / dos.atoms], axis=1)
    np.savetxt(csv, rows, fmt="%.6g", delimiter=",", header="energy_ev,states_per_ev_atom", comments="")
    return cif, csv
