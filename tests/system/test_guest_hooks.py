"""Guest hooks against real sandboxes: who is told what and when, and what happens when a hook fails, hangs or lies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import pytest

from guests import SETUP, evaluate, interpreter, interpreter_spec, run
from roads import on_both_roads
from thawbox.engines import Engine
from thawbox.engines.criu import CriuEngine
from thawbox.errors import (
    DumpFailed,
    HookFailed,
    InvalidRequest,
    InvalidTransition,
    PoolExhausted,
    StartFailed,
    Unsupported,
)
from thawbox.model import Phase
from thawbox.node import Node, make_criu_engine
from thawbox.pool import PoolSpec
from thawbox.sandbox.checkpointing import Wish
from traces import Traces

OpenNode = Callable[..., Node]


def test_hooks_run_before_a_checkpoint_and_after_it_in_the_original(node: Node) -> None:
    sandbox = interpreter(node)
    sandbox.checkpoint()
    assert evaluate(sandbox, "events") == [["before"], ["checkpoint", sandbox.name]]


@on_both_roads
def test_a_clone_is_told_that_it_is_one_and_who_it_is(node: Node) -> None:
    snapshot = interpreter(node).checkpoint()
    first, second = snapshot.clones(2)
    for clone in (first, second):
        told = evaluate(clone, "events")
        assert told == [["before"], ["clone", clone.name, clone.id, clone.record.machine_id]]
        assert evaluate(clone, "open('/etc/machine-id').read().strip()") == clone.record.machine_id
    assert first.record.machine_id != second.record.machine_id


@on_both_roads
def test_a_restore_is_told_that_it_is_one(node: Node) -> None:
    sandbox = interpreter(node)
    restored, _ = sandbox.checkpoint(stop=True).restore()
    told = evaluate(restored, "events")
    assert told == [["before"], ["restore", sandbox.name, sandbox.id, sandbox.record.machine_id]]


@on_both_roads
def test_hooks_before_run_in_reverse_order_and_those_after_in_order(node: Node) -> None:
    setup = """
for name in ("one", "two", "three"):
    guest.before_checkpoint(lambda name=name: events.append(["before " + name]))
    guest.after_restore(lambda event, name=name: events.append(["after " + name]))
"""
    clone = interpreter(node, setup).checkpoint().clone()
    assert [event[0] for event in evaluate(clone, "events")] == [
        "before three", "before two", "before one", "after one", "after two", "after three",
    ]  # fmt: skip


@on_both_roads
def test_async_hooks_run_on_the_programs_own_loop(node: Node) -> None:
    setup = """
import asyncio, threading
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
guest.attach_loop(loop)
@guest.before_checkpoint
async def before(): events.append(["before", asyncio.get_running_loop() is loop])
@guest.after_restore
async def after(event):
    await asyncio.sleep(0.001)
    events.append(["after", asyncio.get_running_loop() is loop])
"""
    clone = interpreter(node, setup).checkpoint().clone()
    assert evaluate(clone, "events") == [["before", True], ["after", True]]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("raise ValueError('no')", "raised ValueError: no"),
        ("time.sleep(600)", "took more than 0.2 s"),
    ],
    ids=["raises", "hangs"],
)
def test_a_failing_before_hook_fails_the_checkpoint_and_the_sandbox_runs_on(node: Node, body: str, cause: str) -> None:
    setup = f"""
@guest.before_checkpoint(timeout=0.2)
def failing():
    if broken: {body}
broken = True
@guest.after_checkpoint
def resumed(event): events.append([event.what])
"""
    sandbox = interpreter(node, setup)
    with pytest.raises(HookFailed, match=cause):
        sandbox.checkpoint()
    assert sandbox.state is Phase.RUNNING
    assert evaluate(sandbox, "events") == [["checkpoint"]]
    assert not node.snapshots()
    run(sandbox, "broken = False")
    assert sandbox.checkpoint().clone().state is Phase.RUNNING


def test_a_failing_before_hook_leaves_a_sandbox_that_was_to_be_stopped_running(node: Node) -> None:
    setup = """
