"""A Materials Project on loopback: the API's answers in their recorded shape, the bucket, and faults on demand."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
from pymatgen.core import Lattice, Structure

KEY = "k" * 32
CELLS = [("Na", "Cl", 5.64), ("K", "Br", 6.6), ("Mg", "O", 4.21), ("Li", "F", 4.03), ("Ca", "S", 5.69)]

FACES = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
ROCK_SALT = np.concatenate([FACES, FACES + 0.5])


class MaterialsProject:
    """Contents and behaviour of the server.

    Attributes
    ----------
    summaries, electronic, core, tasks : dict
        Documents by material or calculation id.
    objects : dict of str to bytes
        The bucket by key.
    requests : Counter
        Requests by ``METHOD path``.
    faults : dict of str to list of str
        Part of a path to what goes wrong with the next requests of it, in order: ``429``, ``503``, ``reset``,
        ``short``, ``wrong``.
    encoded : bool
        Whether objects are sent with ``Content-Encoding: gzip``, as a bucket does for objects stored so.
    hold_after : int, optional
        Objects that are served before every further request of the bucket waits for `released`.
    """

    def __init__(self, count: int = 5) -> None:
        self.db_version = "2025.09.25"
        self.summaries: dict[str, dict] = {}
        self.electronic: dict[str, dict] = {}
        self.core: dict[str, dict] = {}
        self.tasks: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.faults: dict[str, list[str]] = {}
        self.encoded = False
        self.hold_after: int | None = None
        self.served = 0
        self.holding, self.released = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        for number in range(count):
            self._add(number)

    def _add(self, number: int) -> None:
        cation, anion, a = CELLS[number % len(CELLS)]
        a += 0.01 * (number // len(CELLS))
        structure = Structure(Lattice.cubic(a), [cation] * 4 + [anion] * 4, ROCK_SALT)
        material, dos_task, old, new = (f"mp-{base + number}" for base in (100, 2000, 3000, 4000))
        # real documents name every field that was asked for, with null where nothing is known
        self.summaries[material] = {
            "material_id": material,
            "formula_pretty": f"{cation}{anion}",
            "chemsys": "-".join(sorted((cation, anion))),
            "nsites": 8,
            "structure": structure.as_dict(),
            "symmetry": {"crystal_system": "Cubic", "symbol": "Fm-3m", "number": 225, "version": "2.5.0"},
            "band_gap": 5.0 + number,
            "is_metal": False,
            "formation_energy_per_atom": -2.0 - 0.1 * number,
            "energy_above_hull": 0.0,
            "bulk_modulus": {"voigt": 24.0, "reuss": 23.9, "vrh": 23.95} if number % 2 == 0 else None,
            "shear_modulus": None,
            "density": 2.17,
            "total_magnetization": 0.0,
            "has_props": {"materials": True, "dos": True, "charge_density": True},
            "deprecated": False,
        }
        total = {"1": {"band_gap": 5.0, "cbm": 3.5, "vbm": -1.5, "efermi": 0.0, "spin_polarization": None}}
        self.electronic[material] = {"material_id": material, "dos": {"task_id": dos_task, "total": total}}
        types = {old: "GGA Static", new: "GGA Static", dos_task: "GGA NSCF Uniform"}
        self.core[material] = {"material_id": material, "calc_types": types}
        self.tasks[old] = {"task_id": old, "last_updated": {"$date": "2019-01-01T00:00:00Z"}}
        self.tasks[new] = {"task_id": new, "last_updated": {"$date": "2023-01-01T00:00:00Z"}}
        self.objects[f"dos/{dos_task}.json.gz"] = packed({"fs_id": "6", "data": complete_dos(structure, number)})
        self.objects[f"chgcars/{new}.json.gz"] = packed([{"task_id": new, "data": chgcar(structure, number)}])

    def answer(self, path: str, query: dict[str, str]) -> dict | None:
        """Return the JSON answer of the API, or None for an unknown path."""
        if path == "/heartbeat":
            return {
                "status": "OK",
                "time": "2025-11-25T00:00:00",
                "version": "0.86.4",
                "db_version": self.db_version,
                "access_controlled_batch_ids": ["gnome_r2scan_statics"],
            }
        tables = {
            "/materials/summary/": (self.summaries, "material_id"),
            "/materials/electronic_structure/": (self.electronic, "material_id"),
            "/materials/core/": (self.core, "material_id"),
            "/materials/tasks/": (self.tasks, "task_id"),
        }
        if path not in tables:
            return None
        table, key = tables[path]
        found = [document for _, document in sorted(table.items())]
        if f"{key}s" in query:
            asked = set(query[f"{key}s"].split(","))
            found = [document for document in found if document[key] in asked]
        if "chemsys" in query:
            found = [document for document in found if document["chemsys"] in query["chemsys"].split(",")]
        if "deprecated" in query:
            found = [document for document in found if str(document.get("deprecated", False)) == query["deprecated"]]
        if "nsites_max" in query:
            found = [document for document in found if document["nsites"] <= int(query["nsites_max"])]
        limit = int(query.get("_per_page") or query.get("_limit") or 100)
        start = (int(query["_page"]) - 1) * limit if "_page" in query else int(query.get("_skip", 0))
        names = query["_fields"].split(",")
        page = [{name: document.get(name) for name in names} for document in found[start : start + limit]]
        meta = {"api_version": "0.86.4", "total_doc": len(found), "max_limit": 1000, "default_fields": names}
        return {"data": page, "meta": meta}


def complete_dos(structure: Structure, number: int) -> dict:
    """Return a density of states with a gap from -1.5 to 3.5 eV, as ``CompleteDos.as_dict`` writes one."""
    energies = np.linspace(-12, 12, 481)
    states = np.where((energies <= -1.5) | (energies >= 3.5), 4.0 + number, 0.0)
    return {
        "@module": "pymatgen.electronic_structure.dos",
        "@class": "CompleteDos",
        "efermi": 0.0,
        "energies": energies.tolist(),
        "densities": {"1": (states / 2).tolist(), "-1": (states / 2).tolist()},
        "structure": structure.as_dict(),
        "pdos": [],
    }


def chgcar(structure: Structure, number: int) -> dict:
    """Return a charge density of 1 + number/10 electrons per cubic Angstrom on average, as ``Chgcar.as_dict``."""
    wave = np.cos(2 * np.pi * np.arange(12) / 12)
    density = 1.0 + number / 10 + 0.5 * wave[:, None, None] * np.ones((12, 10, 8))
    total = {
        "@module": "numpy",
        "@class": "array",
        "dtype": "float64",
        "data": (density * structure.volume).tolist(),
    }
    poscar = {"@module": "pymatgen.io.vasp.inputs", "@class": "Poscar", "structure": structure.as_dict()}
    table = {"@module": "pymatgen.io.vasp.outputs", "@class": "Chgcar", "data": {"total": total}, "data_aug": {}}
    return {**table, "poscar": poscar}


def packed(value: object) -> bytes:
    """Return gzipped JSON."""
    return gzip.compress(json.dumps(value).encode(), mtime=0)


@contextmanager
def serving(project: MaterialsProject) -> Iterator[str]:
    """Serve on a free port of loopback: the API at the root, the bucket below ``/bucket/``."""
    handler = type("Handler", (_Handler,), {"project": project})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        project.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    project: MaterialsProject
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(head=True)

    def do_GET(self) -> None:
        self._serve(head=False)

    def _serve(self, *, head: bool) -> None:
        project, url = self.project, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with project.lock:
            project.requests[f"{self.command} {url.path}"] += 1
            queue = next((queue for part, queue in project.faults.items() if part in url.path and queue), [])
            # what is asked of an object first is its size
            fault = queue.pop(0) if queue and not head else ""
        if url.path.startswith("/bucket/"):
            self._bucket(url.path.removeprefix("/bucket/"), fault, head=head)
            return
        if url.path != "/heartbeat" and self.headers.get("x-api-key") != KEY:
            self._send(403, b'{"detail": "Invalid authentication credentials"}', {})
            return
        answer = project.answer(url.path, query)
        if answer is None:
            self._send(404, b'{"detail": "Not Found"}', {})
        else:
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, fault)

    def _bucket(self, key: str, fault: str, *, head: bool) -> None:
        project = self.project
        data = project.objects.get(key)
        if data is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {}, head=head)
            return
        if not head:
            with project.lock:
                project.served += 1
                hold = project.hold_after is not None and project.served > project.hold_after
            if hold:
                project.holding.set()
                project.released.wait()
        etag = hashlib.md5(data).hexdigest()
        headers = {"ETag": f'"{etag}"'} | ({"Content-Encoding": "gzip"} if project.encoded else {})
        self._send(200, data, headers, fault, head=head)

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: str = "", *, head: bool = False) -> None:
        if fault == "reset":
            # closing with unsent data pending and no linger sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault in ("429", "503"):
            status, body, headers = int(fault), b"<html>busy</html>", {"Retry-After": "0"}
        if fault == "wrong":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        self.close_connection = fault == "short"
