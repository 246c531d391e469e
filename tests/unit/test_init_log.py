"""Reading logs that were made by hand: rewound, torn, hostile."""

from __future__ import annotations

import os
import struct

import pytest

from thawbox.host.init_log import cursor_after, read_log

RECORD = struct.Struct("<IBBHIIQQ")
MAGIC = 0x474C4254


def record(offset, time_ns, content, *, magic=MAGIC, stream=1, length=None):
    return RECORD.pack(magic, stream, 0, 0, 0, len(content) if length is None else length, offset, time_ns) + content


def write(path, *records, base=0):
    """A log file of (time, content) records, the first at offset `base`; returns the offset behind the last."""
    raw = b""
    for time_ns, content in records:
        raw += record(base + len(raw), time_ns, content)
    path.write_bytes(raw)
    return base + len(raw)


@pytest.fixture
def log(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def contents(fd, after=None):
    return [each.content for each in read_log(fd, after=after)]


def test_rotated_files_are_read_oldest_first(log):
    path, fd = log
    end = write(path / "main.log.2", (1, b"a\n"))
    end = write(path / "main.log.1", (2, b"b\n"), base=end)
    write(path / "main.log", (3, b"c\n"), base=end)
    assert contents(fd) == [b"a\n", b"b\n", b"c\n"]


def test_reading_goes_on_behind_the_cursor_whatever_was_rotated(log):
    path, fd = log
    end = write(path / "main.log", (1, b"a\n"), (2, b"b\n"))
    cursor = cursor_after(next(iter(read_log(fd))))
    assert contents(fd, cursor) == [b"b\n"]
    (path / "main.log").rename(path / "main.log.1")
    write(path / "main.log", (3, b"c\n"), base=end)
    assert contents(fd, cursor) == [b"b\n", b"c\n"]


def test_a_cursor_whose_record_was_rotated_away_goes_on_with_the_oldest(log):
    path, fd = log
    write(path / "main.log", (1, b"a\n"))
    cursor = cursor_after(next(iter(read_log(fd))))
    write(path / "main.log", (9, b"z\n"), base=5000)
    assert contents(fd, cursor) == [b"z\n"]


@pytest.mark.parametrize("after_restore", [[(10, b"new\n")], [(10, b"new 1\n"), (11, b"new 2\n"), (12, b"new 3\n")]])
def test_after_a_rewind_only_what_is_new_is_read(log, after_restore):
    path, fd = log
    write(path / "main.log", (1, b"kept\n"), (2, b"lost one\n"), (3, b"lost two\n"))
    cursor = cursor_after(list(read_log(fd))[-1])
    write(path / "main.log", (1, b"kept\n"), *after_restore)
    assert contents(fd, cursor) == [content for _, content in after_restore]


def test_a_rewind_with_nothing_new_gives_nothing(log):
    path, fd = log
    write(path / "main.log", (1, b"kept\n"), (2, b"lost\n"))
    cursor = cursor_after(list(read_log(fd))[-1])
    write(path / "main.log", (1, b"kept\n"))
    assert contents(fd, cursor) == []


@pytest.mark.parametrize(
    "tail",
    [
        record(34, 2, b"half")[:-1],
        record(34, 2, b"half")[:20],
        record(34, 2, b"", length=1 << 31),
        record(34, 2, b"x", magic=7),
        record(34, 2, b"x", stream=9),
    ],
)
def test_a_torn_or_senseless_record_ends_the_reading(log, tail):
    path, fd = log
    write(path / "main.log", (1, b"a\n"))
    with (path / "main.log").open("ab") as file:
        file.write(tail)
    assert contents(fd) == [b"a\n"]


def test_a_log_that_is_a_link_or_a_pipe_is_not_opened(log, tmp_path):
    path, fd = log
    (path / "main.log").symlink_to("/etc/passwd")
    assert contents(fd) == []
    (path / "main.log").unlink()
    os.mkfifo(path / "main.log")
    assert contents(fd) == []
