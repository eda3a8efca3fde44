"""The page of a report: one file that needs no other, runs nothing, and takes no markup from the data."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

from finetune.evaluations.base import Findings
from pretrain.plots import Row

# rows of a table that the page shows; the CSV has all
SHOWN = 200

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; background: #fff }
h2 { margin-top: 2.5em; border-top: 1px solid #ddd; padding-top: 1em }
p.text { max-width: 50em }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: bold; padding: 4px 0 }
th, td { border-bottom: 1px solid #e4e4e4; padding: 3px 10px; text-align: left }
.number { text-align: right }
figure { display: inline-block; margin: 1em 1em 1em 0; max-width: 100% }
figure img { max-width: 100% }
figcaption, .note { color: #666; font-size: 13px }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if sections | length > 1 %}
<ul>
{% for section in sections %}<li><a href="#s{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
</ul>
{% endif %}
{% for section in sections %}
<section id="s{{ loop.index }}">
{% if sections | length > 1 %}<h2>{{ section.title }}</h2>{% endif %}
<p class="text">{{ section.text }}</p>
{% for table in section.tables %}
<div class="wide"><table>
<caption>{{ table.name }}</caption>
<thead><tr>{% for column in table.columns %}<th{% if column in table.numeric %} class="number"{% endif %}>{{ column }}\
</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for column in table.columns %}<td{% if column in table.numeric %} class="number"{% endif %}>\
{{ row.get(column) | cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% if table.more %}<p class="note">{{ table.more }} more rows in {{ table.file }}</p>{% endif %}
{% endfor %}
{% for plot in section.plots %}
<figure><img alt="{{ plot.name }}" src="data:image/png;base64,{{ plot.data }}"><figcaption>{{ plot.name }}\
</figcaption></figure>
{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""


def render(title: str, sections: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of sections as `section` makes them."""
    return _template().render(title=title, sections=sections)


def section(
    findings: Findings, files: Mapping[str, str], images: Mapping[str, bytes], *, shown: int = SHOWN
) -> dict[str, Any]:
    """Return what the page shows of findings.

    Parameters
    ----------
    findings : Findings
        Headline figures become a table of their own.
    files : mapping of str to str
        The CSV of every table.
    images : mapping of str to bytes
        The PNG of every plot.
    shown : int
        Rows of a table.
    """
    headline: list[Row] = [{"figure": name, "value": value} for name, value in findings.values.items()]
    tables = [_table("headline figures", headline, "", len(headline))] if headline else []
    tables += [_table(name, rows, files[name], shown) for name, rows in findings.tables.items()]
    plots = [{"name": name, "data": base64.b64encode(image).decode()} for name, image in images.items()]
    return {"title": findings.title, "text": findings.text, "tables": tables, "plots": plots}


def cell(value: Any) -> str:
    """Return a value as a reader wants it: four figures of a number, a dash where there is none."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return "–"
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return str(value)


def _table(name: str, rows: Sequence[Row], file: str, shown: int) -> dict[str, Any]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {
        column
        for column in columns
        if all(isinstance(row.get(column), Real | None) and not isinstance(row.get(column), bool) for row in rows)
    }
    more = max(0, len(rows) - shown)
    return {"name": name, "columns": columns, "numeric": numeric, "rows": rows[:shown], "more": more, "file": file}


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    return environment.from_string(TEMPLATE)
