"""Files inside a root that is not trusted: nothing leads out, nothing is opened that should not be, all or nothing."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from thawbox.errors import InvalidRequest
from thawbox.host.inside_archives import archive, unpack
from thawbox.host.inside_files import (
    describe,
    entries,
    make_directories,
    normal,
    open_file,
    parent_of,
    pieces,
    remove,
    replacing,
    write_all,
)

MINE = (os.getuid(), os.getgid())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("outside")
    return tmp_path


@pytest.fixture
def path(outside: Path) -> Path:
    (outside / "root/etc").mkdir(parents=True)
    (outside / "root/etc/hostname").write_text("inside")
    return outside / "root"


@pytest.fixture
def root(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(root: int, path: str) -> bytes:
    file, seen = open_file(root, path)
    with file:
        return b"".join(pieces(file, 0, seen.st_size))


def write(root: int, path: str, content: bytes) -> None:
    with parent_of(root, path) as (parent, name), replacing(parent, name, mode=0o644, owner=MINE) as fd:
        write_all(fd, content)


@pytest.mark.parametrize("bad", ["", "etc", "/a\0b", "/" + "x" * 5000, "/\ud800"])
def test_a_path_is_absolute_text_of_a_bounded_length(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        normal(bad)


def test_a_path_is_kept_but_for_doubled_slashes_and_dots() -> None:
    assert normal("//a///b/./c/") == "/a/b/c"
    assert normal("/a/../b") == "/a/../b", "only the kernel knows where `a` leads"


def test_nothing_but_regular_files_is_read(path: Path, root: int) -> None:
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "socket"))
        for name in ("/fifo", "/socket"):
            with pytest.raises(InvalidRequest):
                read(root, name)
    with pytest.raises(IsADirectoryError):
        read(root, "/etc")
    assert {entry.name: entry.type for entry in entries(root, "/", limit=10)} == {
        "etc": "directory", "fifo": "fifo", "socket": "socket",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device node")
def test_a_device_is_not_opened_not_even_to_look(path: Path, root: int) -> None:
    os.mknod(path / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with pytest.raises(InvalidRequest, match="device"):
        read(root, "/disk")
    assert describe(root, "/disk").type == "device"


def test_what_the_kernel_makes_up_is_no_file() -> None:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for name in ("/proc/uptime", "/proc/sys/kernel/ostype", "/sys/kernel/uevent_seqnum"):
            with pytest.raises(InvalidRequest, match="kernel"):
                read(fd, name)
        with pytest.raises(InvalidRequest, match="kernel"):
            write(fd, "/proc/x", b"")
    finally:
        os.close(fd)


@pytest.mark.parametrize("link", ["/", "..", "../..", "{outside}"])
def test_no_link_leads_a_write_a_removal_or_a_new_directory_out(
    path: Path, root: int, outside: Path, link: str
) -> None:
    (path / "way").symlink_to(link.format(outside=outside))
    before = sorted(outside.iterdir())
    for attempt in (
        lambda: write(root, "/way/planted", b"x"),
        lambda: make_directories(root, "/way/made", mode=0o755, owner=MINE),
        lambda: remove(root, "/way/secret", recursive=True),
        lambda: write(root, "/way/../../planted", b"x"),
    ):
        try:
            attempt()
        except (OSError, InvalidRequest):
            continue
    assert sorted(outside.iterdir()) == before
    assert (outside / "secret").read_text() == "outside"


def test_a_write_replaces_a_link_and_not_what_it_names(path: Path, root: int) -> None:
    (path / "link").symlink_to("etc/hostname")
    write(root, "/link", b"new")
    assert (path / "link").read_bytes() == b"new"
    assert (path / "etc/hostname").read_text() == "inside"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(path: Path, root: int) -> None:
    with (
        pytest.raises(RuntimeError),
        parent_of(root, "/etc/hostname") as (parent, name),
        replacing(parent, name, mode=0o644, owner=MINE) as fd,
    ):
        write_all(fd, b"half of")
        raise RuntimeError
    assert [(one.name, one.read_text()) for one in (path / "etc").iterdir()] == [("hostname", "inside")]


def test_a_tree_deeper_than_descriptors_and_paths_is_removed(path: Path, root: int) -> None:
    here = os.open(path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d" * 10, dir_fd=here)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove(root, "/" + "d" * 10, recursive=True)
    assert [one.name for one in path.iterdir()] == ["etc"]


def test_a_removal_takes_links_and_not_what_they_name(path: Path, root: int, outside: Path) -> None:
    (path / "tree/below").mkdir(parents=True)
    (path / "tree/out").symlink_to(outside)
    (path / "tree/below/out").symlink_to(outside / "secret")
    remove(root, "/tree", recursive=True)
    assert not (path / "tree").exists()
    assert (outside / "secret").read_text() == "outside"


@pytest.mark.parametrize("name", ["/", "/..", "/etc/.."])
def test_the_root_itself_is_not_removed(root: int, name: str) -> None:
    with pytest.raises(InvalidRequest):
        remove(root, name, recursive=True)


def test_an_archive_holds_the_tree_and_comes_back_as_it_was(path: Path, root: int) -> None:
    os.mkfifo(path / "etc/fifo")
    (path / "etc/link").symlink_to("hostname")
    (path / "etc/sub").mkdir()
    (path / "etc/sub/big").write_bytes(os.urandom(700_001))
    long = "n" * 200
    (path / "etc" / long).write_text("long")
    stream = io.BytesIO(b"".join(archive(root, "/etc")))
    with tarfile.open(fileobj=stream) as tar:
        assert set(tar.getnames()) == {"hostname", "link", "sub", "sub/big", long}
    stream.seek(0)
    done = unpack(root, "/copy", stream, owner=MINE, limit=1 << 20)
    assert (done.files, done.left_out) == (4, [])
    assert (path / "copy/sub/big").read_bytes() == (path / "etc/sub/big").read_bytes()
    assert (path / "copy/link").readlink() == Path("hostname")


def made(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_no_archive_writes_outside_its_directory(path: Path, root: int, outside: Path) -> None:
    hostile = (
        [(member("../planted"), b"x")],
        [(member("a/../../planted"), b"x")],
        [(member("way", tarfile.SYMTYPE, "/etc"), b""), (member("way/hostname"), b"x")],
        [(member("way", tarfile.SYMTYPE, "../etc"), b""), (member("way/hostname"), b"x")],
        [(member("hard", tarfile.LNKTYPE, "../etc/hostname"), b"")],
        [(member("way", tarfile.SYMTYPE, "/etc"), b""), (member("hard", tarfile.LNKTYPE, "way/hostname"), b"")],
    )
    for members in hostile:
        with pytest.raises((InvalidRequest, OSError)):
            unpack(root, "/inbox", made(*members), owner=MINE, limit=1 << 20)
        remove(root, "/inbox", recursive=True)
    assert (path / "etc/hostname").read_text() == "inside"
    assert sorted(one.name for one in outside.iterdir()) == ["root", "secret"]


def test_an_archive_is_bounded_and_makes_no_devices_and_no_set_user_id(path: Path, root: int) -> None:
    setuid = member("tool")
    setuid.mode = 0o4755
    done = unpack(root, "/in", made((setuid, b"x"), (member("dev", tarfile.CHRTYPE), b"")), owner=MINE, limit=10)
    assert done.left_out == ["dev"]
    assert stat.S_IMODE((path / "in/tool").stat().st_mode) == 0o755
    with pytest.raises(InvalidRequest, match="more than 10 bytes"):
        unpack(root, "/in", made((member("big"), bytes(11))), owner=MINE, limit=10)
    for garbage in (b"no tar at all" * 100, made((member("x"), bytes(600))).getvalue()[:700]):
        with pytest.raises(InvalidRequest):
            unpack(root, "/in", io.BytesIO(garbage), owner=MINE, limit=1000)
    huge = member("x", b"x")  # a PAX header of a gigabyte
    huge.size = 1 << 30
    with pytest.raises(InvalidRequest):
        unpack(root, "/in", io.BytesIO(huge.tobuf()), owner=MINE, limit=1000)
