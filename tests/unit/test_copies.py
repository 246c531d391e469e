"""Copies between two sides are whole or not there, and never follow a link."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from thawbox.errors import InvalidRequest
from thawbox.host.copies import copy_between, on_host


def copy(source: Path | str, target: Path | str) -> list[str]:
    return copy_between(on_host, str(source), on_host, str(target)).left_out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "below").mkdir(parents=True)
    (root / "below" / "file").write_bytes(bytes(range(256)) * 1000)
    (root / "link").symlink_to("/etc/passwd")
    (root / "program").write_text("#!/bin/sh\n")
    (root / "program").chmod(0o4755)
    os.mkfifo(root / "pipe")
    os.utime(root / "program", (1, 2))
    return root


def test_a_tree_arrives_with_content_links_modes_and_times_but_no_set_user_id(tree: Path, tmp_path: Path) -> None:
    assert copy(tree, tmp_path / "new") == [f"{tree}/pipe"]
    new = tmp_path / "new"
    assert (new / "below" / "file").read_bytes() == (tree / "below" / "file").read_bytes()
    assert str((new / "link").readlink()) == "/etc/passwd"
    seen = (new / "program").stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_mtime) == (0o755, 2)
    assert not (new / "pipe").exists()


def test_into_a_directory_it_keeps_its_name_and_elsewhere_it_gets_the_one_given(tree: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    copy(tree / "program", into)
    copy(tree / "program", into / "renamed")
    assert sorted(path.name for path in into.iterdir()) == ["program", "renamed"]


def test_a_file_replaces_a_file_and_nothing_replaces_a_directory(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    copy(tree / "program", target)
    assert target.read_text() == "#!/bin/sh\n"
    with pytest.raises(InvalidRequest, match="in the way"):
        copy(tree, target)
    (tmp_path / "into" / "tree").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="in the way"):
        copy(tree, tmp_path / "into")


@pytest.mark.parametrize("source", ["/dev/null", "/"])
def test_what_is_no_file_or_has_no_name_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        copy(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_place_is_told_by_its_path(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        copy(tree / "program", tmp_path / "missing" / "name")
    with pytest.raises(FileNotFoundError, match="missing"):
        copy(tree / "program", f"{tmp_path}/missing/")


@pytest.fixture
def small_files(tree: Path) -> Iterator[Path]:
    """The tree; no file of this process may grow over 100 kB from now on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield tree
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_copy_that_fails_half_way_leaves_nothing_and_the_old_file(small_files: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("old")
    with pytest.raises(OSError, match="too large"):
        copy(small_files, place)
    with pytest.raises(OSError, match="too large"):
        copy(small_files / "below" / "file", place)
    assert [path.name for path in place.iterdir()] == ["file"]
    assert (place / "file").read_text() == "old"
