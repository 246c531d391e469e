"""Nothing planted in a sandbox's root leads out of it."""

from __future__ import annotations

import errno
import os
import socket
import threading

import pytest

from thawbox.errors import InvalidRequest, NotFound
from thawbox.host.inside import connect_inside, open_inside, open_root


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/hostname").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield tmp_path / "root", fd
    os.close(fd)


def read(root_fd, path, **options):
    fd = open_inside(root_fd, path, **options)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_paths_are_those_of_the_root(root):
    _, fd = root
    for path in ("/etc/hostname", "etc/hostname", "/../../etc/hostname", "/etc/../etc/./hostname"):
        assert read(fd, path) == b"inside"


@pytest.mark.parametrize("target", ["../secret", "../../secret", "/etc/../../secret", "{parent}/secret"])
def test_a_symlink_cannot_name_a_file_outside(root, target):
    path, fd = root
    (path / "link").symlink_to(target.format(parent=path.parent))
    with pytest.raises(FileNotFoundError):
        read(fd, "/link")


def test_an_absolute_symlink_stays_inside(root):
    path, fd = root
    (path / "link").symlink_to("/etc/hostname")
    assert read(fd, "/link") == b"inside"


def test_a_linked_directory_cannot_lead_out_on_the_way_to_a_new_file(root):
    path, fd = root
    (path / "dir").symlink_to("../")
    os.close(open_inside(fd, "/dir/new", os.O_WRONLY | os.O_CREAT, 0o600))
    assert (path / "new").exists()
    assert not (path.parent / "new").exists()


def test_magic_links_are_refused():
    root_fd = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError, match="symbolic links") as caught:
            open_inside(root_fd, f"/proc/{os.getpid()}/root/etc/hostname")
    finally:
        os.close(root_fd)
    assert caught.value.errno == errno.ELOOP


def test_a_directory_swapped_for_a_link_while_files_are_opened_never_leads_out(root):
    path, fd = root
    (path.parent / "out").mkdir()
    (path.parent / "out/f").write_text("outside")
    (path / "d").mkdir()
    (path / "d/f").write_text("inside")
    (path / "l").symlink_to("../out")
    over = threading.Event()

    def swap():
        while not over.is_set():
            for step in (("d", "x"), ("l", "d"), ("d", "l"), ("x", "d")):
                (path / step[0]).rename(path / step[1])

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                seen.add(read(fd, "/d/../d/f"))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EAGAIN)
    finally:
        over.set()
        swapper.join()
    assert seen <= {b"inside"}


def test_opening_a_pipe_does_not_wait_for_its_other_end(root):
    path, fd = root
    os.mkfifo(path / "pipe")
    os.close(open_inside(fd, "/pipe"))


def test_a_path_with_a_nul_byte_is_refused(root):
    _, fd = root
    with pytest.raises(InvalidRequest):
        open_inside(fd, "/etc\0/hostname")


def test_connecting_through_a_link_is_refused(tmp_path):
    address = tmp_path / "real.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(address))
        server.listen()
        connect_inside(os.getpid(), str(address)).close()
        (tmp_path / "link.sock").symlink_to(address)
        with pytest.raises(OSError, match="symbolic links"):
            connect_inside(os.getpid(), str(tmp_path / "link.sock"))


@pytest.mark.parametrize("kind", ["missing", "file", "deaf"])
def test_where_nobody_listens_nothing_is_found(tmp_path, kind):
    address = tmp_path / kind
    if kind == "file":
        address.touch()
    if kind == "deaf":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(address))
    with pytest.raises(NotFound):
        connect_inside(os.getpid(), str(address))


def test_a_process_of_another_start_time_is_not_entered():
    with pytest.raises(NotFound):
        open_root(os.getpid(), started=1)
