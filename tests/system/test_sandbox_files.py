"""Files of a running sandbox: what a program in it may do meanwhile changes nothing outside it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from conftest import OpenNode
from service import wait_for
from thawbox.errors import InvalidPath, InvalidRequest, InvalidTransition, PathNotFound, ThawboxError
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

WORKLOADS = Path(__file__).parents[1] / "workloads"
ROUNDS = 150


@pytest.fixture
def box(node: Node) -> Sandbox:
    mounts = (Mount(str(WORKLOADS), "/workloads", read_only=True),)
    return node.run(Spec(("sleep", "1000"), name="box", mounts=mounts))


@pytest.fixture
def canary() -> Iterator[Path]:
    """A directory of the host with a file that must neither be read nor changed; the same path exists inside."""
    place = Path("/tmp") / f"thawbox-canary-{secrets.token_hex(6)}"
    place.mkdir()
    (place / "file").write_text("outside")
    yield place
    shutil.rmtree(place)


def test_a_file_comes_and_goes_whole(box: Sandbox) -> None:
    content = os.urandom(3_000_000)
    with box.files.upload() as upload:
        upload.add(content)
        entry = box.files.write("/srv/new/dir/file", upload, mode=0o4640, user="nobody")
    assert (entry.type, entry.size, entry.mode, entry.uid) == ("file", len(content), 0o640, 65534)
    assert box.files.read("/srv/new/dir/file") == content
    with box.files.open("/srv/new/dir/file") as reading:
        assert b"".join(reading.pieces(1000, 2000)) == content[1000:2000]
    assert [one.name for one in box.files.list("/srv/new/dir")] == ["file"]
    assert box.files.write("/srv/new/dir/file", b"short").mode == 0o640, "it keeps its mode"
    assert box.run("cat", "/srv/new/dir/file").stdout == b"short"  # type: ignore[union-attr]
    box.files.remove("/srv/new", recursive=True)
    with pytest.raises(PathNotFound):
        box.files.stat("/srv/new")


def test_an_archive_goes_down_and_up(box: Sandbox) -> None:
    box.files.write("/srv/tree/a", b"one")
    box.run("ln", "-s", "a", "/srv/tree/link")
    with box.files.upload() as upload:
        for piece in box.files.archive("/srv/tree"):
            upload.add(piece)
        done = box.files.unpack("/srv/copy", upload, user="nobody")
    assert (done.files, box.files.read("/srv/copy/link")) == (2, b"one")
    assert box.files.stat("/srv/copy/a").uid == 65534


def test_what_is_no_file_is_told_and_not_opened(box: Sandbox) -> None:
    box.run("mkfifo", "/srv/fifo")
    for path in ("/srv/fifo", "/dev/null", "/dev/zero", "/proc/uptime", "/sys/kernel/notes", "/proc/1/mem"):
        with pytest.raises(InvalidRequest):
            box.files.read(path)
    for path in ("/proc/self/environ", "/proc/2/root/etc/passwd", "/proc/2/cwd/etc/passwd", "/dev/stdin", "/nothing"):
        with pytest.raises((PathNotFound, InvalidPath, InvalidRequest)):
            box.files.read(path)
    for path in ("/proc/sys/kernel/hostname", "/sys/x", "/", "/usr/.."):
        with pytest.raises(ThawboxError):
            box.files.write(path, b"x")


def test_a_file_of_the_image_is_replaced_and_removed_in_this_sandbox_alone(box: Sandbox) -> None:
    before = sorted(Path("/usr/share/doc/bash").iterdir())
    box.files.write("/etc/debian_version", b"mine\n")
    box.files.remove("/usr/share/doc/bash", recursive=True)
    assert box.run("cat", "/etc/debian_version").stdout == b"mine\n"  # type: ignore[union-attr]
    assert Path("/etc/debian_version").read_bytes() != b"mine\n"
    assert sorted(Path("/usr/share/doc/bash").iterdir()) == before
    with pytest.raises(PathNotFound):
        box.files.stat("/usr/share/doc/bash")


def test_a_snapshot_made_during_writes_holds_each_file_whole_and_nothing_half(node: Node, box: Sandbox) -> None:
    written: list[int] = []
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            box.files.write(f"/srv/w/{number}", str(number).encode() * 20_000)
            written.append(number)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(written) < 5:
            over.wait(0.001)
        snapshot = box.checkpoint()
    finally:
        over.set()
        thread.join()
    with snapshot.clone() as clone:
        listed = clone.files.list("/srv/w")
        assert len(listed) >= 5
        for entry in listed:
            assert clone.files.read(entry.path) == entry.name.encode() * 20_000


def test_no_race_leads_out(box: Sandbox, canary: Path) -> None:
    inside = str(canary)
    targets = [inside, "/", "..", f"/proc/1/root{inside}", "../../../../../.." + inside, "/proc/self/root"]
    box.files.write(f"{inside}/file", b"inside")
    box.exec(("python3", "/workloads/swapping.py", "/srv/place", *targets), detach=True)
    # What the root of the host would hold if one of these were followed there:
    planted = [Path("/planted"), Path("/tmp/planted"), canary / "planted", canary.parent / "made"]
    read: set[bytes] = set()
    attempts: list[Callable[[], object]] = [
        lambda: read.add(box.files.read("/srv/place/file")),
        lambda: box.files.write("/srv/place/planted", b"x"),
        lambda: box.files.make_directory("/srv/place/made/below"),
        lambda: box.files.list("/srv/place"),
        lambda: box.files.stat("/srv/place/file"),
        lambda: box.files.remove("/srv/place/planted"),
        lambda: box.files.remove("/srv/place/made", recursive=True),
        lambda: read.update(_contents(box, "/srv/place")),
        lambda: _unpack(box, "/srv/place"),
    ]
    done = 0
    for _ in range(ROUNDS):
        for attempt in attempts:
            with contextlib.suppress(PathNotFound, InvalidPath, InvalidRequest):
                attempt()
                done += 1
    wait_for(lambda: _is_there(box, "/srv/place.rounds"), "a hundred exchanges: else the test shows nothing")
    assert done > ROUNDS
    assert b"inside" in read
    assert b"outside" not in read
    assert (canary / "file").read_text() == "outside"
    assert [one.name for one in canary.iterdir()] == ["file"]
    assert not any(one.exists() for one in planted)


def _is_there(box: Sandbox, path: str) -> bool:
    try:
        box.files.stat(path)
    except PathNotFound:
        return False
    return True


def _contents(box: Sandbox, path: str) -> set[bytes]:
    """The small files of an archive, as far as it goes: in a round in which the link led to `/`, only the first."""
    found: set[bytes] = set()
    stream = box.files.archive(path)
    raw = b""
    for piece in stream:
        raw += piece
        if len(raw) > 100_000:
            break
    stream.close()  # type: ignore[attr-defined]
    with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=BytesIO(raw)) as tar:
        for member in tar:
            if member.isreg() and member.size < 100 and member.name.endswith("file"):
                content = tar.extractfile(member)
                found.add(content.read() if content else b"")
    return found


def _unpack(box: Sandbox, path: str) -> None:
    raw = BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("planted")
        info.size = 1
        tar.addfile(info, BytesIO(b"x"))
    with box.files.upload() as upload:
        upload.add(raw.getvalue())
        box.files.unpack(path, upload)


def test_a_disk_of_the_host_is_not_read_through_a_node_made_inside(box: Sandbox) -> None:
    made = Path("/").stat().st_dev
    path = Path(f"/proc/{box.record.keeper_pid}/root/srv/disk")
    os.mknod(path, stat.S_IFBLK | 0o666, made)  # as if the sandbox could
    with pytest.raises(InvalidRequest, match="device"):
        box.files.read("/srv/disk")
    box.files.remove("/srv/disk")


def test_an_ended_sandbox_has_no_files(open_node: OpenNode) -> None:
    node = open_node()
    box = node.run(Spec(("sleep", "1000"), name="box"))
    box.stop(timeout=0)
    for attempt in (lambda: box.files.read("/etc/passwd"), lambda: box.files.write("/x", b"")):
        with pytest.raises(InvalidTransition):
            attempt()


def test_a_frozen_sandbox_has_its_files(box: Sandbox) -> None:
    box.freeze()
    box.files.write("/srv/x", b"cold")
    assert box.files.read("/srv/x") == b"cold"
    box.thaw()
    assert box.run("cat", "/srv/x").stdout == b"cold"  # type: ignore[union-attr]
