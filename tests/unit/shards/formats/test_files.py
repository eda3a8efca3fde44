"""Files in folders of strangers: which are listed and which are opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.errors import DataError
from shards.formats.files import files_below, refusal


def test_files_are_listed_in_order_without_hidden_ones_and_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "no").touch()
    root = tmp_path / "root"
    for name in ("b/2", "b/10", "a/x/1", "top", ".git/no", "b/.no", "__MACOSX/no"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "linked").symlink_to(tmp_path / "outside")
    assert list(files_below(root)) == ["top", "a/x/1", "b/10", "b/2"]


def test_a_folder_that_cannot_be_listed_is_not_left_out_silently(tmp_path: Path) -> None:
    """One whose path is too long, which root cannot list either; one without permission fails in the same way."""
    (tmp_path / "good").touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(os.pathconf(tmp_path, "PC_PATH_MAX") // 200 + 1):
        os.mkdir("d" * 200, dir_fd=folder)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    with pytest.raises(DataError, match="cannot be listed"):
        list(files_below(tmp_path))


def test_only_regular_files_of_the_folder_are_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").touch()
    (root / "file").touch()
    os.mkfifo(root / "pipe")
    (root / "within").symlink_to(root / "file")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "dangling").symlink_to("nothing")
    reasons = {name: refusal(root / name, root) for name in ("file", "within", "pipe", "out", "dangling")}
    assert reasons["file"] == reasons["within"] == ""
    assert "no regular file" in reasons["pipe"] and "out of the folder" in reasons["out"]
    assert "cannot be opened" in reasons["dangling"]
