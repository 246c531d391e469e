"""A tree of init, main program and sessions goes through CRIU, and what its callers hold goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from thawbox.host.init_client import ExecSession, Exited, Interrupted, Output, SessionGone
from thawbox.host.init_log import cursor_after, read_log
from thawbox.host.init_wire import ExecRequest, Stream, Terminal
from thawbox.host.proc import children

PROJECT = Path(__file__).parents[3]
CRIU = PROJECT / "native" / "build" / "bin" / "criu"
SUBREAPER_PATCH = list((PROJECT / "native" / "criu" / "patches").glob("*subreaper*"))

pytestmark = pytest.mark.skipif(not CRIU.exists(), reason="no criu: run `make setup`")

COUNTER = ("sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done")


def criu(shell, verb, *options):
    """Run criu inside the shell's namespaces, all but ipc, with pids out of the tree's way."""
    inside = 'echo 9000 > /proc/sys/kernel/ns_last_pid; exec /criu "$@"'
    done = subprocess.run(
        ["nsenter", "-t", str(shell.keeper), "-m", "-p", "-u", "-C", "-T", "--", "/bin/sh", "-c", inside, "sh", verb,
         "-D", "/images", "-v4", "-o", f"{verb}.log", "--manage-cgroups=ignore", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    log = (shell.root / "images" / f"{verb}.log").read_text(errors="replace")
    assert done.returncode == 0, "\n".join(line for line in log.splitlines() if "Error" in line)


@pytest.fixture
def dump_and_restore(hold_shell, tmp_path):
    """Dump a shell's tree, let it run on, and restore a copy of it into a new shell."""

    def through(shell):
        shutil.copy2(CRIU, shell.root / "criu")
        (shell.root / "images").mkdir(exist_ok=True)
        shell.link().quiesce()
        root = tmp_path / f"copy-of-{shell.root.name}"
        init = shell.init
        criu(shell, "dump", "-t", "2", "--leave-stopped", "--network-lock", "skip", "--file-locks")
        subprocess.run(["cp", "-a", shell.root, root], check=True)
        wake(init)
        restored = hold_shell(root)
        criu(restored, "restore", "--restore-detached")
        return restored

    return through


def wake(pid):
    os.kill(pid, signal.SIGCONT)
    for child in children(pid):
        wake(child)


def begin(shell, request):
    session = shell.link().exec(request)
    assert isinstance(session, ExecSession)
    return session


def read_until(session, wanted):
    seen = b""
    while wanted not in seen:
        seen += b"".join(event.content for event in session.poll() if isinstance(event, Output))
    return seen


def go_on(shell, session):
    return shell.link().attach(session.id, stdout=session.offsets[Stream.STDOUT], stderr=session.offsets[Stream.STDERR])


def test_a_session_goes_on_in_the_original_and_in_the_restored_tree(start_shell, dump_and_restore):
    original = start_shell(*COUNTER)
    session = begin(original, ExecRequest(argv=["sh", "-c", "read a; echo $a; read b; echo $a $b; exit 7"], stdin=True))
    session.offer_stdin(b"one\n")
    read_until(session, b"one\n")
    restored = dump_and_restore(original)
    for shell in (original, restored):
        with go_on(shell, session) as again:
            again.offer_stdin(b"two\n")
            assert list(again.events()) == [Output(Stream.STDOUT, 4, b"one two\n"), Exited(7)]
    session.close()


@pytest.mark.parametrize("program", ["bash", "dash"])
def test_a_shell_on_a_pty_goes_on_in_the_restored_tree(start_shell, dump_and_restore, program):
    original = start_shell(*COUNTER)
    session = begin(original, ExecRequest(argv=[program, "-i"], terminal=Terminal()))
    session.offer_stdin(b"X=41; echo rea''dy\n")
    read_until(session, b"ready\r\n")
    with go_on(dump_and_restore(original), session) as again:
        again.offer_stdin(b"echo $((X + 1)); exit 4\n")
        read = b""
        for event in again.events():
            read += event.content if isinstance(event, Output) else b""
        assert b"\r\n42\r\n" in read
        assert event == Exited(4)
    session.close()


