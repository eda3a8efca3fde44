"""Records of sources: tagged structures, and the shipped data set."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from pymatgen.core import Lattice, Structure

from shards.sources.embedded import embedded_record
from shards.sources.structures import structure_record

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_structure_record_is_tagged() -> None:
    record = structure_record(NACL, "Na1.0Cl", tags={"prototype": "rocksalt"})
    assert record.id == "Na1.0Cl"
    assert record.tags == {"formula": "NaCl", "chemical_system": "Cl-Na", "prototype": "rocksalt"}


def test_a_shipped_record_becomes_a_source_record() -> None:
    raw = SimpleNamespace(
        id="NaCl_rocksalt",
        formula="NaCl",
        prototype="rocksalt",
        lattice=NACL.lattice.matrix,
        species=[site.specie.symbol for site in NACL],
        frac_coords=NACL.frac_coords,
        text="",
        dos=(np.linspace(-10, 10, 601), np.ones(601)),
        charge_density=None,
        labels={"band_gap_ev": 5.0},
        tags={"spacegroup": "Fm-3m"},
    )
    record = embedded_record(raw)  # type: ignore[arg-type]
    assert record.text is None and record.charge_density is None
    assert record.dos is not None and record.dos.atoms == 8
    assert record.tags["chemical_system"] == "Cl-Na" and record.tags["prototype"] == "rocksalt"
    assert record.tags["spacegroup"] == "Fm-3m"
