"""Measured spectra of a user: text files with two columns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from shards.errors import DataError

MAX_BYTES = 20_000_000
SEPARATORS = re.compile(r"\s*[,;]\s*|\s+")
COMMENTS = ("#", "'", "%", "//")


def read_spectrum(path: Path) -> np.ndarray:
    """Read a spectrum from a text file (``.xy``, ``.csv``, ``.txt``, ``.dat``).

    Parameters
    ----------
    path : Path
        Each row is an abscissa and an intensity, separated by white space, a comma or a semicolon (one of
        them all along a row: ``10,5 200`` is no row, since its comma may be a decimal sign); further columns (an
        error bar) are left out. Empty lines, lines that begin with ``#``, ``'``, ``%`` or ``//``, and the lines above
        the first row of numbers (a header) are skipped.

    Returns
    -------
    ndarray
        (2, n) float64: abscissae as in the file, intensities.

    Raises
    ------
    DataError
        For a file that is too large, no text, or has fewer than two rows, or another line below the first row.
    """
    where = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"the spectrum has more than {MAX_BYTES // 10**6} MB", where=where)
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError("the spectrum is no text in UTF-8", where=where, do="export it as a text file") from None
    except OSError as error:
        raise DataError(f"the spectrum cannot be read: {error.strerror}", where=where) from None
    rows: list[list[float]] = []
    for count, line in enumerate(lines, start=1):
        content = line.strip()
        if not content or content.startswith(COMMENTS):
            continue
        row = _numbers(content)
        if row is not None:
            rows.append(row)
        elif rows:
            raise DataError(f"line {count} is '{content[:60]}', not two numbers", where=where)
    if len(rows) < 2:
        raise DataError(f"the spectrum has {len(rows)} rows of two numbers", where=where, do="give at least two")
    spectrum = np.array(rows).T
    if not np.isfinite(spectrum).all():
        raise DataError("the spectrum holds NaN or infinity", where=where, do="repair the file")
    return spectrum


def _numbers(line: str) -> list[float] | None:
    if len({separator.strip() for separator in SEPARATORS.findall(line)}) > 1:
        return None
    try:
        row = [float(cell) for cell in SEPARATORS.split(line)[:2]]
    except ValueError:
        return None
    return row if len(row) == 2 else None