def test_a_client_that_was_attached_reconnects_by_itself_after_the_dump(start_shell, dump_and_restore):
    original = start_shell()
    session = begin(original, ExecRequest(argv=["cat"], stdin=True))
    session.offer_stdin(b"before ")
    read_until(session, b"before ")
    dump_and_restore(original)
    session.offer_stdin(b"after")
    session.close_stdin()
    assert list(session.events()) == [Output(Stream.STDOUT, 7, b"after"), Exited(0)]
    session.close()


def test_a_client_that_knows_more_than_the_snapshot_is_told_so(start_shell, dump_and_restore):
    original = start_shell()
    session = begin(original, ExecRequest(argv=["cat"], stdin=True))
    restored = dump_and_restore(original)
    session.offer_stdin(b"not in the snapshot")
    read_until(session, b"snapshot")
    with restored.link() as link, pytest.raises(SessionGone):
        link.attach(session.id, stdout=session.offsets[Stream.STDOUT], stderr=0)
    session.close()


def test_the_log_goes_on_with_no_line_lost_or_repeated(start_shell, dump_and_restore):
    original = start_shell(*COUNTER, log_bytes=10_000, log_files=50)
    restored = dump_and_restore(dump_and_restore(original)) if SUBREAPER_PATCH else dump_and_restore(original)
    with restored.link() as link:
        while link.ping().log_end < 30_000:
            pass
    for shell in (original, restored):
        with opened(shell.root / ".thawbox/log") as fd:
            lines = b"".join(record.content for record in read_log(fd)).splitlines()
        assert lines == [b"line %d" % (number + 1) for number in range(len(lines))]


def test_a_follower_that_saw_beyond_the_snapshot_goes_on_with_what_is_new(start_shell, dump_and_restore):
    original = start_shell(*COUNTER)
    restored = dump_and_restore(original)
    with opened(original.root / ".thawbox/log") as fd:
        *_, last = read_log(fd)
    with original.link() as link:
        link.signal(signal.SIGKILL)
    with restored.link() as link, opened(restored.root / ".thawbox/log") as fd:
        while not (new := list(read_log(fd, after=cursor_after(last)))):
            link.ping()
    assert all(record.time_ns > last.time_ns for record in new)


@contextlib.contextmanager
def opened(directory):
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_end_sessions_leaves_a_clone_without_foreign_commands(start_shell, dump_and_restore):
    original = start_shell()
    session = begin(original, ExecRequest(argv=["cat"], stdin=True))
    restored = dump_and_restore(original)
    with restored.link() as link:
        link.end_sessions()
        assert link.sessions() == ()
        while len(children(restored.init)) > 1:  # killed, and reaped within moments
            link.ping()
    assert session.poll(0) == ()
    session.close()


def test_the_restored_keeper_ends_as_the_main_program_ends(start_shell, dump_and_restore):
    restored = dump_and_restore(start_shell("sh", "-c", "while [ ! -e /work/end ]; do sleep 0.01; done; exit 5"))
    (restored.root / "work/end").touch()
    assert restored.wait() == 5
    assert '"status": 5' in (restored.root / ".thawbox/exit").read_text()


def test_a_caller_attached_to_a_tree_that_dies_is_told(start_shell, dump_and_restore):
    restored = dump_and_restore(start_shell())
    session = begin(restored, ExecRequest(argv=["sleep", "100"]))
    os.kill(restored.keeper, signal.SIGKILL)
    assert isinstance(list(session.events())[-1], Interrupted)
    session.close()


@pytest.mark.skipif(not SUBREAPER_PATCH, reason="criu without the subreaper patch drops orphans from the tree")
def test_orphans_are_children_of_init_after_every_restore(start_shell, dump_and_restore):
    shell = start_shell()
    for script in ("sleep 500 &", "setsid sh -c 'sleep 600 &'", "(trap '' HUP; sleep 700) &"):
        with begin(shell, ExecRequest(argv=["sh", "-c", script])) as session:
            assert list(session.events())[-1] == Exited(0)
    first = dump_and_restore(shell)
    assert len(children(first.init)) == 4
    second = dump_and_restore(first)
    assert len(children(second.init)) == 4
    assert children(second.keeper) == [second.init]