@guest.before_checkpoint
def failing(): raise ValueError("no")
@guest.after_checkpoint
def resumed(event): events.append([event.what])
"""
    sandbox = interpreter(node, setup)
    with pytest.raises(HookFailed):
        sandbox.checkpoint(stop=True)
    assert sandbox.state is Phase.RUNNING
    assert evaluate(sandbox, "events") == [["checkpoint"]]


FAILING = """
@guest.after_restore(timeout=0.2)
def after(event):
    BODY
"""

LYING = """
import struct, json, threading
def lie():
    while True:
        peer, _ = listener.accept()
        with peer:
            (length,) = struct.unpack("<I", peer.recv(4, socket.MSG_WAITALL))
            asked = json.loads(peer.recv(length, socket.MSG_WAITALL))
            said = {"ok": True, "nonce": asked["nonce"], "sandbox": asked["identity"]["id"]}
            if asked["verb"] == "after_restore": said |= LIE
            text = json.dumps(said).encode()
            peer.sendall(struct.pack("<I", len(text)) + text)
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0thawbox-guest/liar")
listener.listen()
threading.Thread(target=lie, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("setup", "cause"),
    [
        (FAILING.replace("BODY", "raise ValueError('no')"), "raised ValueError: no"),
        (FAILING.replace("BODY", "time.sleep(600)"), "took more than 0.2 s"),
        (FAILING.replace("BODY", "os._exit(3)"), "could not be asked|no answer that can be read"),
        (LYING.replace("LIE", "{'nonce': 'x'}"), "without the nonce"),
        (LYING.replace("LIE", "{'sandbox': 'sb-000000000000'}"), "for another sandbox"),
        (LYING.replace("LIE", "{'ok': 0}"), "does not say why"),
        (LYING.replace("LIE", "{'secrets': [['a']]}"), "no answer that can be read"),
        (LYING.replace("LIE", "{'secrets': [['a', 1]]}"), "gave up more than it sent"),
    ],
    ids=["raises", "hangs", "dies", "wrong nonce", "wrong identity", "not ok", "nonsense", "cut short"],
)
@on_both_roads
def test_a_clone_whose_hook_fails_hangs_or_lies_is_destroyed_and_reported(
    node: Node, traces: Callable[[], Traces], setup: str, cause: str
) -> None:
    sandbox = interpreter(node, setup)
    snapshot = sandbox.checkpoint(stop=True)
    for attempt in (snapshot.clone, snapshot.restore):
        with pytest.raises(HookFailed, match=cause):
            attempt()
        assert [one.state for one in node.sandboxes()] == [Phase.SUSPENDED]
        assert not traces().processes
    assert [one.id for one in node.snapshots()] == [snapshot.id]


@pytest.mark.parametrize(
    "setup",
    [FAILING.replace("BODY", "raise ValueError('no')"), FAILING.replace("BODY", "time.sleep(600)"),
     LYING.replace("LIE", "{'nonce': 'x'}")],
    ids=["raises", "hangs", "lies"],
)  # fmt: skip
def test_a_pool_hands_out_nothing_of_a_template_whose_hook_raises_hangs_or_lies(node: Node, setup: str) -> None:
    node.create_template("broken", interpreter_spec(setup))
    node.create_pool(PoolSpec("broken", "broken", 1, 1, 2))
    with node.open_pool("broken") as pool, pytest.raises(PoolExhausted):
        pool.acquire(timeout=3)
    assert node.sandboxes() == []


def test_a_guest_that_hangs_is_given_up_after_the_specs_time(node: Node) -> None:
    hanging = LYING.replace("if asked", "time.sleep(600)\n            if asked").replace("LIE", "{}")
    sandbox = interpreter(node, hanging, hook_timeout=0.3)
    with pytest.raises(HookFailed, match=r"did not answer within 0\.3 s"):
        sandbox.checkpoint()
    assert sandbox.state is Phase.RUNNING


