"""The embedded data set, and the parts of its generator that need no DFT code."""

from __future__ import annotations

import gzip
import json
import os
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import embedded
from shards.embedded.generate.bands import Edges, band_edges, density_of_states
from shards.embedded.generate.grids import correct_at_nuclei, fourier_resample, gaussian_smooth
from shards.embedded.generate.workspace import Deadline, Workspace, work
from shards.errors import DataError

FOLDER = resources.files("shards.embedded").joinpath("dft_crystals")


@pytest.fixture(scope="module")
def records() -> list[embedded.RawRecord]:
    return list(embedded.load("dft_crystals"))


@pytest.fixture(scope="module")
def stored() -> dict[str, dict]:
    raw = gzip.decompress(FOLDER.joinpath("records.json.gz").read_bytes())
    return {entry["id"]: entry for entry in json.loads(raw)}


class TestData:
    def test_counts(self, records: list[embedded.RawRecord]) -> None:
        assert len(records) == 547
        assert sum(r.dos is not None for r in records) == 279
        assert sum(r.charge_density is not None for r in records) == 279
        assert sum("formation_energy_ev_per_atom" in r.labels for r in records) == 274
        assert sum("bulk_modulus_dft_gpa" in r.labels for r in records) == 29
        assert all(r.text for r in records if r.dos is not None)

    def test_ids_are_unique_and_sorted(self, records: list[embedded.RawRecord]) -> None:
        ids = [r.id for r in records]
        assert ids == sorted(set(ids))

    def test_one_schema_and_two_tiers(self, stored: dict[str, dict]) -> None:
        assert len({tuple(entry) for entry in stored.values()}) == 1
        for entry in stored.values():
            complete = entry["tier"] == "complete"
            assert complete == (entry["no_dft_because"] is None) == (entry["band_gap_ev"] is not None)

    def test_arrays_need_no_pickle(self, stored: dict[str, dict]) -> None:
        complete = {name for name, entry in stored.items() if entry["tier"] == "complete"}
        for file, extra in (("dos.npz", {"energy_ev"}), ("charge_density.npz", set())):
            with FOLDER.joinpath(file).open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                assert set(arrays.files) == complete | extra
                assert all(arrays[name].dtype.kind == "f" for name in arrays.files)

    def test_structures(self, records: list[embedded.RawRecord], stored: dict[str, dict]) -> None:
        for r in records:
            assert r.lattice.shape == (3, 3)
            assert r.lattice.dtype == np.float64
            assert r.frac_coords.shape == (len(r.species), 3)
            volume = abs(np.linalg.det(r.lattice)) / len(r.species)
            assert volume == pytest.approx(r.labels["volume_per_atom_a3"], rel=1e-5)
            assert r.tags["chemical_system"] == "-".join(sorted(set(r.species)))

    def test_dos(self, records: list[embedded.RawRecord]) -> None:
        for r in records:
            if r.dos is None:
                continue
            energy, states = r.dos
            assert energy.shape == states.shape == (601,)
            assert energy[0] == -10
            assert energy[-1] == 10
            assert np.isfinite(states).all()
            assert states.min() >= -1e-6

    def test_charge_density_holds_the_valence_electrons(
        self, records: list[embedded.RawRecord], stored: dict[str, dict]
    ) -> None:
        for r in records:
            if r.charge_density is None:
                continue
            assert r.charge_density.shape == (32, 32, 32)
            assert r.charge_density.dtype == np.float16
            electrons = r.charge_density.astype(np.float64).mean() * abs(np.linalg.det(r.lattice))
            assert electrons == pytest.approx(stored[r.id]["n_valence_electrons"], rel=1e-3)

    def test_labels_and_tags(self, records: list[embedded.RawRecord]) -> None:
        for r in records:
            assert set(r.labels) <= set(embedded.LABELS)
            assert all(isinstance(v, float) and np.isfinite(v) for v in r.labels.values())
            assert set(r.tags) == {"formula", "chemical_system", "prototype", "spacegroup", "is_known"}
            assert all(isinstance(v, str) and v for v in r.tags.values())
        by_id = {r.id: r for r in records}
        assert by_id["MgO_rocksalt"].labels["band_gap_ev"] == pytest.approx(4.39, abs=0.01)
        assert by_id["Al_fcc"].labels["is_metal"] == 1.0

    def test_card_and_names(self) -> None:
        assert embedded.names() == ["dft_crystals"]
        text = embedded.card("dft_crystals")
        assert "547" in text
        assert "Apache-2.0" in text
        assert "charge_density.npz" in text

    @pytest.mark.parametrize("reader", [embedded.load, embedded.card])
    def test_unknown_name(self, reader) -> None:
        with pytest.raises(DataError, match="dft_crystal'") as caught:
            reader("dft_crystal")
        assert "dft_crystals" in str(caught.value.do)


class TestCatalog:
    def test_reproduces_the_ids(self, stored: dict[str, dict]) -> None:
        pytest.importorskip("ase")
        pytest.importorskip("spglib")
        from shards.embedded.generate.catalog import candidates

        found = {c.id: c for c in candidates()}
        failed = json.loads(FOLDER.joinpath("generation_log.json").read_text())["relax_failed"]
        assert len(found) == 549
        assert set(found) - set(failed) == set(stored)
        for name, entry in stored.items():
            assert found[name].is_known == entry["is_known"]
            assert found[name].prototype == entry["prototype"]
            assert found[name].atoms.get_chemical_symbols() == entry["species"]

    def test_dft_order_puts_elements_first(self, stored: dict[str, dict]) -> None:
        from shards.embedded.generate.catalog import ELEMENT_PROTOTYPES
        from shards.embedded.generate.order import dft_order

        crystals = {name: {**entry, "cell": entry["lattice_a"]} for name, entry in stored.items()}
        order = dft_order(crystals)
        assert len(order) == len(set(order))
        assert set(order) <= set(crystals)
        references = [n for n, e in stored.items() if e["prototype"] in ELEMENT_PROTOTYPES and e["is_known"]]
        assert set(order[: len(references)]) == set(references)


