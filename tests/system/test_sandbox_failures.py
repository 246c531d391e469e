"""Bad input and broken surroundings: a clear error with cause and remedy, the sandbox as it was, and nothing left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from thawbox.config import load_settings
from thawbox.engines import Place
from thawbox.engines.criu import CriuEngine
from thawbox.errors import (
    CorruptSnapshot,
    DumpFailed,
    EngineError,
    InvalidRequest,
    InvalidSpec,
    InvalidTransition,
    RestoreFailed,
    SandboxNotFound,
    SnapshotNotFound,
    StartFailed,
    ThawboxError,
    Unavailable,
    Unsupported,
)
from thawbox.host.proc import children
from thawbox.model import Mount, Net, Phase, Publish, Spec
from thawbox.node import Node, find_programs
from thawbox.sandbox import Sandbox
from traces import take_traces

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(300)]

Ask = Callable[..., dict[str, Any]]
OpenNode = Callable[..., Node]
Unchanged = Callable[[], AbstractContextManager[None]]
RunWorkload = Callable[..., Sandbox]
SLEEP = ("sleep", "infinity")


def assert_clear(error: ThawboxError) -> None:
    assert error.cause
    assert error.remediation
    assert "Traceback" not in str(error)


# --- what was asked for -----------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "no program": Spec(()),
    "a program of no name": Spec(("",)),
    "a program that is not there": Spec(("no-such-program",)),
    "a program that is no program": Spec(("/etc/passwd",)),
    "a directory": Spec(("/usr",)),
    "an argument with a NUL": Spec(("echo", "a\0b")),
    "a name that is a path": Spec(SLEEP, name="../escape"),
    "a name too long": Spec(SLEEP, name="a" * 64),
    "no such user": Spec(SLEEP, user="nobody-at-all"),
    "no such working directory": Spec(SLEEP, workdir="/no/such/place"),
    "a working directory that is relative": Spec(SLEEP, workdir="tmp"),
    "no such rootfs": Spec(SLEEP, rootfs="/no/such/rootfs"),
    "a rootfs that is a file": Spec(SLEEP, rootfs="/etc/passwd"),
    "a mount of nothing": Spec(SLEEP, mounts=(Mount("/no/such/source", "/mnt"),)),
    "a mount over everything": Spec(SLEEP, mounts=(Mount("/usr", "/"),)),
    "a mount over proc": Spec(SLEEP, mounts=(Mount("/usr", "/proc/x"),)),
    "a mount through dots": Spec(SLEEP, mounts=(Mount("/usr", "/mnt/../../x"),)),
    "too little memory to begin": Spec(SLEEP, memory=4096),
    "no processors": Spec(SLEEP, cpus=0),
    "too few tasks": Spec(SLEEP, pids=1),
    "an environment name with an equals sign": Spec(SLEEP, env={"A=B": "c"}),
    "a published port without a network": Spec(SLEEP, publish=(Publish(0, 80),)),
    "a port beyond all ports": Spec(SLEEP, net=Net.NAT, publish=(Publish(0, 65536),)),
    "a probe of no kind": Spec(SLEEP, ready="maybe:later"),
    "a probe of a port beyond all ports": Spec(SLEEP, ready="http://127.0.0.1:99999/"),
    "a probe of a port that is a word": Spec(SLEEP, ready="http://127.0.0.1:web/"),
    "a probe of no address": Spec(SLEEP, ready="http://[::1/"),
    "a probe of no host": Spec(SLEEP, ready="http:///"),
    "hooks at a port beyond all ports": Spec(SLEEP, hooks="http://127.0.0.1:99999"),
    "a program that ends before it is ready": Spec(("sh", "-c", "exit 3"), ready="tcp:80"),
    "a program that is never ready": Spec(SLEEP, ready="tcp:80", ready_timeout=0.3),
    "a probe that never ends": Spec(SLEEP, ready="cmd:sleep 1000", ready_timeout=0.3),
    "a program that ends while its probe waits": Spec(("sh", "-c", "sleep 0.3"), ready="cmd:sleep 1000"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_run_is_refused_with_a_remedy_and_leaves_nothing(
    node: Node, unchanged: Unchanged, what: str
) -> None:
    node.run(Spec(SLEEP)).remove(force=True)
    with unchanged(), pytest.raises((InvalidSpec, StartFailed, Unsupported)) as refused:
        node.run(IMPOSSIBLE[what])
    assert_clear(refused.value)
    assert not node.sandboxes()


@pytest.mark.parametrize("mount", [Mount("/etc/hostname", "/etc"), Mount("/etc", "/usr/bin/env")])
def test_a_file_mounted_over_a_directory_and_the_reverse_are_told_apart_from_what_is_broken(
    node: Node, mount: Mount
) -> None:
    with pytest.raises(StartFailed) as refused:
        node.run(Spec(SLEEP, mounts=(mount,)))
    assert "a file where a file is" in refused.value.remediation


def test_a_sandbox_that_has_ended_is_there_but_uses_nothing(node: Node) -> None:
    sandbox = node.run(Spec(("true",)))
    list(sandbox.logs(follow=True))
    with pytest.raises(InvalidTransition, match=f"{sandbox.name} is exited"):
        sandbox.stats()


def test_a_restore_whose_name_another_has_by_now_says_how_to_go_on(node: Node, unchanged: Unchanged) -> None:
    sandbox = node.run(Spec(SLEEP, name="wanted"))
    snapshot = sandbox.checkpoint(stop=True)
    sandbox.remove()
    node.run(Spec(SLEEP, name="wanted"))
    with unchanged(), pytest.raises(InvalidRequest, match="'wanted' is taken") as refused:
        snapshot.restore()
    assert "make a clone" in refused.value.remediation
    assert snapshot.clone().state is Phase.RUNNING


def test_unknown_names_are_not_found_and_say_where_to_look(node: Node, unchanged: Unchanged) -> None:
    for reference in ("nobody", "sb-0123456789ab", "", "../x", "a\0b", "x" * 10_000):
        with unchanged(), pytest.raises(SandboxNotFound) as missing:
            node.sandbox(reference)
        assert "thawbox ps" in missing.value.remediation
        with unchanged(), pytest.raises((SnapshotNotFound, InvalidSpec)) as unknown:
            node.snapshot(reference)
        assert_clear(unknown.value)


def test_a_sandbox_that_was_removed_says_so_to_whoever_still_holds_it(node: Node, unchanged: Unchanged) -> None:
    sandbox = node.run(Spec(SLEEP))
    node.sandbox(sandbox.id).remove(force=True)
    for verb in (sandbox.checkpoint, sandbox.freeze, sandbox.thaw, sandbox.stop, sandbox.remove, sandbox.stats):
        with unchanged(), pytest.raises(SandboxNotFound):
            verb()


# --- where it runs ----------------------------------------------------------------------------------------------------


def test_without_root_the_node_says_what_it_needs(tmp_path: Path) -> None:
    code = "from thawbox.node import Node\nNode()"
    done = subprocess.run(
        [sys.executable, "-c", code], user=65534, group=65534, extra_groups=[], capture_output=True, text=True, cwd="/",
        env={"THAWBOX_HOME": str(tmp_path / "home"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    assert "Unsupported" in done.stderr
    assert "root" in done.stderr
    assert not (tmp_path / "home").exists()


def test_without_criu_the_node_says_how_to_get_it(home: Path, unchanged: Unchanged) -> None:
    with unchanged(), pytest.raises(Unsupported, match="missing") as refused:
        Node(load_settings(home=home, criu=str(home / "no-criu")))
    assert "make setup" in refused.value.remediation


def fake_criu(home: Path, body: str) -> str:
    """Somebody else's program in criu's place."""
    script = home / "criu"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("echo Version: 3.17.1", id="too old"),
        pytest.param("echo unknown option >&2; exit 1", id="no criu at all"),
    ],
)
def test_a_criu_that_will_not_do_is_named_and_the_sandbox_runs_on(
    home: Path, open_node: OpenNode, unchanged: Unchanged, body: str
) -> None:
    node = open_node(criu=fake_criu(home, body))
    sandbox = node.run(Spec(SLEEP))
    sandbox.run("true")
    with pytest.raises((Unsupported, EngineError)):
        sandbox.checkpoint()  # a generation keeps count of its dumps from the first on
    with unchanged(), pytest.raises((Unsupported, EngineError)) as refused:
        sandbox.checkpoint()
    assert_clear(refused.value)
    assert sandbox.state is Phase.RUNNING
    assert sandbox.run("echo", "alive").stdout == b"alive\n"


def test_a_criu_that_says_nothing_is_ended_in_time(
    home: Path, open_node: OpenNode, workload: RunWorkload, ask: Ask, unchanged: Unchanged
) -> None:
    sandbox = workload("python3", "agent.py")
    begun = ask(sandbox)["kept"]
    real = find_programs(load_settings(home=home)).criu
    body = f'[ "$1" = --version ] && exec {real} "$@"; exec sleep 1000'
    sandbox.run("true")
    silent = open_node(criu=fake_criu(home, body), engine_timeout=1.0)
    with pytest.raises((DumpFailed, Unsupported)):
        silent.sandbox(sandbox.id).checkpoint()  # a generation keeps count of its dumps from the first on
    with unchanged(), pytest.raises((DumpFailed, Unsupported)) as failed:
        silent.sandbox(sandbox.id).checkpoint()
    assert_clear(failed.value)
    assert ask(sandbox, "move")["kept"] == begun


# --- what breaks meanwhile --------------------------------------------------------------------------------------------


@contextmanager
def criu_is_killed(home: Path) -> Iterator[threading.Event]:
    """Whichever criu enters one of the node's sandboxes is killed as soon as it is seen; the event tells of it."""
    killed, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for pid in criu_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                killed.set()

    def patient() -> None:
        while not over.is_set():
            try:
                watch()
            except (FileNotFoundError, ProcessLookupError):
                continue

    watcher = threading.Thread(target=patient)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def criu_of(pid: int) -> list[int]:
    """The criu that this process has had started; a launcher waits for it."""
    launchers = [child for child in children(pid) if b"swrk" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [child for launcher in launchers for child in children(launcher)]


def test_when_criu_is_killed_in_mid_dump_the_sandbox_runs_on_and_the_next_dump_works(
    home: Path, node: Node, workload: RunWorkload, ask: Ask, unchanged: Unchanged
) -> None:
    sandbox = workload("python3", "agent.py", "16")
    sandbox.checkpoint()
    begun = ask(sandbox)["kept"]
    with unchanged(), criu_is_killed(home) as killed, pytest.raises(DumpFailed) as failed:
        sandbox.checkpoint()
    assert killed.is_set()
    assert_clear(failed.value)
    assert sandbox.state is Phase.RUNNING
    assert ask(sandbox, "move")["kept"] == begun
    sandbox.checkpoint(stop=True).restore()
    assert ask(sandbox, "move")["kept"] == begun


class Interrupted:
    """The real engine, whose criu is killed at the moment when it reports: memory dumped, or tree restored."""

    def __init__(self, engine: CriuEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def dump(self, place: Place, images: Path, *, while_stopped: Callable[[], None], **options: Any) -> Any:
        return self._engine.dump(place, images, while_stopped=lambda: kill_criu(while_stopped), **options)

    def restore(self, place: Place, images: Path, **options: Any) -> Any:
        before_resume = options.pop("before_resume", None) or (lambda: None)
        return self._engine.restore(place, images, before_resume=lambda: kill_criu(before_resume), **options)


def kill_criu(after: Callable[[], None]) -> None:
    after()
    for pid in criu_of(os.getpid()):
        os.kill(pid, signal.SIGKILL)


def test_when_criu_is_killed_with_its_work_done_but_for_the_thaw_it_counts_for_nothing(
    home: Path, open_node: OpenNode, node: Node, workload: RunWorkload, ask: Ask, unchanged: Unchanged
) -> None:
    sandbox = workload("python3", "agent.py", "16")
    begun = ask(sandbox)["kept"]
    snapshot = sandbox.checkpoint()
    engine = node.context.engine
    assert isinstance(engine, CriuEngine)
    broken = open_node(engine=Interrupted(engine))
    with unchanged(), pytest.raises(DumpFailed) as undone:
        broken.sandbox(sandbox.id).checkpoint()
    assert_clear(undone.value)
    assert ask(sandbox, "move")["kept"] == begun
    with unchanged(), pytest.raises(RestoreFailed) as unborn:
        broken.snapshot(snapshot.id).clone()
    assert_clear(unborn.value)
    sandbox.stop(timeout=0)
    with unchanged(), pytest.raises(RestoreFailed):
        broken.snapshot(snapshot.id).restore()
    assert sandbox.state is Phase.EXITED
    snapshot.restore()
    assert ask(sandbox, "move")["kept"] == begun


HOLD = """
import mmap, os, time
held = mmap.mmap(-1, 40 << 20, mmap.MAP_PRIVATE)
for megabyte in range(40):
    held[megabyte << 20 : (megabyte + 1) << 20] = os.urandom(1 << 20)
print("held", flush=True)
time.sleep(10_000)
"""


def test_a_memory_limit_too_small_to_restore_into_is_named_and_leaves_the_snapshot_and_nothing_else(
    node: Node, unchanged: Unchanged
) -> None:
    free = node.run(Spec(("python3", "-c", HOLD), ready="log:held"))
    needed = free.stats().memory
    free.remove(force=True)
    tight = node.run(Spec(("python3", "-c", HOLD), ready="log:held", memory=(needed + (128 << 10)) // 4096 * 4096))
    snapshot = tight.checkpoint()
    with unchanged(), pytest.raises(RestoreFailed, match="memory limit") as refused:
        snapshot.clone()
    assert_clear(refused.value)
    assert tight.state is Phase.RUNNING
    assert not node.context.store.verify(deep=True)


def test_a_damaged_snapshot_is_refused_before_anything_is_made_of_it(
    node: Node, workload: RunWorkload, unchanged: Unchanged
) -> None:
    sandbox = workload("python3", "agent.py")
    snapshot = sandbox.checkpoint(stop=True)
    fetched = node.context.store.fetch(snapshot.id)
    pages = max(fetched.images[-1].glob("pages-*.img"), key=lambda path: path.stat().st_size)
    content = bytearray(pages.read_bytes())
    content[len(content) // 2] ^= 1
    pages.chmod(0o600)
    pages.write_bytes(content)
    with pytest.raises(CorruptSnapshot):
        snapshot.clone()  # forgets that it was whole when it was last looked at
    for again in (snapshot.restore, snapshot.clone):
        with unchanged(), pytest.raises(CorruptSnapshot) as refused:
            again()
        assert pages.name in str(refused.value)
        assert_clear(refused.value)


LISTEN_WHILE_TOLD = """
import os, socket, time
server = None
while os.path.exists("/mnt/stay"):
    if os.path.exists("/mnt/listen"):
        server = server or socket.create_server(("127.0.0.1", 8000))
    elif server:
        server = server.close()
        print("deaf", flush=True)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("why", ["did not answer", "ended"])
def test_a_restore_that_does_not_become_ready_changes_nothing(
    node: Node, tmp_path: Path, unchanged: Unchanged, why: str
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (listen := shown / "listen").touch()
    (stay := shown / "stay").touch()
    mounts = (Mount(str(shown), "/mnt", read_only=True),)
    sandbox = node.run(Spec(("python3", "-c", LISTEN_WHILE_TOLD), mounts=mounts, ready="tcp:8000", ready_timeout=3))
    listen.unlink()
    assert next(sandbox.logs(follow=True)).content == b"deaf\n"
    snapshot = sandbox.checkpoint(stop=True)
    before = sandbox.record
    if why == "ended":
        stay.unlink()
    with unchanged(), pytest.raises(StartFailed, match=why) as unready:
        snapshot.restore()
    assert_clear(unready.value)
    assert unready.value.log.endswith("deaf\n")
    assert sandbox.record == before
    listen.touch()
    stay.touch()
    snapshot.restore()
    assert sandbox.run("echo", "alive").stdout == b"alive\n"


FULL_DISK = """
import os, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from thawbox.config import load_settings
from thawbox.model import Spec
from thawbox.node import Node
from traces import assert_unchanged, take_traces
home, rootfs = Path(sys.argv[1]), sys.argv[2]
home.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(home)], check=True)
with Node(load_settings(home=home)) as node:
    sandbox = node.run(Spec(("sleep", "infinity")))
    small = sandbox.checkpoint()
    filler = home / "filler"
    with filler.open("wb") as file:
        try:
            while True: file.write(bytes(1 << 16)); file.flush()
        except OSError: pass
    for what in (sandbox.checkpoint, lambda: node.run(Spec(("true",))), small.clone):
        before = take_traces(home)
        try:
            what()
        except BaseException as error:
            print(type(error).__name__, error)
        else:
            print("no error")
        assert_unchanged(before, take_traces(home))
    print(sandbox.run("echo", "alive").stdout)
    filler.unlink()
    sandbox.checkpoint(stop=True).restore()
    print(sandbox.run("echo", "alive again").stdout)
    sandbox.remove(force=True)
    node.tidy()
subprocess.run(["umount", str(home)], check=True)
assert not take_traces(home).of_kernel()
"""


def test_on_a_full_disk_everything_that_needs_room_fails_and_what_runs_runs_on(
    tmp_path: Path, rootfs_cache: Path
) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", FULL_DISK, str(tmp_path / "home"),
         str(rootfs_cache), str(Path(__file__).parents[1])],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *errors, alive, again = done.stdout.splitlines()
    assert len(errors) == 3
    assert "no error" not in errors
    assert all("No space left" in error or "full" in error for error in errors), errors
    assert (alive, again) == ("b'alive\\n'", "b'alive again\\n'")


# --- who works on it is killed ----------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from thawbox.config import load_settings
from thawbox.model import Spec
from thawbox.node import Node
node = Node(load_settings(home=Path(sys.argv[1])))
sandbox = node.sandbox("agent")
snapshot = node.snapshot("latest")
print("ready", flush=True)
sys.stdin.readline()
{action}
print("done", flush=True)
sys.stdin.readline()
"""
ACTIONS = {
    "checkpointing": "sandbox.checkpoint()",
    "checkpointing to stop it": "sandbox.checkpoint(stop=True)",
    "cloning": "snapshot.clone(name='copy')",
    "cloning many": "snapshot.clones(4, name='copy')",
    "starting another": "node.run(Spec(('sleep', 'infinity'), name='copy'))",
    "removing it": "sandbox.remove(force=True)",
}


@pytest.mark.parametrize("moment_ms", [1, 5, 15, 30, 50, 80, 130])
@pytest.mark.parametrize("action", ACTIONS)
def test_whoever_is_killed_at_work_leaves_what_was_or_what_was_wanted(
    home: Path, open_node: OpenNode, workload: RunWorkload, ask: Ask, action: str, moment_ms: int
) -> None:
    """The moments are spread over what the work takes; which of them hits what does not matter to the promise."""
    sandbox = workload("python3", "agent.py", "8", name="agent")
    snapshot = sandbox.checkpoint(name="latest")
    begun, keeper = ask(sandbox)["kept"], sandbox.record.keeper_pid
    code = WORKER.format(action=ACTIONS[action])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        worker.stdin.write("\n")
        worker.stdin.flush()
        threading.Event().wait(moment_ms / 1000)
        worker.kill()
    node = open_node()
    assert all(found.state is not Phase.CREATING for found in node.sandboxes())
    assert not node.context.store.verify(deep=True)
    for found in node.sandboxes():
        if found.state is Phase.RUNNING and found.name != "copy":
            assert ask(found, "move")["kept"] == begun
    if "agent" not in {found.name for found in node.sandboxes()}:
        assert action == "removing it"
        snapshot.restore()
    elif sandbox.state is not Phase.RUNNING:
        assert action in {"checkpointing to stop it", "removing it"}
        snapshot.restore()
    assert ask(sandbox, "move")["kept"] == begun
    for found in node.sandboxes():
        found.remove(force=True)
    node.tidy()
    with suppress(ChildProcessError):
        os.waitpid(keeper, os.WNOHANG)  # pid 1 of the sandbox was this process's child, and another's business
    left = take_traces(home)
    assert not left.of_kernel()
    assert not [path for path in left.files if "/sandboxes/" in path or "/locks/" in path or "staging" in path]


def test_a_port_on_which_the_host_listens_is_not_taken_from_it(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        spec = Spec(("sleep", "100"), net=Net.NAT, publish=(Publish(port, 80),))
        with pytest.raises(Unavailable, match=f"port 127.0.0.1:{port} cannot be published"):
            node.run(spec)
    assert node.sandboxes() == []


def test_a_restore_takes_no_port_on_which_the_host_listens_by_now(node: Node, unchanged: Unchanged) -> None:
    sandbox = node.run(Spec(SLEEP, net=Net.NAT, publish=(Publish(0, 80),)))
    (publish,) = sandbox.spec.publish
    snapshot = sandbox.checkpoint(stop=True)
    sandbox.remove()
    with (
        socket.create_server(("127.0.0.1", publish.host_port)),
        unchanged(),
        pytest.raises(Unavailable, match=f"port 127.0.0.1:{publish.host_port} cannot be published") as refused,
    ):
        snapshot.restore()
    assert "make a clone" in refused.value.remediation
    restored, _ = snapshot.restore()
    assert restored.spec.publish == (publish,)