@on_both_roads
def test_every_process_that_imports_the_guest_is_told(node: Node) -> None:
    setup = (
        SETUP
        + """
import json
def child(number):
    events.clear()
    while True: time.sleep(60)
readers = []
ready = os.pipe()
for number in range(3):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        guest.after_restore(lambda event: os.write(write, event.what.encode()))
        os.write(ready[1], b"x")
        child(number)
    os.close(write)
    readers.append(read)
for _ in readers: os.read(ready[0], 1)
"""
    )
    clone = interpreter(node, setup).checkpoint().clone()
    assert evaluate(clone, "[os.read(reader, 100).decode() for reader in readers]") == ["clone"] * 3


@on_both_roads
def test_what_comes_later_is_given_to_a_clone_that_runs_already(node: Node) -> None:
    setup = """
@guest.when_given
def given(event): events.append([event.what, os.environ["WHO"], guest.secrets["KEY"].reveal()])
"""
    clone = interpreter(node, setup).checkpoint().clone(secrets={"OTHER": b"kept"})
    clone.give(secrets={"KEY": b"sesame"}, environment={"WHO": "me"})
    assert evaluate(clone, "events") == [["given", "me", "sesame"]]
    clone.checkpoint()
    assert evaluate(clone, "sorted(guest.secrets)") == ["KEY", "OTHER"]
    with pytest.raises(InvalidRequest, match="no hook"):
        interpreter(node, "").give(environment={"WHO": "nobody"})


def test_secrets_are_given_back_when_another_process_fails_the_checkpoint(node: Node) -> None:
    hanging = LYING.replace("if asked", "if asked['verb'] == 'hold': time.sleep(600)\n            if asked")
    sandbox = interpreter(node, hook_timeout=1.0)
    sandbox.give(secrets={"KEY": b"sesame"})
    run(sandbox, hanging.replace("LIE", "{}"))
    with pytest.raises(HookFailed, match="did not answer"):
        sandbox.checkpoint()
    assert evaluate(sandbox, "guest.secrets['KEY'].reveal()") == "sesame"


