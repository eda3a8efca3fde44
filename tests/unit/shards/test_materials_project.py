"""The Materials Project: its real client against a server on loopback, faults, kills, damage, absence."""

from __future__ import annotations

import csv
import gzip
import json
import multiprocessing
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore import UNSIGNED
from botocore.config import Config

from shards.errors import ConfigError, DataError
from shards.sources import source
from shards.sources.base import Record, Source
from shards.sources.ledger import Ledger
from shards.sources.mp_bucket import MAX_UNPACKED
from shards.sources.pymatgen_json import document, parse_chgcar, parse_dos, read_json
from tests.mp_server import KEY, MaterialsProject, packed, serving

ALL = ["structure", "dos", "charge_density"]


@pytest.fixture(scope="module", autouse=True)
def schemas() -> Iterator[None]:
    """The client makes the JSON schema of its documents anew for each question, which is most of its time."""
    from mp_api.client.core import BaseRester

    known: dict[type, list[str]] = {}
    made = BaseRester.available_fields.fget

    def available_fields(rester: BaseRester) -> list[str]:
        if type(rester) not in known:
            known[type(rester)] = made(rester)
        return list(known[type(rester)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseRester, "available_fields", property(available_fields))
        yield


@pytest.fixture
def project() -> MaterialsProject:
    return MaterialsProject()


@pytest.fixture
def url(project: MaterialsProject, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from mp_api.client import MPRester

    MPRester._get_heartbeat_info.cache_clear()
    with serving(project) as address:
        monkeypatch.setenv("MP_API_KEY", KEY)
        monkeypatch.setenv("MP_API_ENDPOINT", address)
        yield address


def table(url: str, folder: Path, **options: Any) -> dict[str, Any]:
    values = {"query": {"num_sites": [1, 10]}, "include": ALL, "parsed": f"{url}/bucket", "pause_s": 0.001, **options}
    return {"kind": "materials_project", "folder": str(folder), **values}


def read_all(made: Source) -> list[Record]:
    return [made.read(item) for item in made.items()]


def objects(project: MaterialsProject) -> dict[str, int]:
    return {key: count for key, count in project.requests.items() if key.startswith("GET /bucket/")}


def test_documents_and_objects_become_records(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    made = source(table(url, tmp_path))
    records = read_all(made)
    assert [record.id for record in records] == ["mp-100", "mp-101", "mp-102", "mp-103", "mp-104"]
    first = records[0]
    assert first.structure is not None and first.structure.volume == pytest.approx(5.64**3)
    assert first.tags == {
        "formula": "NaCl",
        "chemical_system": "Cl-Na",
        "spacegroup": "Fm-3m",
        "crystal_system": "Cubic",
    }
    assert first.labels == {
        "band_gap_ev": 5.0,
        "is_metal": 0.0,
        "formation_energy_ev_per_atom": -2.0,
        "energy_above_hull_ev_per_atom": 0.0,
        "bulk_modulus_gpa": 23.95,
        "density_g_cm3": 2.17,
        "total_magnetization_mu_b": 0.0,
    }
    assert "bulk_modulus_gpa" not in records[1].labels
    for number, record in enumerate(records):
        assert record.dos is not None and record.charge_density is not None
        assert record.dos.atoms == 8 and record.dos.zero_ev == pytest.approx(-1.5, abs=0.06)
        assert record.dos.states_per_ev.max() == 4.0 + number
        # electrons per cubic Angstrom: VASP's grid is times the volume
        wave = np.cos(2 * np.pi * np.arange(12) / 12)
        expected = 1 + number / 10 + 0.5 * wave[:, None, None] * np.ones((12, 10, 8))
        np.testing.assert_allclose(record.charge_density, expected, rtol=1e-12)
    # the static calculation that was updated last is the one whose density counts
    assert sorted(path.name for path in (tmp_path / "chgcars").iterdir())[0] == "mp-4000.json.gz"
    assert (tmp_path / "missing.csv").read_text() == "material_id,modality,reason\n"


def test_a_complete_folder_needs_no_network(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    made = source(table(url, tmp_path))
    items = list(made.items())
    before = project.requests.total()
    assert list(made.items()) == items and project.requests.total() == before
    assert len({item.stamp for item in items}) == len(items)


def test_only_what_is_missing_is_fetched(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    list(source(table(url, tmp_path, include=["structure"])).items())
    assert not objects(project)
    list(source(table(url, tmp_path, include=["structure", "dos"])).items())
    assert set(objects(project)) == {f"GET /bucket/dos/mp-{2000 + n}.json.gz" for n in range(5)}
    (tmp_path / "dos" / "mp-2003.json.gz").unlink()
    project.requests.clear()
    list(source(table(url, tmp_path)).items())
    expected = {f"GET /bucket/chgcars/mp-{4000 + n}.json.gz" for n in range(5)} | {"GET /bucket/dos/mp-2003.json.gz"}
    assert set(objects(project)) == expected and set(objects(project).values()) == {1}
    assert project.requests["GET /materials/summary/"] == 0


def test_pages_and_id_lists(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: MaterialsProject
) -> None:
    monkeypatch.setattr("shards.sources.mp_fetch.PAGE", 2)
    items = list(source(table(url, tmp_path / "pages", include=["structure"])).items())
    assert [item.id for item in items] == [f"mp-{100 + n}" for n in range(5)]
    assert project.requests["GET /materials/summary/"] == 3
    (tmp_path / "ids.txt").write_text("# mine\nmp-104\nmp-101\n\nmp-999\nmp-102\nmp-104\n")
    options = {"query": {}, "ids_file": str(tmp_path / "ids.txt"), "include": ["structure"]}
    made = source(table(url, tmp_path / "ids", **options))
    assert [record.id for record in read_all(made)] == ["mp-101", "mp-104", "mp-102"]
    assert "mp-999,summary,no document" in (tmp_path / "ids" / "missing.csv").read_text()
    listed = source(table(url, tmp_path / "query", query={"material_ids": ["mp-103"], "chemsys": "F-Li"}))
    assert [record.tags["formula"] for record in read_all(listed)] == ["LiF"]


def test_deprecated_materials_are_left_out(
    project: MaterialsProject, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project.summaries["mp-102"]["deprecated"] = True
    for query, count in (({}, 4), ({"deprecated": True}, 1)):
        made = source(table(url, tmp_path / str(count), query=query, include=["structure"]))
        assert len(list(made.items())) == count
    # the client answers some queries that name nothing by fetching whole collections into the home folder
    assert not (tmp_path / "home").exists()


def test_what_is_missing_is_absent_and_listed(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    project.summaries["mp-100"]["has_props"] = {"dos": False, "charge_density": True}
    project.electronic["mp-101"]["dos"] = None
    del project.objects["dos/mp-2002.json.gz"]
    project.core["mp-103"]["calc_types"] = {"mp-9": "GGA Structure Optimization"}
    del project.objects["chgcars/mp-4004.json.gz"]
    project.summaries["mp-104"]["structure"] = None
    records = {record.id: record for record in read_all(source(table(url, tmp_path)))}
    assert [id for id, record in records.items() if record.dos is None] == ["mp-100", "mp-101", "mp-102"]
    assert [id for id, record in records.items() if record.charge_density is None] == ["mp-103", "mp-104"]
    with (tmp_path / "missing.csv").open() as file:
        rows = [(row["material_id"], row["modality"]) for row in csv.DictReader(file)]
    assert rows == [
        ("mp-100", "dos"),
        ("mp-101", "dos"),
        ("mp-102", "dos"),
        ("mp-103", "charge_density"),
        ("mp-104", "charge_density"),
        ("mp-104", "structure"),
    ]
    assert records["mp-104"].structure is None and records["mp-104"].tags["formula"] == "CaS"
    text = (tmp_path / "missing.csv").read_text()
    assert "has_props" in text and "no object in the bucket under mp-2002, mp-102" in text
    assert "no calculation of this kind" in text and "mp-4004, mp-3004" in text
    assert project.requests["GET /bucket/dos/mp-2000.json.gz"] == 0


def test_objects_by_material_id_and_older_task_ids_are_found(
    project: MaterialsProject, url: str, tmp_path: Path
) -> None:
    project.objects["dos/mp-100.json.gz"] = project.objects.pop("dos/mp-2000.json.gz")
    project.objects["chgcars/mp-3001.json.gz"] = project.objects.pop("chgcars/mp-4001.json.gz")
    project.electronic["mp-102"]["dos"] = {"total": {"1": {"task_id": "mp-2002"}}}
    records = read_all(source(table(url, tmp_path)))
    assert all(record.dos is not None and record.charge_density is not None for record in records)


@pytest.mark.parametrize("fault", ["429", "503", "reset", "short", "wrong"])
def test_faults_pass(project: MaterialsProject, url: str, tmp_path: Path, fault: str) -> None:
    project.faults = {"/bucket/dos/mp-2002": [fault] * 3, "/bucket/chgcars": [fault] * 3}
    if fault != "wrong":
        # the API sends no checksum: a wrong byte in its JSON text cannot be told from a right one
        project.faults["/materials/"] = [fault] * 2
    records = read_all(source(table(url, tmp_path)))
    assert len(records) == 5 and not any(project.faults.values())
    assert all(record.dos is not None and record.charge_density is not None for record in records)


def test_a_heartbeat_that_fails_is_listened_for_again(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    project.faults["/heartbeat"] = ["503", "reset"]
    assert len(list(source(table(url, tmp_path, include=["structure"])).items())) == 5


def test_faults_that_stay_are_named_and_the_rest_is_kept(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    project.faults["/bucket/dos/mp-2002"] = ["wrong"] * 3
    made = source(table(url, tmp_path, attempts=3))
    with pytest.raises(DataError, match="1 objects could not be fetched") as caught:
        made.items()
    assert "dos/mp-2002.json.gz" in str(caught.value) and "MD5" in str(caught.value) and "again" in str(caught.value)
    assert not list(tmp_path.rglob("mp-2002.json.gz"))
    project.requests.clear()
    assert len(read_all(made)) == 5
    assert objects(project)["GET /bucket/dos/mp-2002.json.gz"] == 1
    assert not any(f"mp-{n}.json.gz" in key for key in objects(project) for n in (2000, 2001, 2003, 2004))


def test_a_server_that_is_down_ends_the_download_early(
    project: MaterialsProject, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.sources.mp_fetch.MAX_FAILURES", 2)
    project.faults["/bucket/"] = ["503"] * 1000
    with pytest.raises(DataError, match="objects could not be fetched"):
        source(table(url, tmp_path, attempts=2, connections=1)).items()
    assert len(objects(project)) <= 4


def test_encoded_objects_stay_packed(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    project.encoded = True
    assert all(record.dos is not None for record in read_all(source(table(url, tmp_path))))
    assert (tmp_path / "dos" / "mp-2000.json.gz").read_bytes() == project.objects["dos/mp-2000.json.gz"]


def test_a_killed_download_goes_on_where_it_was(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    made = table(url, tmp_path, connections=1)
    project.hold_after = 7
    # forked, as a start would import the client again
    process = multiprocessing.get_context("fork").Process(target=source(made).items, daemon=True)
    process.start()
    assert project.holding.wait(60)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    project.hold_after = None
    project.released.set()
    done = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    kept = {entry["path"] for entry in done if entry["kind"] == "object"}
    assert len(kept) == 7
    project.requests.clear()
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"kind":"object","modality":"dos","mat')  # a line that the kill cut short
    assert len(read_all(source(made))) == 5
    assert {key.removeprefix("GET /bucket/") for key in objects(project)} == {
        key for key in project.objects if key not in kept
    }
    assert set(objects(project).values()) == {1} and not any("/materials" in key for key in project.requests)
    fresh = source(table(url, tmp_path.with_name("fresh")))
    assert [item.id for item in fresh.items()] == [item.id for item in source(made).items()]


def test_a_database_that_changes_begins_the_listing_anew(
    project: MaterialsProject, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mp_api.client import MPRester

    monkeypatch.setattr("shards.sources.mp_fetch.PAGE", 2)
    structure, project.summaries["mp-101"]["structure"] = project.summaries["mp-101"]["structure"], None
    # the client itself asks four times where the answer says when to
    project.faults["/materials/summary/"] = ["", *["503"] * 8]
    with pytest.raises(DataError, match="attempts failed"):
        source(table(url, tmp_path, attempts=2, include=["structure"])).items()
    project.db_version = "2026.01.01"
    del project.summaries["mp-100"]
    project.summaries["mp-101"]["structure"] = structure
    MPRester._get_heartbeat_info.cache_clear()
    items = list(source(table(url, tmp_path, include=["structure"])).items())
    assert [item.id for item in items] == [f"mp-{100 + n}" for n in range(1, 5)]
    # what the database before lacked is not missing in this one
    assert (tmp_path / "missing.csv").read_text() == "material_id,modality,reason\n"


def test_another_query_needs_another_folder(url: str, tmp_path: Path) -> None:
    list(source(table(url, tmp_path, include=["structure"])).items())
    with pytest.raises(ConfigError, match="another query"):
        source(table(url, tmp_path, query={"chemsys": "Cl-Na"})).items()


def test_damage_on_disk_is_found(url: str, tmp_path: Path) -> None:
    made = source(table(url, tmp_path))
    items = list(made.items())
    target = tmp_path / "dos" / "mp-2001.json.gz"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 4
    target.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        made.read(items[1])
    page = tmp_path / "documents" / "000000.jsonl"
    text = page.read_text().replace("5.64", "5.65")
    page.write_text(text)
    with pytest.raises(DataError, match="damaged"):
        made.read(items[0])
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"kind":"page"', '"kind:"page"', 1))
    with pytest.raises(DataError, match="line 2"):
        made.items()


def test_a_refused_key_or_query_is_a_config_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="refuses this query"):
        source(table(url, tmp_path, query={"chemsis": "Cl-Na"})).items()
    with pytest.raises(ConfigError, match="refuses this query"):
        source(table(url, tmp_path / "b", labels={"x": "no_such_field"})).items()
    for wrong in (["../../etc"], 5):
        with pytest.raises(ConfigError, match="no material id"):
            source(table(url, tmp_path, query={"material_ids": wrong})).items()
    for key in ("w" * 32, "short"):
        monkeypatch.setenv("MP_API_KEY", key)
        with pytest.raises(ConfigError, match="API key") as caught:
            source(table(url, tmp_path / "c")).items()
        assert key not in str(caught.value)


def test_ids_that_are_paths_never_become_files(project: MaterialsProject, url: str, tmp_path: Path) -> None:
    project.electronic["mp-100"]["dos"] = {"task_id": "../../mp-1"}
    with pytest.raises(DataError, match="no id"):
        source(table(url, tmp_path / "x")).items()


def test_an_object_that_is_a_bomb_is_refused(
    project: MaterialsProject, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_UNPACKED, "dos", 1 << 20)
    project.objects["dos/mp-2000.json.gz"] = packed("0" * (2 << 20))
    with pytest.raises(DataError, match="unpacks to more than 1 MB"):
        source(table(url, tmp_path, include=["dos"])).items()
    monkeypatch.setitem(MAX_UNPACKED, "dos", 1 << 10)
    project.objects["dos/mp-2000.json.gz"] = bytes(2000)
    project.requests.clear()
    with pytest.raises(DataError, match="has more than 0 MB"):
        source(table(url, tmp_path, include=["dos"])).items()
    assert "GET /bucket/dos/mp-2000.json.gz" not in objects(project), "it was fetched"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3-compatible server on loopback with the empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # in a process of its own: what asks the table holds the interpreter while it waits
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            client(address).create_bucket(Bucket="materialsproject-parsed", ACL="public-read")
            yield address
        finally:
            server.kill()


def client(address: str) -> Any:
    patient = Config(signature_version=UNSIGNED, retries={"max_attempts": 40, "mode": "standard"})
    return boto3.client("s3", endpoint_url=address, region_name="us-east-1", config=patient)


@pytest.fixture
def put(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    """Put an object into the bucket, below a place of the test's own, and return that place's address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def put(key: str, data: bytes) -> str:
        name = f"{tmp_path.name}/{key}"
        client(s3_url).put_object(Bucket="materialsproject-parsed", Key=name, Body=data, ACL="public-read")
        return f"s3://materialsproject-parsed/{tmp_path.name}"

    return put


def test_the_bucket_may_be_s3(project: MaterialsProject, url: str, put: Callable, tmp_path: Path) -> None:
    for key, data in project.objects.items():
        if "2002" not in key:
            parsed = put(key, data)
    records = read_all(source(table(url, tmp_path, parsed=parsed)))
    assert [record.id for record in records if record.dos is None] == ["mp-102"]
    assert all(record.charge_density is not None for record in records)
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert all(len(entry["etag"]) == 32 for entry in entries if entry["kind"] == "object")


def test_densities_of_states_of_the_table_come_first(
    project: MaterialsProject, url: str, put: Callable, tmp_path: Path
) -> None:
    import pyarrow
    from deltalake import write_deltalake
    from emmet.core.mpid import AlphaID

    energies = np.linspace(-10, 10, 41)
    rows = {
        "identifier": [str(AlphaID(str(2000 + n), padlen=8)) for n in range(3)],
        "run_type": ["GGA", "r2SCAN", "GGA"],
        "efermi": [0.5, 0.5, 0.5],
        "energies": [energies.tolist()] * 3,
        "spin_up_densities": [[7.0 + n] * 41 for n in range(3)],
        "spin_down_densities": [None, [1.0] * 41, None],
    }
    write_deltalake(str(tmp_path / "table"), pyarrow.table(rows), partition_by=["run_type"])
    for path in (tmp_path / "table").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "table").as_posix()
            put(f"core/electronic-structure/total-dos/{name}", path.read_bytes())
    parsed = put("dos/mp-2003.json.gz", project.objects["dos/mp-2003.json.gz"])
    options = {"include": ["structure", "dos"], "parsed": parsed}
    made = source(table(url, tmp_path / "mp", **options))
    records = read_all(made)
    heights = [record.dos.states_per_ev.max() if record.dos else None for record in records]
    assert heights == [7.0, 9.0, 9.0, 7.0, None]
    # a metal counts from its Fermi energy, and the atoms are those of the summary
    assert records[0].dos is not None and (records[0].dos.zero_ev, records[0].dos.atoms) == (0.5, 8)
    before = project.requests.total()
    assert [item.stamp for item in made.items()] and project.requests.total() == before


# --- JSON of pymatgen ---------------------------------------------------------------------------


def test_json_of_pymatgen_is_numbers_only(tmp_path: Path, project: MaterialsProject) -> None:
    path = tmp_path / "dos.json.gz"
    path.write_bytes(project.objects["dos/mp-2000.json.gz"])
    dos = document(read_json(path))
    dos["structure"] = {"@module": "os", "@class": "system", "sites": [1, 2]}
    assert parse_dos(dos, atoms=None).atoms == 2
    for change in (
        {"energies": [1, "x"]},
        {"densities": {}},
        {"efermi": None},
        {"efermi": 10**400},
        {"densities": {"1": [1.0]}},
    ):
        with pytest.raises(DataError, match="no density of states"):
            parse_dos({**dos, **change}, atoms=None)
    cell = {"structure": {"lattice": {"matrix": np.eye(3).tolist()}}}
    for wrong in (
        None,
        [],
        {"data": {"total": [[1]]}},
        {"data": {"total": {"data": "x"}}, "poscar": {}},
        {"data": {"total": [[[10**400]]]}, "poscar": cell},
    ):
        with pytest.raises(DataError, match="no charge density"):
            parse_chgcar(wrong)
    with pytest.raises(DataError, match="more than 0 MB"):
        read_json(path, max_bytes=100)
    bomb = path.with_name("bomb.json.gz")
    bomb.write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(DataError, match=r"unpacks to|more than"):
        read_json(bomb)
    deep = path.with_name("deep.json")
    deep.write_bytes(b"[" * 100_000)
    with pytest.raises(DataError, match="no valid JSON"):
        read_json(deep)


def test_a_metal_whose_fermi_energy_is_on_the_grid_counts_from_it() -> None:
    from pymatgen.electronic_structure.core import Spin
    from pymatgen.electronic_structure.dos import Dos

    energy = np.linspace(-5, 5, 101)
    for fermi in energy[1:-1]:
        states = 1 + (energy - 1) ** 2
        table = {"energies": energy.tolist(), "densities": {"1": states.tolist()}, "efermi": float(fermi)}
        with pytest.raises(ValueError, match="range"):
            Dos(float(fermi), energy, {Spin.up: states}).get_interpolated_gap()
        assert parse_dos(table, atoms=1).zero_ev == fermi


def test_the_real_density_of_states_of_a_metal_counts_from_its_fermi_energy(shared_data: Path) -> None:
    table = read_json(shared_data / "pymatgen_dft" / "complete_dos.json.gz")
    dos = parse_dos(document(table), atoms=None)
    up, down = (np.array(table["densities"][spin]) for spin in ("1", "-1"))
    np.testing.assert_array_equal(dos.states_per_ev, up + down)
    assert dos.atoms == len(table["structure"]["sites"])


def test_a_ledger_keeps_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.add({"a": 1})
        ledger.add({"b": "é"})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with Ledger(path) as ledger:
            kept = whole[:cut].count(b"\n")
            assert ledger.entries == [{"a": 1}, {"b": "é"}][:kept]
            ledger.add({"c": 3})
        assert path.read_bytes() == b"".join(whole.splitlines(True)[:kept]) + b'{"c":3}\n'
        assert Ledger(path).entries[-1] == {"c": 3} and len(Ledger(path).entries) == kept + 1
