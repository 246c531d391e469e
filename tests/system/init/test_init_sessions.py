"""What a caller of exec sees of the real init, in real namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from thawbox.errors import NotFound
from thawbox.host.init_client import ExecRefused, Exited, InitLink, Interrupted, Output, SessionGone
from thawbox.host.init_wire import ExecRequest, ProgramState, Rlimit, Stream, Terminal
from thawbox.host.proc import children


def sh(script, **options):
    return ExecRequest(argv=["sh", "-c", script], **options)


def run(shell, request, stdin=b""):
    with shell.link() as link, link.exec(request) as session:
        return session.communicate(stdin)


def read_until(session, wanted):
    """Poll until `wanted` was printed; everything printed so far."""
    seen = b""
    while wanted not in seen:
        for event in session.poll():
            assert isinstance(event, Output), f"{event} after {seen!r}"
            seen += event.content
    return seen


def test_exec_gives_exit_status_and_each_stream_whole(start_shell):
    done = run(start_shell(), sh("echo out; echo err >&2; exit 3"))
    assert (done.outcome, done.stdout, done.stderr) == (Exited(3), b"out\n", b"err\n")


def test_exec_runs_as_the_user_in_the_directory_and_environment_asked_for(start_shell):
    request = sh('id -u; id -g; id -G; pwd; echo "$LAYER $EXTRA $HOME"', uid=1234, gid=2345, groups=[7, 8], cwd="/tmp",
                 env={"LAYER": "exec", "EXTRA": "1"})  # fmt: skip
    assert run(start_shell(), request).stdout == b"1234\n2345\n2345 7 8\n/tmp\nexec 1 /work\n"


@pytest.mark.parametrize(
    ("request_", "status", "name"),
    [
        (ExecRequest(argv=["no-such-program"]), 127, "ENOENT"),
        (ExecRequest(argv=["/etc/passwd"]), 126, "EACCES"),
        (ExecRequest(argv=["true"], cwd="/no/such/place"), 126, "ENOENT"),
        (ExecRequest(argv=["/tmp"], uid=1), 126, "EACCES"),
    ],
)
def test_a_program_that_cannot_start_is_refused_with_the_conventional_status(start_shell, request_, status, name):
    with start_shell().link() as link:
        refusal = link.exec(request_)
        assert isinstance(refusal, ExecRefused)
        assert (refusal.exit_status, refusal.errno_name) == (status, name)
        assert link.ping().sessions == 0  # and the link lives on


def test_a_killed_program_is_told_from_one_that_exited(start_shell):
    outcome = run(start_shell(), sh("kill -SEGV $$")).outcome
    assert outcome == Exited(0, signal.SIGSEGV)
    assert outcome.exit_status == 128 + signal.SIGSEGV


def test_a_thousand_windows_of_input_come_back_unchanged(start_shell):
    payload = os.urandom(1 << 20) * 8
    assert run(start_shell(), ExecRequest(argv=["cat"], stdin=True), payload).stdout == payload


def test_input_that_nobody_reads_does_not_hold_the_caller_up(start_shell):
    assert run(start_shell(), sh("exec 0<&-; echo done", stdin=True), bytes(1 << 20)).stdout == b"done\n"


def test_a_pty_session_has_a_controlling_terminal_of_the_size_given(start_shell):
    with start_shell().link() as link, link.exec(sh("tty; stty size; read x", terminal=Terminal(30, 100))) as session:
        assert b"30 100" in read_until(session, b"30 100")
        session.resize(Terminal(40, 120))
        session.close_stdin()
        assert list(session.events())[-1] == Exited(1)  # end of file makes `read` fail


def test_what_is_typed_at_a_terminal_reaches_its_foreground_program(start_shell):
    with start_shell().link() as link:
        session = link.exec(ExecRequest(argv=["bash", "--norc", "-i"], terminal=Terminal()))
        session.offer_stdin(b"PS1=pro''mpt; echo go''ing; cat\n")
        read_until(session, b"going\r\n")
        session.offer_stdin(b"echoed\n")
        read_until(session, b"echoed\r\nechoed\r\n")
        session.offer_stdin(b"\x03")
        read_until(session, b"prompt")
        session.offer_stdin(b"exit 9\n")
        assert list(session.events())[-1] == Exited(9)
        session.close()


def test_background_programs_outlive_their_exec_and_are_adopted_by_init(start_shell):
    shell = start_shell()
    done = run(shell, sh("sleep 1000 & echo $!"))
    with shell.link() as link:
        assert link.ping().sessions <= 1  # what is left of it: its status, until the acknowledgement has arrived
    assert done.outcome == Exited(0)
    assert len(children(shell.init)) == 2  # the main program and the one left behind


def test_a_client_that_never_reads_stalls_its_own_command_only(start_shell):
    shell = start_shell()
    with shell.link() as idle, shell.link() as busy:
        stalled = idle.exec(sh("yes"))
        assert run(shell, sh("echo alive")).stdout == b"alive\n"
        assert busy.signal(signal.SIGKILL, session=stalled.id)
        assert list(stalled.events())[-1] == Exited(0, signal.SIGKILL)
        stalled.close()


def test_quiesce_leaves_no_connection_and_loses_no_byte(start_shell):
    shell = start_shell()
    session = shell.link().exec(ExecRequest(argv=["cat"], stdin=True))
    written, payload = bytearray(), os.urandom(300_000)
    rest = payload
    rounds = 0
    while len(written) < len(payload):
        rest = rest[session.offer_stdin(rest) :]
        if rounds % 3 == 0:
            shell.link().quiesce()
        rounds += 1
        for event in session.poll():
            assert isinstance(event, Output)
            written += event.content
    session.close_stdin()
    assert list(session.events()) == [Exited(0)]
    assert bytes(written) == payload
    session.close()


def test_after_quiesce_init_holds_no_connected_socket(start_shell):
    shell = start_shell()
    attached = shell.link().exec(ExecRequest(argv=["cat"], stdin=True))
    shell.link().quiesce()
    sockets = [name for name in _descriptors(shell.init) if name.startswith("socket:")]
    assert len(sockets) == 1  # the one that listens
    attached.close()


def _descriptors(pid):
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            found.append(str(link.readlink()))
    return found


def test_another_client_can_take_over_where_the_first_stopped(start_shell):
    shell = start_shell()
    first = shell.link().exec(sh("echo one; read x; echo got $x", stdin=True))
    read_until(first, b"one\n")
    second = shell.link().attach(first.id, stdout=first.offsets[Stream.STDOUT], stderr=0)
    assert list(first.events()) == [Interrupted("another client took this command over")]
    second.offer_stdin(b"word\n")
    assert list(second.events()) == [Output(Stream.STDOUT, 4, b"got word\n"), Exited(0)]
    second.close()
    first.close()


def test_the_end_of_a_command_is_kept_until_it_was_fetched(start_shell):
    shell = start_shell()
    session = shell.link().exec(sh("echo late; exit 4"))
    session._wire.close()  # the client dies without a word
    again = shell.link().attach(session.id)
    assert list(again.events()) == [Output(Stream.STDOUT, 0, b"late\n"), Exited(4)]
    again.close()
    with pytest.raises(SessionGone):
        while True:  # until the acknowledgement has arrived
            with shell.link() as link:
                link.attach(session.id)


def test_output_that_was_acknowledged_cannot_be_asked_for_again(start_shell):
    shell = start_shell()
    session = shell.link().exec(sh("echo one; read x", stdin=True))
    read_until(session, b"one\n")
    assert session.poll(0) == ()
    with shell.link() as link, pytest.raises(SessionGone):
        link.attach(session.id, stdout=0, stderr=0)
    session.close()


def test_a_detached_command_runs_on_and_its_status_can_be_waited_for(start_shell):
    shell = start_shell()
    with shell.link() as link:
        session = link.exec(sh("echo to the log; exit 6", detach=True))
        assert isinstance(session, int)
        with link.attach(session) as waiting:
            assert list(waiting.events()) == [Exited(6)]


def test_sessions_are_listed_with_what_they_are(start_shell):
    shell = start_shell()
    with shell.link() as link, shell.link() as other:
        session = other.exec(ExecRequest(argv=["cat"], terminal=Terminal()))
        (summary,) = link.sessions()
        assert (summary.id, summary.pid, summary.name) == (session.id, session.pid, "cat")
        assert (summary.terminal, summary.attached, summary.detached) == (True, True, False)
        assert summary.state is ProgramState.RUNNING
        session.close()


def test_end_sessions_kills_what_somebody_was_attached_to_and_nothing_else(start_shell):
    shell = start_shell()
    with shell.link() as link:
        attached = shell.link().exec(sh("sleep 500"))
        detached = link.exec(sh("sleep 600", detach=True))
        link.end_sessions()
        assert [each.id for each in link.sessions()] == [detached]
        assert isinstance(list(attached.events())[-1], Interrupted)
        attached.close()


def test_too_many_sessions_are_refused_and_hurt_nobody(start_shell):
    with start_shell().link() as link:
        started = [link.exec(sh("sleep 100", detach=True)) for _ in range(257)]
        refusal = started[-1]
        assert isinstance(refusal, ExecRefused)
        assert refusal.errno_name == errno.errorcode[errno.EAGAIN]
        assert link.ping().sessions == 256


def test_many_clients_at_once_each_get_their_own_answer(start_shell):
    shell = start_shell()
    answers = {}

    def ask(number):
        answers[number] = run(shell, sh(f"echo {number}")).stdout

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: b"%d\n" % number for number in range(24)}


def test_the_sandbox_ends_as_its_main_program_ends_and_says_so(start_shell):
    shell = start_shell("sh", "-c", "read x; exit 5")  # its standard input is empty
    assert shell.wait() == 5
    assert '"status": 5, "signal": 0' in (shell.root / ".thawbox/exit").read_text()


def test_a_signal_to_the_keeper_reaches_the_main_program(start_shell):
    shell = start_shell("sh", "-c", "trap 'exit 12' TERM; while :; do sleep 0.01; done")
    os.kill(shell.keeper, signal.SIGTERM)
    assert shell.wait() in (12, 128 + signal.SIGTERM)  # the trap may not be set yet


def test_an_attached_caller_is_told_that_the_sandbox_stopped(start_shell):
    shell = start_shell()
    session = shell.link().exec(sh("echo here; sleep 100"))
    read_until(session, b"here\n")
    with shell.link() as link:
        assert link.signal(signal.SIGKILL)
    assert list(session.events()) == [Interrupted("the sandbox stopped")]
    assert shell.wait() == 128 + signal.SIGKILL
    session.close()


def test_a_main_program_that_does_not_exist_ends_the_sandbox_with_127(start_shell):
    shell = start_shell("/no/such/program")
    assert shell.wait() == 127
    assert "No such file or directory" in (shell.root / ".thawbox/exit").read_text()


def test_a_damaged_config_ends_the_sandbox_with_125(start_shell):
    shell = start_shell(raw_config=b"thawbox1 and no more")
    assert shell.wait() == 125
    assert "config" in (shell.root / ".thawbox/exit").read_text()


def test_limits_of_the_config_hold_for_every_program(start_shell):
    shell = start_shell(rlimits=[Rlimit(7, 123, 124)])  # RLIMIT_NOFILE
    assert run(shell, sh("ulimit -Sn; ulimit -Hn", uid=1000)).stdout == b"123\n124\n"


def test_connecting_to_a_sandbox_that_is_gone_says_so(start_shell):
    shell = start_shell()
    init = shell.init
    with shell.link() as link:
        link.signal(signal.SIGKILL)
    shell.wait()
    with pytest.raises(NotFound):
        InitLink.connect(init)


def test_commands_leave_init_as_small_as_it_was(start_shell):
    shell = start_shell()
    run(shell, sh("true"))
    before = _footprint(shell.init)
    for _ in range(300):
        assert run(shell, sh("echo x; true &")).outcome == Exited(0)
    after = _footprint(shell.init)
    assert after["descriptors"] <= before["descriptors"] + 4  # the last ones may still be closing
    assert after["anonymous_kib"] <= before["anonymous_kib"] + 512


def _footprint(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    return {"descriptors": len(_descriptors(pid)), "anonymous_kib": anonymous}


def test_a_connection_that_says_nothing_or_half_a_frame_holds_nobody_up(start_shell):
    shell = start_shell()
    silent = [shell.link() for _ in range(20)]
    for link in silent[:10]:
        link._wire._link.sendall(b"\x02\xff")
    assert run(shell, sh("echo fine")).stdout == b"fine\n"
    for link in silent:
        link.close()