def _grid(points: tuple[int, int, int], waves: list[tuple[int, int, int, float]]) -> np.ndarray:
    """A sum of cosines at the fractional coordinates of a grid, plus 2."""
    x, y, z = np.meshgrid(*[np.arange(n) / n for n in points], indexing="ij")
    return 2 + sum(a * np.cos(2 * np.pi * (h * x + k * y + m * z) + a) for h, k, m, a in waves)


class TestGrids:
    sizes = st.tuples(*[st.integers(9, 24)] * 3)
    waves = st.lists(st.tuples(*[st.integers(-4, 4)] * 3, st.floats(0.1, 2, allow_nan=False)), min_size=1, max_size=4)

    @settings(max_examples=30, deadline=None)
    @given(size=sizes, target=st.integers(9, 32), waves=waves)
    def test_resampling_reproduces_a_band_limited_function(self, size, target, waves) -> None:
        expected = _grid((target,) * 3, waves)
        np.testing.assert_allclose(fourier_resample(_grid(size, waves), target), expected, atol=1e-10)

    @settings(max_examples=30, deadline=None)
    @given(size=st.tuples(*[st.integers(2, 12)] * 3), target=st.integers(2, 14), seed=st.integers(0, 2**16))
    def test_resampling_keeps_the_integral(self, size, target, seed) -> None:
        values = np.random.default_rng(seed).normal(size=size)
        assert fourier_resample(values, target).mean() == pytest.approx(values.mean(), abs=1e-12)

    def test_smoothing_keeps_the_integral_and_damps_as_a_gaussian(self) -> None:
        cell, sigma = np.diag([3.0, 4.0, 5.0]), 0.2
        values = _grid((12, 12, 12), [(1, 0, 0, 1.0)])
        smooth = gaussian_smooth(values, cell, sigma)
        assert smooth.mean() == pytest.approx(2)
        damping = np.exp(-0.5 * (sigma * 2 * np.pi / 3) ** 2)
        np.testing.assert_allclose(smooth - 2, damping * (values - 2), atol=1e-12)

    def test_the_correction_acts_at_the_nuclei_only(self) -> None:
        density = _grid((10, 10, 10), [(1, 1, 0, 0.5)])
        frac = np.array([[0, 0, 0], [0.52, 0.5, 0.97]])
        fixed, raw = correct_at_nuclei(density, frac, volume=20.0, electrons=39)
        assert raw == pytest.approx(density.mean() * 20)
        assert fixed.mean() * 20 == pytest.approx(39)
        changed = {tuple(int(x) for x in index) for index in np.argwhere(fixed != density)}
        assert changed == {(0, 0, 0), (5, 5, 0)}


class TestBands:
    def test_gap_and_dos_of_two_flat_bands(self) -> None:
        mesh = np.zeros((2, 2, 2, 3)) + np.array([-1.0, 2.0, 5.0])
        edges = band_edges(mesh.reshape(8, 3), 2, fermi_ev=0.5)
        assert edges == Edges(3.0, 3.0, -1.0, False)
        dos = density_of_states(mesh, edges, fermi_ev=0.5, unconverged=1)
        assert dos.electrons_to_fermi == pytest.approx(2)
        assert dos.complete_up_to_ev == pytest.approx(3)
        assert dos.states.sum() / 30 == pytest.approx(6, rel=1e-3)

    def test_odd_electrons_make_a_metal(self) -> None:
        assert band_edges(np.array([[-1.0, 2.0]]), 3, fermi_ev=1.5) == Edges(0.0, 0.0, 1.5, True)


class TestWorkspace:
    def test_work_is_done_once_and_failures_are_kept(self, tmp_path: Path) -> None:
        space, seen = Workspace(tmp_path), []

        def compute(name: str):
            seen.append(name)
            if name == "bad":
                raise ValueError("no minimum")
            return {"id": name}, {"x": np.arange(3)}

        for _ in range(2):
            work(space, "scf", ["a", "bad", "b"], compute, Deadline.in_minutes(1))
        assert seen == ["a", "bad", "b"]
        assert space.names("scf") == ["a", "b"]
        assert space.failures("scf") == {"bad": "ValueError('no minimum')"}
        assert space.arrays("scf", "a")["x"].tolist() == [0, 1, 2]
        assert not list(space.claims.iterdir())

    def test_no_work_after_the_deadline(self, tmp_path: Path) -> None:
        space = Workspace(tmp_path)
        work(space, "scf", ["a"], lambda n: ({"id": n}, None), Deadline(0))
        assert space.names("scf") == []

    def test_a_claim_is_exclusive_and_a_dead_one_is_taken_over(self, tmp_path: Path) -> None:
        space = Workspace(tmp_path)
        with space.claim("scf", "a") as first, space.claim("scf", "a") as second:
            assert first
            assert not second
        host = os.uname().nodename
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        (space.claims / "scf_a").write_text(f"{host} {child}")
        with space.claim("scf", "a") as again:
            assert again
