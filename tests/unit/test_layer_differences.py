"""A captured layer that repeats what lies beneath it is told from one that changes anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from thawbox.host.layer_differences import adds_nothing
from thawbox.host.trees import CLOCK_TICK_NS, copy_layer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and overlay attributes need root")


def write(path: Path, text: str) -> None:
    """Change the content and nothing that `lstat` shows but the change time."""
    before = path.lstat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.lstat().st_mtime_ns + 1), follow_symlinks=False)


def become(path: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: write(top / "d/file", "OTHER"),
    "size": lambda top: write(top / "d/file", "longer"),
    "time": lambda top: touch(top / "d/file"),
    "time of a directory": lambda top: touch(top / "d"),
    "time of the root": touch,
    "mode": lambda top: (top / "d/file").chmod(0o600),
    "mode of a directory": lambda top: (top / "d").chmod(0o700),
    "owner": lambda top: os.chown(top / "d/file", 1, 0),
    "attribute": lambda top: os.setxattr(top / "d/file", "user.x", b"y"),
    "new file": lambda top: (top / "d/new").write_text(""),
    "new directory": lambda top: (top / "new").mkdir(),
    "deletion": lambda top: become(top / "d/file", lambda path: os.mknod(path, 0o020000)),
    "another link": lambda top: become(top / "link", lambda path: path.symlink_to("Elsewhere")),
    "a link where a file was": lambda top: become(top / "d/file", lambda path: path.symlink_to("x")),
    "a directory where a file was": lambda top: become(top / "d/file", Path.mkdir),
    "a file where a directory was": lambda top: become(top / "d", lambda path: path.write_text("")),
    "a replaced directory": lambda top: os.setxattr(top / "d", "trusted.overlay.opaque", b"y"),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    (base / "d").mkdir(parents=True)
    (base / "d/file").write_text("other")
    (base / "d/empty").write_text("")
    os.setxattr(base / "d/file", "user.kept", b"1")
    os.mkfifo(base / "fifo")
    (base / "link").symlink_to("elsewhere")
    return base


def copy(base: Path, target: Path) -> Path:
    target.mkdir()
    copy_layer(str(base), str(target), now_ns=base.lstat().st_ctime_ns + 2 * CLOCK_TICK_NS)
    return target


def test_a_copy_adds_nothing(tmp_path: Path, base: Path) -> None:
    assert adds_nothing(copy(base, tmp_path / "top"), [base])


def test_a_part_of_it_adds_nothing(tmp_path: Path, base: Path) -> None:
    top = copy(base, tmp_path / "top")
    at = (top / "d").lstat()
    (top / "d/empty").unlink()
    os.utime(top / "d", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert adds_nothing(top, [base])


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_counts(tmp_path: Path, base: Path, change: str) -> None:
    top = copy(base, tmp_path / "top")
    CHANGES[change](top)
    assert not adds_nothing(top, [base])


@pytest.mark.parametrize("change", ["content", "mode", "time of the root"])
def test_it_is_held_against_the_newest_layer_beneath(tmp_path: Path, base: Path, change: str) -> None:
    newer = copy(base, tmp_path / "newer")
    CHANGES[change](newer)
    assert adds_nothing(copy(newer, tmp_path / "top"), [base, newer])
    assert not adds_nothing(copy(base, tmp_path / "old"), [base, newer])


def test_what_was_deleted_beneath_is_new(tmp_path: Path, base: Path) -> None:
    newer = copy(base, tmp_path / "newer")
    CHANGES["deletion"](newer)
    assert not adds_nothing(copy(base, tmp_path / "top"), [base, newer])


def test_a_further_name_of_a_file_counts_as_a_change(tmp_path: Path, base: Path) -> None:
    os.link(base / "d/file", base / "d/name")
    assert not adds_nothing(copy(base, tmp_path / "top"), [base])


def test_over_nothing_every_layer_adds_something(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    assert not adds_nothing(tmp_path / "top", [])
