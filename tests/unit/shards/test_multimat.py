"""MultiMat's layout: flags honoured, zeros never data, and no pickle that does more than hold tensors."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from shards.errors import DataError
from shards.features import feature
from shards.formats.tensors import load_npz, load_pt, to_array
from shards.sources import Record, source
from shards.sources.base import RHO_V

IDS = ("mp-1", "mp-2", "mp-30")
ENERGY = np.linspace(-12, 12, 601, dtype=np.float32)


def states(seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).uniform(0.1, 3.0, 601).astype(np.float32)
    return torch.from_numpy(np.stack([ENERGY, values]))


def density(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(1, 90, (1, 8, 8, 8)).astype(np.float32))


def graph(atoms: int) -> Data:
    pairs = torch.cartesian_prod(torch.arange(atoms), torch.arange(atoms)).T
    return Data(x=torch.randn(atoms, 92), edge_index=pairs, edge_attr=torch.rand(atoms**2), label=f"{atoms} atoms")


def write_folder(folder: Path) -> Path:
    """Three materials: mp-1 has everything, mp-2 a text only, mp-30 a density of states and no text."""
    tensors = folder / "charge_density_allmpids" / "tensors"
    tensors.mkdir(parents=True)
    zeros = torch.zeros(2, 601)
    dos = {"mp-1": (states(1), 1), "mp-2": (zeros, 0), "mp-30": (states(3), 1)}
    torch.save({id: {"data": d, "exists": e} for id, (d, e) in dos.items()}, folder / "dos_allmpids.pt")
    vectors = {"mp-1": (torch.ones(768), 1), "mp-2": (torch.full((768,), 2.0), 1), "mp-30": (torch.zeros(768), 0)}
    torch.save(
        {id: {"data": d, "exists": e} for id, (d, e) in vectors.items()},
        folder / "mp_matbert_text_embeds_allmpids.pt",
    )
    torch.save({"mp-1": 1, "mp-2": 0, "mp-30": 0}, tensors.parent / "material_ids.pt")
    torch.save(density(1), tensors / "mp-1.pt")
    for id in IDS[1:]:
        torch.save(torch.zeros(1, 8, 8, 8), tensors / f"{id}.pt")
    torch.save({id: graph(n) for n, id in enumerate(IDS, start=1)}, folder / "crystal_potnet.pt")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def records(path: Path, **options: object) -> dict[str, Record]:
    made = source({"kind": "multimat", "path": str(path), **options})
    return {item.id: made.read(item) for item in made.items()}


def have(record: Record) -> set[str]:
    return {*record.arrays, *(["dos"] if record.dos is not None else [])}


# --- what exists ---------------------------------------------------------------------------------


def test_flags_are_honoured_and_placeholders_never_taken(folder: Path) -> None:
    found = records(folder)
    assert {id: have(record) for id, record in found.items()} == {
        "mp-1": {"dos", RHO_V, "text_matbert"},
        "mp-2": {"text_matbert"},
        "mp-30": {"dos"},
    }
    dos = found["mp-1"].dos
    assert dos is not None and not dos.absolute and dos.zero_ev == 0.0
    np.testing.assert_array_equal(np.stack([dos.energy_ev, dos.states_per_ev]), states(1).numpy())
    np.testing.assert_array_equal(found["mp-1"].arrays[RHO_V], density(1)[0].numpy())
    assert found["mp-2"].arrays["text_matbert"].shape == (768,)
    assert all(record.structure is None and record.charge_density is None for record in found.values())


def test_a_flag_counts_more_than_what_stands_there(folder: Path) -> None:
    torch.save({id: {"data": states(1), "exists": 0} for id in IDS}, folder / "dos_allmpids.pt")
    torch.save(dict.fromkeys(IDS, False), folder / "charge_density_allmpids" / "material_ids.pt")
    found = records(folder)
    assert all(have(record) <= {"text_matbert"} for record in found.values())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dos", lambda f: torch.save({"mp-1": {"data": torch.zeros(2, 601), "exists": 1}}, f / "dos_allmpids.pt")),
        (
            "dos",
            lambda f: torch.save(
                {"mp-1": {"data": states(1) * torch.tensor([[1.0], [0.0]]), "exists": True}}, f / "dos_allmpids.pt"
            ),
        ),
        (
            "charge_density",
            lambda f: torch.save(torch.zeros(1, 8, 8, 8), f / "charge_density_allmpids" / "tensors" / "mp-1.pt"),
        ),
        (
            "text",
            lambda f: torch.save(
                {"mp-1": {"data": torch.zeros(768), "exists": torch.tensor([1])}},
                f / "mp_matbert_text_embeds_allmpids.pt",
            ),
        ),
    ],
)
def test_zeros_that_are_flagged_as_existing_quarantine_the_record(
    folder: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(folder)
    made = source({"kind": "multimat", "path": str(folder)})
    item = next(item for item in made.items() if item.id == "mp-1")
    with pytest.raises(DataError, match=f"the {name} of 'mp-1' is flagged as existing and holds zeros"):
        made.read(item)


def test_files_without_flags_list_what_exists(tmp_path: Path) -> None:
    tensors = tmp_path / "charge_density" / "tensors"
    tensors.mkdir(parents=True)
    torch.save({"mp-1": states(1), "mp-2": torch.zeros(2, 601)}, tmp_path / "dos.pt")
    torch.save({"mp-3": torch.ones(768)}, tmp_path / "mp_matbert_text_embeds.pt")
    torch.save(["mp-1", "mp-3"], tensors.parent / "material_ids.pt")
    for id in ("mp-1", "mp-3"):
        torch.save(density(1)[0].double(), tensors / f"{id}.pt")
    found = records(tmp_path)
    assert {id: have(record) for id, record in found.items()} == {
        "mp-1": {"dos", RHO_V},
        "mp-2": set(),
        "mp-3": {"text_matbert", RHO_V},
    }


def test_labels_and_graphs_are_asked_for(folder: Path) -> None:
    torch.save({"mp-1": torch.tensor(1.5), "mp-2": torch.tensor(float("nan"))}, folder / "bandgap.pt")
    flagged = {
        "mp-1": {"data": True, "exists": 1},
        "mp-2": {"data": 0.0, "exists": 0},
        "mp-30": {"data": 0, "exists": 1},
    }
    torch.save(flagged, folder / "is_metal.pt")
    assert not records(folder)["mp-1"].labels
    found = records(folder, labels=["band_gap_ev", "is_metal"], graphs=True)
    assert found["mp-1"].labels == {"band_gap_ev": 1.5, "is_metal": 1.0}
    assert found["mp-2"].labels == {} and found["mp-30"].labels == {"is_metal": 0.0}
    assert found["mp-30"].arrays["crystal_x"].shape == (3, 92)
    assert found["mp-30"].arrays["crystal_edge_index"].shape == (2, 9)
    with pytest.raises(DataError, match=r"no eform\.pt"):
        records(folder, labels=["formation_energy_ev_per_atom"])


def test_items_are_stable_and_know_changes(folder: Path) -> None:
    made = pickle.loads(pickle.dumps(source({"kind": "multimat", "path": str(folder)})))
    items = list(made.items())
    assert [item.id for item in items] == sorted(IDS) and items == list(made.items())
    torch.save(density(5), folder / "charge_density_allmpids" / "tensors" / "mp-1.pt")
    os.utime(folder / "charge_density_allmpids" / "tensors" / "mp-1.pt", ns=(1, 1))
    changed = list(made.items())
    assert [a != b for a, b in zip(items, changed, strict=True)] == [True, False, False]
    np.testing.assert_array_equal(made.read(changed[0]).arrays[RHO_V], density(5)[0].numpy())


def test_the_features_take_what_is_known_up_to_a_factor(folder: Path) -> None:
    record = records(folder)["mp-1"]
    values = feature({"step": "dos", "scale": "area"})(record)
    grid = feature({"step": "charge_density", "scale": "mean", "points": 8})(record)
    assert values is not None and grid is not None
    assert np.trapezoid(values["intensity"], dx=20 / 600) == pytest.approx(1.0, rel=1e-5)  # type: ignore[index]
    assert grid["density"].astype(float).mean() == pytest.approx(1.0, rel=1e-3)  # type: ignore[index]
    for step in ("dos", "charge_density"):
        with pytest.raises(DataError, match="known up to"):
            feature({"step": step})(record)


# --- the example data ----------------------------------------------------------------------------


def test_the_408_example_has_what_its_card_says(shared_data: Path) -> None:
    path = shared_data / "multimat_mp408" / "multimat_mp408.npz"
    found = records(path)
    with np.load(path, allow_pickle=False) as raw:
        assert set(found) == set(raw["ids"].tolist())
        exists = {"dos": raw["dos_exists"].sum(), RHO_V: raw["cd_exists"].sum(), "text_matbert": 312}
        row = int(np.flatnonzero(raw["cd_exists"])[17])
        np.testing.assert_array_equal(found[str(raw["ids"][row])].arrays[RHO_V], raw["charge_density"][row])
    counts = {name: sum(name in have(record) for record in found.values()) for name in exists}
    assert counts == exists == {"dos": 216, RHO_V: 275, "text_matbert": 312}
    assert sum(have(record) == {"dos", RHO_V, "text_matbert"} for record in found.values()) == 204


def test_the_408_example_goes_through_the_features(shared_data: Path) -> None:
    found = records(shared_data / "multimat_mp408" / "multimat_mp408.npz")
    dos, grid = feature({"step": "dos", "scale": "area"}), feature({"step": "charge_density", "scale": "mean"})
    refused, made = {}, 0
    for id, record in found.items():
        for step in (dos, grid):
            try:
                value = step(record)
            except DataError as error:
                refused[id] = error.what
                continue
            if value is not None:
                step.spec("x").check(value)
                made += 1
    print(f"{made} values, refused: {refused}")
    # one density of states whose energies do not ascend
    assert set(refused) == {"mp-696961"} and made == 216 + 275 - 1


# --- hostile and damaged files -------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


PLACES = (
    "dos_allmpids.pt",
    "mp_matbert_text_embeds_allmpids.pt",
    "charge_density_allmpids/material_ids.pt",
    "charge_density_allmpids/tensors/mp-1.pt",
    "crystal_potnet.pt",
    "bandgap.pt",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dress", ["torch.save", "pickle", "legacy", "graph", "key"])
def test_poisoned_files_are_never_executed(folder: Path, tmp_path: Path, place: str, dress: str) -> None:
    marker = tmp_path / "executed"
    payload, path = Payload(marker), folder / place
    if dress == "torch.save":
        torch.save({"mp-1": {"data": payload, "exists": 1}}, path)
    elif dress == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif dress == "legacy":
        torch.save({"mp-1": payload}, path, _use_new_zipfile_serialization=False)
    elif dress == "graph":
        torch.save({"mp-1": Data(x=torch.ones(1, 92), hook=payload)}, path)
    else:
        torch.save({payload: torch.ones(3)}, path)
    # the payload works where it is let
    assert not marker.exists()
    with pytest.raises(DataError) as caught:
        records(folder, labels=["band_gap_ev"] if place == "bandgap.pt" else [], graphs=place == "crystal_potnet.pt")
    assert not marker.exists()
    assert path.name in str(caught.value)
    if dress != "legacy":
        torch.load(path, weights_only=False) if dress != "pickle" else pickle.loads(path.read_bytes())
        assert marker.exists()


def test_a_refused_file_names_what_it_asks_for_and_a_remedy(folder: Path, tmp_path: Path) -> None:
    torch.save({"mp-1": {"data": Payload(tmp_path / "x"), "exists": 1}}, folder / "dos_allmpids.pt")
    with pytest.raises(DataError, match="more than tensors") as caught:
        records(folder)
    assert "it names builtins.getattr, pathlib." in str(caught.value) and "plain dictionary" in str(caught.value)


def test_graphs_are_let_through_only_where_they_are_asked_for(folder: Path) -> None:
    assert set(load_pt(folder / "crystal_potnet.pt", graphs=True)) == set(IDS)
    with pytest.raises(DataError, match="more than tensors"):
        load_pt(folder / "crystal_potnet.pt")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    for read in (load_npz, load_pt):
        with pytest.raises(DataError, match="no regular file"):
            read(tmp_path / "x.npz")


def test_every_truncation_of_a_pt_file_is_detected(folder: Path) -> None:
    path = folder / "dos_allmpids.pt"
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"torch\.save writes|damaged"):
            load_pt(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(1 << 30), "none that can be data"),
        (torch.eye(3).to_sparse(), "should"),
        (torch.ones(2, dtype=torch.complex64), "should"),
        ("text", "should"),
        (torch.ones(2, device="meta"), "none that can be data"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_array(value, where="here")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("dos_allmpids.pt", [1, 2], "dictionary of materials"),
        ("dos_allmpids.pt", {1: torch.ones(2)}, "dictionary of materials"),
        ("dos_allmpids.pt", {"mp-1": {"data": torch.ones(2, 9), "exists": 2}}, "not 0 or 1"),
        ("dos_allmpids.pt", {"mp-1": {"data": torch.ones(2, 9)}}, "not data and exists"),
        ("dos_allmpids.pt", {"mp-1": {"data": torch.ones(9), "exists": 1}}, "shape"),
        ("mp_matbert_text_embeds_allmpids.pt", {"mp-1": {"data": torch.ones(2, 9), "exists": 1}}, "shape"),
        ("charge_density_allmpids/material_ids.pt", {"mp-1": None, "../../x": 1}, "cannot name a file"),
        ("charge_density_allmpids/material_ids.pt", {"mp-7": 1}, "cannot be read"),
        ("charge_density_allmpids/tensors/mp-1.pt", torch.ones(8, 8), "shape"),
        ("charge_density_allmpids/tensors/mp-1.pt", {"a": torch.ones(8)}, "where a tensor should"),
    ],
)
def test_files_of_another_form_are_refused(folder: Path, place: str, value: object, message: str) -> None:
    torch.save(value, folder / place)
    with pytest.raises(DataError, match=message):
        records(folder)


def test_places_without_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        records(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nothing of MultiMat's layout"):
        records(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"no valid \.npz"):
        records(tmp_path / "a.npz")


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.array(["a", "a"])}, "twice"),
        ({"dos": np.ones((1, 2, 3))}, "no 'ids'"),
        ({"ids": np.array(["a"]), "dos": np.ones((1, 2, 3))}, "do not have a row"),
        ({"ids": np.array(["a"]), "dos": np.ones((2, 2, 3)), "dos_exists": np.array([True])}, "do not have a row"),
        ({"ids": np.array(["a"]), "dos": np.ones((1, 2, 3)), "dos_exists": np.array([3])}, "not 0 or 1"),
        ({"ids": np.array(["a", None], dtype=object)}, "does not hold"),
        ({"ids": np.array(["a"]), "text_matbert": np.zeros(200_000_000, dtype=np.uint8)}, "expands beyond"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        records(npz(tmp_path / "a.npz", **arrays))


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 38,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("dos.npy", header.getvalue() + bytes(64))
    with pytest.raises(DataError, match="does not hold"):
        load_npz(tmp_path / "a.npz")


def test_a_text_of_zeros_without_a_flag_is_absent(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", ids=np.array(["a", "b"]), text_matbert=np.array([[0.0, 0.0], [1.0, 0.0]]))
    found = records(path)
    assert have(found["a"]) == set() and have(found["b"]) == {"text_matbert"}
