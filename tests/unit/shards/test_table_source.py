"""Tables as a source: roles, units, missing cells, rows that cannot be used, files that must not be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Lattice, Structure

from shards.errors import ConfigError, DataError
from shards.features.table import infer_table
from shards.sources import Record, Source, source
from shards.sources.join import JoinedSource
from shards.sources.table import TableSource

NACL = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
HEADER = "sample,Voltage (kV),solvent,modulus_mpa,batch,e1,e2,e10\n"
ROWS = "a,12.5,DMF,30,1,0.5,1,2\nb,,THF,-,1,1,1,1\nc,15,N/A,nan,2,,,\nd,18,DMF,41e-1,2,0,0,0\n"
ROLES = {
    "id": "sample",
    "group": "batch",
    "labels": {"modulus_mpa": "modulus_mpa"},
    "columns": {"voltage_kv": "Voltage (kV)", "solvent": "solvent"},
    "arrays": {"embedding": "e*"},
    "tags": {"batch": "batch"},
}


def table(path: Path, content: str = HEADER + ROWS, **roles: object) -> TableSource:
    path.write_text(content)
    made = source({"kind": "table", "path": path, **(roles or ROLES)})
    assert isinstance(made, TableSource)
    return made


def read(records: Source) -> dict[str, Record]:
    return {item.id: records.read(item) for item in records.items()}


def test_every_role_of_a_column(tmp_path: Path) -> None:
    found = read(table(tmp_path / "t.csv"))
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"].columns == {"voltage_kv": 12.5, "solvent": "DMF"}
    assert found["a"].labels == {"modulus_mpa": 30.0} and found["d"].labels == {"modulus_mpa": 4.1}
    assert found["a"].group == "1" and found["a"].tags == {"batch": "1"}
    np.testing.assert_array_equal(found["a"].arrays["embedding"], [0.5, 1.0, 2.0])


def test_missing_cells_are_absent(tmp_path: Path) -> None:
    found = read(table(tmp_path / "t.csv"))
    assert found["b"].columns == {"solvent": "THF"} and found["b"].labels == {}
    assert found["c"].columns == {"voltage_kv": 15.0} and found["c"].labels == {} and found["c"].arrays == {}


def test_sodium_is_not_missing(tmp_path: Path) -> None:
    content = "id,cation,additive\n1,Na,none\n2,NA,None\n3,n/a,null\n4,-,NaN\n5,K,x\n"
    roles = {"id": "id", "columns": {"cation": "cation", "additive": "additive"}}
    found = read(table(tmp_path / "t.csv", content, **roles))
    assert found["1"].columns == {"cation": "Na", "additive": "none"}
    assert [found[id].columns for id in "234"] == [{}, {}, {}]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.tsv", "t.parquet", "t.txt"])
def test_formats_give_the_same_records(tmp_path: Path, name: str) -> None:
    expected = read(table(tmp_path / "t.csv"))
    path, content = tmp_path / name, HEADER + ROWS
    options: dict[str, object] = {}
    if name == "t.parquet":
        frame = pd.read_csv(tmp_path / "t.csv")
        frame["batch"] = frame["batch"].astype(str)
        frame["modulus_mpa"] = frame["modulus_mpa"].replace("-", None).astype(float)
        frame.to_parquet(path, row_group_size=2)
    elif name == "t.tsv":
        path.write_text(content.replace(",", "\t"))
    elif name == "t.txt":
        path.write_text("\ufeff" + content.replace(",", ";").replace(".", ","))
        options = {"delimiter": ";", "decimal": ","}
    else:
        opened = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[path.suffix]
        with opened(path, "wt") as file:
            file.write(content)
    assert str(expected) == str(read(source({"kind": "table", "path": path, **ROLES, **options})))


def test_parquet_reads_the_asked_columns_and_typed_cells(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "id": [10, 11, 12],
            "gap": [1.5, None, 0.0],
            "metal": [True, False, None],
            "vector": [[1.0, 2.0], None, [3.0, 4.0]],
            "cif": [NACL.to(fmt="cif")] * 3,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=1)
    found = read(
        source(
            {
                "kind": "table",
                "path": tmp_path / "t.parquet",
                "id": "id",
                "structure": "cif",
                "labels": {"band_gap_ev": "gap", "is_metal": "metal"},
                "arrays": {"vector": "vector"},
            }
        )
    )
    assert list(found) == ["10", "11", "12"]
    assert found["10"].labels == {"band_gap_ev": 1.5, "is_metal": 1.0}
    assert found["11"].labels == {"is_metal": 0.0} and found["11"].arrays == {}
    assert found["12"].labels == {"band_gap_ev": 0.0}
    assert found["12"].arrays["vector"].tolist() == [3.0, 4.0]
    assert found["10"].tags == {"formula": "NaCl", "chemical_system": "Cl-Na"}


def test_the_source_survives_pickling_and_its_own_table(tmp_path: Path) -> None:
    made = table(tmp_path / "t.csv")
    again = source(made.model_dump(mode="json"))
    assert again == made and pickle.loads(pickle.dumps(made)) == made
    assert str(read(again)) == str(read(made))


def test_a_number_that_is_none_refuses_its_record_alone(tmp_path: Path) -> None:
    made = table(tmp_path / "t.csv", (HEADER + ROWS).replace("18,DMF", "18 kV,DMF").replace("41e-1", "1e999"))
    items = {item.id: item for item in made.items()}
    made.read(items["a"])
    with pytest.raises(DataError, match=r"'18 kV' is no finite number") as caught:
        made.read(items["d"])
    assert "row 4, column 'Voltage (kV)'" in str(caught.value)
    made = table(tmp_path / "u.csv", (HEADER + ROWS).replace("41e-1", "1e999"))
    with pytest.raises(DataError, match="'1e999' is no finite number"):
        made.read({item.id: item for item in made.items()}["d"])
    made = table(tmp_path / "v.csv", (HEADER + ROWS).replace("2,0,0,0", "2,0,,0"))
    with pytest.raises(DataError, match="the vector holds") as caught:
        made.read({item.id: item for item in made.items()}["d"])
    assert "row 4, column 'e2'" in str(caught.value)


def test_vectors_as_json_text(tmp_path: Path) -> None:
    content = 'id,v\na,"[1, 2.5, -3e2]"\nb,\nc,"[1, [2]]"\nd,"[1, NaN]"\ne,[1\nf,x\ng,[]\nh,"' + "[" * 50_000 + '"\n'
    made = table(tmp_path / "t.csv", content, id="id", arrays={"v": "v"})
    items = {item.id: item for item in made.items()}
    assert made.read(items["a"]).arrays["v"].tolist() == [1.0, 2.5, -300.0] and made.read(items["b"]).arrays == {}
    for id in "cdefgh":
        with pytest.raises(DataError, match=r"no list of numbers|no finite number"):
            made.read(items[id])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structure": "cfi"}, "no column 'cfi'"),
        ({"labels": {"modulus_mpa": "modulus_mpa "}}, "did you mean 'modulus_mpa'"),
        ({"labels": {"modulus_gpa": "modulus_mpa"}}, "its name 'modulus_gpa' says GPa"),
        ({"arrays": {"embedding": "f*"}}, "no column of the table matches"),
        ({"labels": {"e": "e1"}}, "labels and part of a vector"),
        ({"columns": {"voltage": "Voltage (kV)"}}, "such as 'voltage_kv'"),
    ],
)
def test_recipes_that_do_not_fit_the_table(tmp_path: Path, change: dict[str, object], message: str) -> None:
    made = table(tmp_path / "t.csv", **{**ROLES, **change})
    with pytest.raises(ConfigError, match=message):
        made.items()


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"lables": {}}, "did you mean 'labels'"),
        ({"labels": {"x": "a"}, "columns": {"y": "a"}}, "labels and inputs too"),
        ({"labels": {"x": "a"}, "tags": {"y": "a"}}, "labels and inputs too"),
        ({"labels": {"x": "a"}, "columns": {"x": "b"}}, "in labels and in columns"),
        ({"units": {"x_ev": "meV"}}, "units names 'x_ev'"),
        ({"columns": {"solvent": "a"}, "categorical": ["solvnt"]}, "did you mean 'solvent'"),
        ({"columns": {"a": "a"}, "categorical": ["a"], "numeric": ["a"]}, "categorical and numeric"),
        ({"structure": "a", "structure_path": "b"}, "not both"),
        ({"images": {}}, "named by a 'column' or by a 'pattern'"),
        ({"images": {"pattern": "*.png"}}, "has no {id}"),
    ],
)
def test_recipes_that_contradict_themselves(roles: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source({"kind": "table", "path": "t.csv", **roles})


def test_units_are_converted_where_they_are_stated(tmp_path: Path) -> None:
    roles = {**ROLES, "columns": {"voltage_v": "Voltage (kV)"}, "units": {"voltage_v": "kV"}}
    assert read(table(tmp_path / "t.csv", **roles))["a"].columns == {"voltage_v": 12500.0}


def test_numbers_and_categories_are_told_apart_by_the_whole_column(tmp_path: Path) -> None:
    cells = [f"{i},{i}.5,{'x' if i % 2 else 'y'},{i if i < 19 else 'oops'},{i if i % 2 else 'n'}\n" for i in range(20)]
    columns = {"a": "a", "b": "b", "c": "c"}
    made = table(tmp_path / "t.csv", "id,a,b,c,d\n" + "".join(cells), id="id", columns=columns)
    assert infer_table(made) == {"step": "table", "columns": ["a", "c"], "categorical": {"b": ["x", "y"]}}
    with pytest.raises(DataError, match="'oops' is no finite number"):
        read(made)
    mixed = source({**made.model_dump(), "columns": {"d": "d"}})
    with pytest.raises(ConfigError, match=r"50% numbers .*\n.*\n.*categorical = \[\"d\"\]"):
        mixed.items()
    declared = source({**made.model_dump(), "columns": {"d": "d"}, "categorical": ["d"]})
    assert read(declared)["0"].columns == {"d": "n"} and read(declared)["1"].columns == {"d": "1"}


def test_ids_are_made_where_missing_and_refused_where_twice(tmp_path: Path) -> None:
    made = table(tmp_path / "t.csv", "id,x\na,1\n,2\n", id="id", labels={"x": "x"})
    assert [item.id for item in made.items()] == ["a", "row-2"]
    assert [item.id for item in table(tmp_path / "u.csv", "x\n1\n2\n", labels={"x": "x"}).items()] == ["row-1", "row-2"]
    with pytest.raises(DataError, match="1 ids of the table occur more than once") as caught:
        table(tmp_path / "v.csv", "id,x\na,1\nb,2\na,3\n", id="id", labels={"x": "x"}).items()
    assert "'a' in rows 1, 3" in str(caught.value)


def test_stamps_follow_the_rows(tmp_path: Path) -> None:
    before = {item.id: item.stamp for item in table(tmp_path / "t.csv").items()}
    assert before == {item.id: item.stamp for item in table(tmp_path / "t.csv").items()}
    after = {item.id: item.stamp for item in table(tmp_path / "t.csv", (HEADER + ROWS).replace("18", "19")).items()}
    assert {id for id in before if before[id] != after[id]} == {"d"}


def test_structures_in_cells_and_in_files(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    NACL.to(filename=str(tmp_path / "cells" / "POSCAR"), fmt="poscar")
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    NACL.to(filename=str(secret), fmt="poscar")
    (tmp_path / "link").symlink_to(secret)
    names = ["cells/POSCAR", f"../{secret.name}", str(secret), "link", "absent", ""]
    made = table(tmp_path / "t.csv", "file\n" + "".join(f'"{name}"\n' for name in names), structure_path="file")
    items = list(made.items())
    assert made.read(items[0]).structure == NACL and made.read(items[0]).tags["chemical_system"] == "Cl-Na"
    for item in items[1:4]:
        with pytest.raises(DataError, match="outside of its folder"):
            made.read(item)
    with pytest.raises(DataError, match="is missing"):
        made.read(items[4])
    assert len(items) == 6 and made.read(items[5]).structure is None
    cif = NACL.to(fmt="cif")
    made = table(tmp_path / "u.csv", 'cif\n"' + cif.replace('"', '""') + '"\nnonsense\n', structure="cif")
    items = list(made.items())
    assert made.read(items[0]).structure is not None
    with pytest.raises(DataError, match=r"row 2, column 'cif'"):
        made.read(items[1])


def test_cells_and_tables_of_hostile_size(tmp_path: Path) -> None:
    made = table(tmp_path / "t.csv", "t\n" + "x" * 5_000_001 + "\n", text="t")
    with pytest.raises(DataError, match="more than 5 MB"):
        read(made)
    with gzip.open(tmp_path / "bomb.csv.gz", "wb", compresslevel=9) as file:
        for _ in range(200):
            file.write(b"a,b\n" * 250_000)
    with pytest.raises(DataError, match="unpacks to more than") as caught:
        source({"kind": "table", "path": tmp_path / "bomb.csv.gz"}).items()
    assert "bomb.csv.gz" in str(caught.value)


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Source:
    path.write_bytes(change(path.read_bytes()))
    return source({"kind": "table", "path": path})


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        source({"kind": "table", "path": tmp_path / "absent.csv"}).items()
    for name, content, message in [
        ("t.xlsx", b"PK", "is no table that can be read"),
        ("t.csv", b"", "cannot be read"),
        ("u.csv", b"\xff\xfe\x00a,b\n", "UTF-8"),
        ("v.csv", b"a,b\n1,2,3\n", "cannot be read"),
        ("t.parquet", b"PAR1 nothing PAR1", "damaged"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            source({"kind": "table", "path": tmp_path / name}).items()
    for name in ("pipe.csv", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="no regular file"):
            source({"kind": "table", "path": tmp_path / name}).items()
    with gzip.open(tmp_path / "w.csv.gz", "wt") as file:
        file.write("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(1000)))
    with pytest.raises(DataError, match="cannot be read"):
        damaged(tmp_path / "w.csv.gz", lambda content: content[:-20]).items()
    pd.DataFrame({"a": range(1000)}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="damaged"):
        damaged(tmp_path / "x.parquet", lambda content: content[:-20]).items()


def test_a_table_is_joined_by_id(tmp_path: Path) -> None:
    first = table(tmp_path / "t.csv")
    second = table(
        tmp_path / "u.csv",
        "id,strain (%),operator,batch\na,5,Eve,9\nc,7,,9\nz,1,Bob,9\n",
        id="id",
        labels={"strain_pct": "strain (%)"},
        columns={"operator": "operator"},
        tags={"batch": "batch"},
    )
    both = JoinedSource(source=first, table=second)
    found = read(both)
    assert list(found) == ["a", "b", "c", "d"]
    assert found["a"].labels == {"modulus_mpa": 30.0, "strain_pct": 5.0}
    assert found["a"].columns == {"voltage_kv": 12.5, "solvent": "DMF", "operator": "Eve"}
    assert found["a"].tags == {"batch": "9"} and found["a"].group == "1"
    assert str(found["b"]) == str(read(first)["b"])
    assert both.unmatched().without_row == ("b", "d") and both.unmatched().without_record == ("z",)
    assert both.label_names == ("modulus_mpa", "strain_pct")
    assert both.process_columns() == {
        "columns": ["voltage_kv"],
        "categorical": {"solvent": ["DMF", "THF"], "operator": ["Bob", "Eve"]},
    }
    again = source(both.model_dump(mode="json"))
    assert again == both and pickle.loads(pickle.dumps(both)) == both
    with pytest.raises(DataError, match="2 of 4 records and 3 rows have the same id"):
        both.model_copy(update={"complete": True}).items()
    stranger = table(tmp_path / "v.csv", "id\nq\n", id="id")
    with pytest.raises(DataError, match="0 of 4 records") as caught:
        JoinedSource(source=first, table=stranger).items()
    assert "'a' in the source and 'q' in the table" in str(caught.value)


def test_a_join_notices_changed_rows(tmp_path: Path) -> None:
    first = table(tmp_path / "t.csv")
    second = table(tmp_path / "u.csv", "id,x\na,5\nc,7\n", id="id", labels={"x": "x"})
    before = {item.id: item.stamp for item in JoinedSource(source=first, table=second).items()}
    second = table(tmp_path / "u.csv", "id,x\na,5\nc,8\n", id="id", labels={"x": "x"})
    after = {item.id: item.stamp for item in JoinedSource(source=first, table=second).items()}
    assert {id for id in before if before[id] != after[id]} == {"c"}


def test_real_tables_are_read_row_by_row(shared_data: Path) -> None:
    """Against the tables' own formula columns, which the structures do not see."""
    for path, ids, column, count in [
        ("perov_5/val.csv.gz", "material_id", "cif", 3787),
        ("dielectric_mp/dielectric_clean.csv.gz", "material_id", "poscar", 1056),
    ]:
        made = source({"kind": "table", "path": shared_data / path, "id": ids, "structure": column})
        items = list(made.items())
        assert len({item.id for item in items}) == count
        frame = pd.read_csv(shared_data / path, dtype=str).set_index(ids)
        for item in items[:: count // 60]:
            structure = made.read(item).structure
            assert structure is not None
            assert structure.composition.reduced_composition == Composition(frame.formula[item.id]).reduced_composition


def test_a_molecule_is_tagged_with_its_scaffold_for_splits(tmp_path: Path) -> None:
    pytest.importorskip("rdkit", reason="extra 'molecules' is not installed")
    path = tmp_path / "molecules.csv"
    path.write_text("name,smiles\nphenol,Oc1ccccc1\nhexane,CCCCCC\nbroken,C1CC\n")
    source = TableSource(path=path, id="name", smiles="smiles")
    phenol, hexane, broken = source.items()
    assert source.read(phenol).tags["scaffold"] == "c1ccccc1"
    assert source.read(hexane).tags["scaffold"] == "acyclic"
    with pytest.raises(DataError):
        source.read(broken)


def test_a_point_beside_decimal_commas_divides_no_fraction(tmp_path: Path) -> None:
    """1.234 is a thousand and more where the decimal sign is a comma, and nobody knows what was meant."""
    made = table(
        tmp_path / "t.csv", "id;x\na;1,5\nb;1.234\nc;-2e-3\n", id="id", labels={"x": "x"}, delimiter=";", decimal=","
    )
    first, second, third = made.items()
    assert made.read(first).labels == {"x": 1.5} and made.read(third).labels == {"x": -2e-3}
    with pytest.raises(DataError, match=r"'1\.234' is no finite number"):
        made.read(second)