class FailingAtLast:
    """The real engine, whose dumps fail once everything has been written."""

    def __init__(self, engine: CriuEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def dump(self, *place: Any, **options: Any) -> Any:
        self._engine.dump(*place, **options)
        raise DumpFailed("the disk is full", log="")


HOOK = """
@guest.before_checkpoint
def failing():
    if broken: raise ValueError("no")
broken = False
"""


@pytest.mark.parametrize("stop", [False, True], ids=["runs on", "stops"])
@pytest.mark.parametrize("failure", ["a refused name", "a hook", "a process that is traced", "an engine that fails"])
def test_a_checkpoint_that_fails_takes_no_secret_away(
    node: Node, open_node: Callable[..., Node], failure: str, stop: bool
) -> None:
    sandbox = interpreter(node, SETUP + HOOK)
    sandbox.give(secrets={"KEY": b"sesame"})
    name, failing = "", sandbox
    if failure == "a refused name":
        name = "../typo"
    elif failure == "a hook":
        run(sandbox, "broken = True")
    elif failure == "a process that is traced":
        run(sandbox, TRACED)
    else:
        engine = cast(Engine, FailingAtLast(make_criu_engine(node.settings)))
        failing = open_node(engine=engine).sandbox(sandbox.id)
    with pytest.raises((InvalidRequest, HookFailed, Unsupported, DumpFailed)):
        failing.checkpoint(stop=stop, name=name)
    assert sandbox.state is Phase.RUNNING
    assert evaluate(sandbox, "guest.secrets['KEY'].reveal()") == "sesame"
    told = {"a refused name": [], "a hook": ["checkpoint"]}.get(failure, ["before", "checkpoint"])
    assert [event[0] for event in evaluate(sandbox, "events")] == told


TRACED = """
import subprocess
program = "import ctypes, os, signal; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP)"
child = subprocess.Popen([sys.executable, "-c", program])
os.waitpid(child.pid, os.WUNTRACED)
"""


def test_only_the_host_can_call_hooks(node: Node) -> None:
    sandbox = interpreter(node)
    answer = run(
        sandbox,
        """
import struct, json
found = [line.split()[-1] for line in open("/proc/net/unix") if "thawbox-guest" in line]
peer = socket.socket(socket.AF_UNIX)
peer.connect("\\0" + found[0][1:])
text = json.dumps({"verb": "before_checkpoint", "nonce": "x", "identity": {"id": "x"}}).encode()
try:
    peer.sendall(struct.pack("<I", len(text)) + text)
    said = peer.recv(100)
except OSError:
    said = b""
answer = [len(found), said.decode(), events]
""",
    )
    assert answer == [1, "", []]


def test_ready_guest_waits_for_the_program_to_say_so(node: Node) -> None:
    setup = """
import threading
guest.not_ready("the matrix")
def load():
    time.sleep(0.2)
    events.append(["loaded"])
    guest.ready()
threading.Thread(target=load).start()
"""
    assert evaluate(interpreter(node, setup, ready="guest"), "events") == [["loaded"]]


def test_a_checkpoint_when_ready_waits_and_says_what_is_missing(node: Node) -> None:
    sandbox = interpreter(node, "guest.not_ready('the matrix')", ready_timeout=2, ready="tcp:8000")
    with pytest.raises(StartFailed, match="the matrix"):
        sandbox.checkpoint(when_ready=True)
    run(sandbox, "guest.ready()")
    assert sandbox.checkpoint(when_ready=True).clone().state is Phase.RUNNING


def test_secrets_and_environment_for_a_program_without_hooks_are_refused(node: Node) -> None:
    snapshot = interpreter(node, hooks="none").checkpoint()
    with pytest.raises(InvalidRequest, match="no hook"):
        snapshot.clone(secrets={"KEY": b"sesame"})
    assert len(node.sandboxes()) == 1


def test_hooks_guest_refuses_a_program_that_does_not_listen(node: Node) -> None:
    sandbox = interpreter(node, "", hooks="guest")
    with pytest.raises(HookFailed, match=r"thawbox\.guest"):
        sandbox.checkpoint()


HTTP = """
import http.server, json, threading
class Hooks(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.say(200 if ready else 503, {"missing": ["the matrix"]})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events.append([self.path, asked.get("what"), asked["identity"]["name"], asked.get("secrets")])
        self.say(200, {"nonce": asked["nonce"]} if honest else {})
    def say(self, status, answer):
        text = json.dumps(answer).encode()
        self.send_response(status); self.send_header("Content-Length", str(len(text))); self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_): pass
ready = honest = True
threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Hooks).serve_forever).start()
"""


@on_both_roads
def test_hooks_by_http_are_told_the_same(node: Node) -> None:
    sandbox = interpreter(node, HTTP, hooks="http://127.0.0.1:9000")
    snapshot = sandbox.checkpoint(when_ready=True)
    clone = snapshot.clone(secrets={"KEY": b"sesame"})
    before = ["/internal/before-checkpoint", None, sandbox.name, None]
    assert evaluate(clone, "events") == [before, ["/internal/after-restore", "clone", clone.name, {"KEY": "c2VzYW1l"}]]
    assert evaluate(sandbox, "events") == [before, ["/internal/after-checkpoint", "checkpoint", sandbox.name, {}]]


COUNT = "class Never:\n def __bool__(self): return bool(asked.append(1))\nasked = []\nready = Never()"


def test_who_waits_until_a_sandbox_is_ready_keeps_nobody_from_stopping_it(open_node: OpenNode) -> None:
    node = open_node(lock_timeout=2.0)
    sandbox = interpreter(node, HTTP, hooks="http://127.0.0.1:9000", ready_timeout=60)
    run(sandbox, COUNT)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(sandbox.checkpoint, when_ready=True)
        run(sandbox, "while not asked: time.sleep(0.001)")
        node.sandbox(sandbox.id).stop(timeout=0)
        with pytest.raises(StartFailed, match="ended before it was ready"):
            waiting.result()


def test_a_frozen_sandbox_is_not_waited_for_since_it_cannot_say_that_it_is_ready(node: Node) -> None:
    sandbox = interpreter(node)
    sandbox.freeze()
    begin_later = partial(sandbox.begin_checkpoint, Wish(when_ready=True))
    for begin in (partial(sandbox.checkpoint, when_ready=True), begin_later):
        with pytest.raises(InvalidTransition, match="is frozen") as refused:
            begin()
        assert "thaw it" in refused.value.remediation
    sandbox.thaw()
    sandbox.checkpoint(when_ready=True)


@on_both_roads
def test_a_clone_whose_http_hook_lies_is_destroyed(node: Node) -> None:
    sandbox = interpreter(node, HTTP, hooks="http://127.0.0.1:9000")
    with pytest.raises(HookFailed, match="nonce"):
        run(sandbox, "honest = False")
        sandbox.checkpoint()
    run(sandbox, "honest = True\nreal_time = time.time()")
    run(sandbox, "class Later:\n def __bool__(self): return os.uname().nodename == home\nhome = os.uname().nodename")
    run(sandbox, "honest = Later()")
    snapshot = sandbox.checkpoint()
    with pytest.raises(HookFailed, match="nonce"):
        snapshot.clone()
    assert len(node.sandboxes()) == 1


@on_both_roads
def test_hooks_by_command_are_told_the_same(node: Node) -> None:
    command = """sh -c 'cat >>/tmp/told; echo " $1" >>/tmp/told; test "$1" != "$(cat /tmp/refused)"' hook"""
    sandbox = interpreter(node, "open('/tmp/refused', 'w').close()", hooks=f"cmd:{command}")
    snapshot = sandbox.checkpoint(when_ready=True)
    clone = snapshot.clone(secrets={"KEY": b"sesame"})
    told = evaluate(clone, "open('/tmp/told').read()")
    assert list(dict.fromkeys(line.split()[-1] for line in told.splitlines())) == [  # the first is asked until it is so
        "checkpoint-ready",
        "before-checkpoint",
        "after-restore",
    ]
    assert f'"name": "{clone.name}"' in told
    assert '"c2VzYW1l"' in told
    run(sandbox, "open('/tmp/refused', 'w').write('after-restore')")
    with pytest.raises(HookFailed, match="ended with 1"):
        sandbox.checkpoint().clone()
    run(sandbox, "open('/tmp/refused', 'w').write('before-checkpoint')")
    with pytest.raises(HookFailed, match="ended with 1"):
        sandbox.checkpoint()


@on_both_roads
def test_a_connection_of_the_host_that_is_open_during_a_checkpoint_harms_nobody(node: Node) -> None:
    sandbox = interpreter(node)
    with sandbox.connect(8000) as idle:
        clone = sandbox.checkpoint().clone()
        assert evaluate(clone, "events")[-1][0] == "clone"
        idle.sendall(b"answer = 7")
        idle.shutdown(socket.SHUT_WR)
        assert b"7" in idle.recv(100)


def test_checkpoints_of_a_program_whose_threads_never_rest_are_right(node: Node) -> None:
    setup = (
        SETUP
        + "import threading\nfor _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    )
    sandbox = interpreter(node, setup)
    for _ in range(5):
        sandbox.checkpoint()
    assert len(evaluate(sandbox, "events")) == 10
