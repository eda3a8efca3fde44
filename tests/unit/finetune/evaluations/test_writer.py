from __future__ import annotations

import csv
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from finetune.evaluations.base import Findings
from finetune.evaluations.page import SHOWN
from finetune.evaluations.writer import write_findings

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\"'&"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def draw(axes: Axes) -> None:
    axes.plot([0, 1], [1, 0])
    axes.set_title(r"of $\bad$ " + HOSTILE)


def findings(**changes: object) -> Findings:
    parts = {
        "title": f"Title {HOSTILE}",
        "text": f"Text {HOSTILE}",
        "values": {f"mae of {HOSTILE}": 0.123456},
        "tables": {"rows": [{"id": HOSTILE, "error": 1 / 3, "n": 4}, {"id": "b", "error": float("nan"), HOSTILE: 1}]},
        "plots": {"curve": draw},
    }
    return Findings(**{**parts, **changes})  # type: ignore[arg-type]


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def dangers(page: str) -> list[str]:
    """What of a page runs or loads something."""
    found = []
    for tag, attributes in Seen(page).tags:
        if tag in ("script", "iframe", "object", "link", "base", "form"):
            found.append(tag)
        for name, value in attributes.items():
            local = (value or "").startswith(("data:image/png;base64,", "#"))
            if name.startswith("on") or (name in ("src", "href") and not local):
                found.append(f"{tag} {name}")
    return found


def test_the_page_stands_alone_and_takes_no_markup_from_the_data(tmp_path: Path) -> None:
    page = write_findings(tmp_path, findings()).read_text()
    assert page.count("data:image/png;base64,") == 1
    assert dangers(page) == []
    # everything is there as text, to the letter; the template language runs on none of it
    seen = Seen(page).text
    assert seen.count(HOSTILE) == 6 and "49" not in seen
    assert "0.1235" in seen and "0.3333" in seen and "–" in seen
    # without escaping this test would fail
    from jinja2 import Environment

    assert dangers(Environment().from_string("<p>{{ id }}</p>").render(id=HOSTILE)) == [
        "script",
        "img src",
        "img onerror",
    ]


def test_tables_and_plots_are_files_for_other_programs(tmp_path: Path) -> None:
    page = write_findings(tmp_path, findings(values={"mae": np.float32(0.5), "none": float("inf")})).read_text()
    assert '<td class="number">0.5</td>' in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html", "findings.json", "rows.csv", "rows.json", "curve.png",
    }  # fmt: skip
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["id"] == HOSTILE and float(rows[0]["error"]) == pytest.approx(1 / 3)
    summary = json.loads((tmp_path / "findings.json").read_text(), parse_constant=pytest.fail)
    assert summary["values"] == {"mae": 0.5, "none": None}
    assert summary["tables"]["rows"] == json.loads((tmp_path / "rows.json").read_text())
    assert summary["tables"]["rows"][1]["error"] is None


def test_several_share_a_page_and_no_name_leaves_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = {"../../evil": findings(), "/abs": findings(), "Noise": findings(), "noise": findings()}
    page = write_findings(out, names, title="All").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["Noise", "abs", "evil", "noise-2"]
    assert page.count("data:image/png;base64,") == 4 and "<title>All</title>" in page
    assert set(json.loads((out / "findings.json").read_text())) == set(names)

    write_findings(out, findings(tables={"findings": [{"a": 1}], "a/b": [{"a": 2}], "a?b": [{"a": 3}]}, plots={}))
    assert {path.name for path in out.glob("*.csv")} == {"findings-2.csv", "a-b.csv", "a-b-2.csv"}


def test_a_long_table_is_cut_on_the_page_and_whole_in_the_file(tmp_path: Path) -> None:
    rows = [{"id": f"row{i}"} for i in range(SHOWN + 7)]
    page = write_findings(tmp_path, findings(tables={"long": rows}, plots={})).read_text()
    assert f"row{SHOWN - 1}<" in page and f"row{SHOWN}<" not in page
    assert "7 more rows in long.csv" in Seen(page).text
    assert len((tmp_path / "long.csv").read_text().splitlines()) == SHOWN + 8
    assert write_findings(tmp_path / "empty", findings(values={}, tables={"none": []}, plots={})).exists()


def test_a_browser_shows_the_page_and_runs_nothing_of_it(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on this machine; the HTML parser above looked at the page")
    marking = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    page = write_findings(tmp_path, findings(title=marking, text=marking))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>pwned</title>" not in shown.stdout and dangers(shown.stdout) == []
    assert "0.1235" in shown.stdout
