"""The output log of the real init, read while it is written, rotated and rewound."""

from __future__ import annotations

import contextlib
import os
import re

from thawbox.host.init_client import Exited
from thawbox.host.init_log import follow_log, read_log
from thawbox.host.init_wire import ExecRequest, Stream
from thawbox.host.inside import open_inside, open_root


@contextlib.contextmanager
def opened(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def log_of(shell):
    return opened(shell.root / ".thawbox/log")


@contextlib.contextmanager
def opened_inside(root_fd, path):
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, root_fd)
        fd = open_inside(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        yield fd


def follow_until(fd, wanted, after=None):
    """Follow until `wanted` was seen; the records."""
    seen = []
    for record in follow_log(fd, after=after, stop=lambda: False, poll_seconds=0.005):
        seen.append(record)
        if wanted in b"".join(each.content for each in seen):
            return seen
    raise AssertionError


def lines(records):
    return b"".join(record.content for record in records).split(b"\n")[:-1]


def test_streams_are_told_apart_and_times_rise(start_shell):
    shell = start_shell("sh", "-c", "echo out; echo err >&2; sleep 100")
    with log_of(shell) as fd:
        records = follow_until(fd, b"err\n")
        if b"out\n" not in b"".join(record.content for record in records):
            records = follow_until(fd, b"out\n")
    assert {(record.stream, record.content) for record in records} == {
        (Stream.STDOUT, b"out\n"),
        (Stream.STDERR, b"err\n"),
    }
    times = [record.time_ns for record in records]
    assert times == sorted(set(times))


def test_following_across_rotations_loses_and_repeats_nothing(start_shell):
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line number $i; done; sleep 100"
    shell = start_shell("sh", "-c", script, log_bytes=64 << 10, log_files=20)
    with log_of(shell) as fd:
        records = follow_until(fd, b"line number 20000\n")
        assert lines(records) == [b"line number %d" % (number + 1) for number in range(20000)]
        assert len(list(os.scandir(fd))) > 3
        assert [record.offset for record in records[1:]] == [
            record.offset + 32 + len(record.content) for record in records[:-1]
        ]


def test_the_log_never_grows_beyond_its_files(start_shell):
    shell = start_shell("sh", "-c", "yes | head -c 3000000; sleep 100", log_bytes=100_000, log_files=3)
    with log_of(shell) as fd, shell.link() as link:
        while link.ping().log_end < 3_000_000:
            pass
        assert sum(entry.stat().st_size for entry in os.scandir(fd)) <= 3 * 100_000
        assert {entry.name for entry in os.scandir(fd)} == {"main.log", "main.log.1", "main.log.2"}


def test_an_unfinished_line_is_logged_soon_and_marked(start_shell):
    shell = start_shell("sh", "-c", "printf 'name? '; sleep 100")
    with log_of(shell) as fd:
        (record,) = follow_until(fd, b"name? ")
    assert record.partial


def test_a_line_written_in_pieces_is_kept_whole(start_shell):
    shell = start_shell("sh", "-c", "printf one-; printf two-; echo three; sleep 100")
    with log_of(shell) as fd:
        assert b"one-two-three\n" in [record.content for record in follow_until(fd, b"three\n")]


def test_a_line_longer_than_the_buffer_arrives_in_marked_pieces(start_shell):
    shell = start_shell("sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; sleep 100")
    with log_of(shell) as fd:
        records = follow_until(fd, b"\n")
    assert b"".join(record.content for record in records) == b"x" * 200_000 + b"\n"
    assert [record.partial for record in records] == [True] * (len(records) - 1) + [False]


def test_what_the_main_program_printed_last_is_in_the_log_when_it_has_ended(start_shell):
    shell = start_shell("sh", "-c", "yes | head -c 50000; printf end")
    assert shell.wait() == 0
    with log_of(shell) as fd:
        content = b"".join(record.content for record in read_log(fd))
    assert content == b"y\n" * 25_000 + b"end"


def test_a_full_disk_costs_output_and_says_how_much(start_shell):
    script = (
        "mkfifo /work/p; while read n < /work/p; do head -c $n /dev/zero | tr '\\0' x; echo; touch /work/done.$n; done"
    )
    tiny = "mkdir -p $root/.thawbox/log; mount -t tmpfs -o size=64k tmpfs $root/.thawbox/log"
    shell = start_shell("sh", "-c", script, extra=tiny)

    def run(script):
        with shell.link() as link, link.exec(ExecRequest(argv=["sh", "-c", script])) as session:
            assert session.communicate().outcome == Exited(0)

    def write(count):
        run(f"echo {count} > /work/p; until [ -e /work/done.{count} ]; do sleep 0.01; done")
        with shell.link() as link:
            for _ in range(4):  # init reads what its programs wrote before it answers, at most two pieces here
                link.ping()

    root_fd = open_root(shell.init)
    with opened_inside(root_fd, "/.thawbox/log") as fd:
        run("head -c 40000 /dev/zero > /.thawbox/log/filler; while [ ! -p /work/p ]; do sleep 0.01; done")
        write(30_000)
        run("rm /.thawbox/log/filler")
        write(7)
        records = follow_until(fd, b"xxxxxxx\n")
    notes = [record.content for record in records if record.stream is Stream.NOTE]
    lost = sum(int(re.search(rb"(\d+) bytes of output were lost: No space left", note).group(1)) for note in notes)
    assert lost > 0
    kept = sum(len(record.content) for record in records if record.stream is Stream.STDOUT)
    assert lost + kept == 30_001 + 8


def test_output_of_detached_commands_is_tagged_with_their_session(start_shell):
    shell = start_shell()
    with shell.link() as link, log_of(shell) as fd:
        session = link.exec(ExecRequest(argv=["echo", "from a session"], detach=True))
        (record,) = follow_until(fd, b"from a session\n")
        assert record.session == session


def test_what_a_left_behind_program_prints_goes_to_the_log(start_shell):
    shell = start_shell()
    script = "(while [ ! -e /work/go ]; do sleep 0.01; done; echo still here) & echo started"
    with shell.link() as link, link.exec(ExecRequest(argv=["sh", "-c", script])) as session:
        assert session.communicate().stdout == b"started\n"
    (shell.root / "work/go").touch()
    with log_of(shell) as fd:
        (record,) = follow_until(fd, b"still here\n")
        assert record.session == session.id
