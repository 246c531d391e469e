"""What clones must not share and restores must not lose: one promise for each row of docs/guest.md's table.

Randomness has a file of its own (test_clone_randomness.py).
"""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from certificates import Authority
from guests import PACKAGES, SETUP, evaluate, files_with, interpreter, interpreter_spec, run
from roads import on_both_roads
from thawbox.errors import InvalidRequest, Unavailable
from thawbox.host.init_client import ExecSession, Interrupted
from thawbox.host.init_wire import Stream
from thawbox.host.reach import run_within
from thawbox.model import Mount, Net, Phase, Publish
from thawbox.node import Node
from thawbox.sandbox import Sandbox

pytestmark = on_both_roads

CLONES = 20

IDENTITY = """
answer = {
    "machine-id": open("/etc/machine-id").read().strip(),
    "hostname": open("/etc/hostname").read().strip(),
    "node name": os.uname().nodename,
    "boot id": open("/proc/sys/kernel/random/boot_id").read().strip(),
}
"""


@pytest.fixture
def clones(node: Node) -> Iterator[Callable[[Sandbox], list[Sandbox]]]:
    """Makes twenty clones of a sandbox, and removes them at the end."""
    yield lambda sandbox: sandbox.checkpoint().clones(CLONES)


# --- identity --------------------------------------------------------------------------------------------------------


def test_every_clone_has_ids_of_its_own_and_a_restore_keeps_them(
    node: Node, clones: Callable[[Sandbox], list[Sandbox]]
) -> None:
    sandbox = interpreter(node)
    first = run(sandbox, IDENTITY)
    found = [first, *(run(clone, IDENTITY) for clone in clones(sandbox))]
    for name in first:
        assert len({identity[name] for identity in found}) == CLONES + 1, f"two sandboxes share their {name}"
    assert all(uuid.UUID(identity["boot id"]).version == 4 for identity in found)
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert host not in {identity["boot id"] for identity in found}
    restored, _ = sandbox.checkpoint(stop=True).restore()
    assert run(restored, IDENTITY) == first


# --- clocks ----------------------------------------------------------------------------------------------------------

ANOTHER_MACHINE = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from guests import interpreter, run
from thawbox.config import Settings
from thawbox.node import Node
with Node(Settings(home=Path(sys.argv[1]))) as node:
    sandbox = interpreter(node, '''
import threading, asyncio
clock, late, done = [time.monotonic()], [], []
def tick():
    planned = time.monotonic()
    while True:
        planned += 0.05
        time.sleep(max(0.0, planned - time.monotonic()))
        late.append(time.monotonic() - planned)
def look():
    while True:
        now = time.monotonic()
        if now < clock[-1]: clock.append(now)
        clock[-1] = max(clock[-1], now)
        time.sleep(0.02)
def sleep(): time.sleep(1.0); done.append("sleep")
def wait(): threading.Event().wait(1.0); done.append("wait")
def loop():
    async def main(): await asyncio.sleep(1.0); done.append("asyncio")
    asyncio.run(main())
def poll():
    import select; select.poll().poll(1000); done.append("poll")
for work in (tick, look, sleep, wait, loop, poll): threading.Thread(target=work, daemon=True).start()
''')
    print(run(sandbox, "answer = clock[0]"), sandbox.name)
    sandbox.checkpoint(stop=True, name="away")
"""


@pytest.mark.parametrize("ahead", [50_000_000, -600], ids=["its clock was ahead", "its clock was behind"])
def test_clocks_go_on_when_a_snapshot_comes_from_a_machine_that_booted_earlier_or_later(
    open_node: Callable[..., Node], home: Path, ahead: int
) -> None:
    tests = str(Path(__file__).parents[1])
    other = ["unshare", "--time", f"--monotonic={ahead}", f"--boottime={ahead}", "--fork"]
    said = subprocess.run(
        [*other, sys.executable, "-c", ANOTHER_MACHINE, str(home), tests], capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    began = float(said.stdout.split()[0])
    assert abs(began - time.monotonic() - ahead) < 120
    node = open_node()
    frozen = node.snapshot("away").stored.manifest.created_at
    time.sleep(max(0.0, frozen + 3 - time.time()))  # the memory sleeps, and its timers must not notice
    restored, _ = node.snapshot("away").restore()
    for sandbox in (restored, *node.snapshot("away").clones(CLONES)):
        clock = evaluate(sandbox, "clock")
        assert len(clock) == 1, "the monotonic clock went back"
        assert began <= clock[0] < began + 60, "the monotonic clock jumped ahead"
        assert abs(evaluate(sandbox, "time.time()") - time.time()) < 1
        run(sandbox, "while len(done) < 4: time.sleep(0.01)", timeout=30)  # neither hangs
        assert evaluate(sandbox, "max(late)") < 2.9, "a timer was told that it is late"


VALIDITY = (
    SETUP
    + """
import socket, ssl, threading
sys.path.append("/packages")
from joserfc import jwt, jwk
key, claims = jwk.OctKey.import_key("k" * 32), jwt.JWTClaimsRegistry(exp={"essential": True})
def token(since, until): return jwt.encode({"alg": "HS256"}, {"nbf": int(since), "exp": int(until)}, key)
def accepted(text):
    try: return claims.validate(jwt.decode(text, key).claims) is None
    except Exception as error: return type(error).__name__
trusting = ssl.create_default_context(cadata=AUTHORITY)
def connected(certificate, private):
    open("/tmp/server.pem", "w").write(certificate + private)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); serving.load_cert_chain("/tmp/server.pem")
    near, far = socket.socketpair(); ends = []
    def serve():
        try: ends.append(serving.wrap_socket(far, server_side=True))
        except OSError: far.close()
    thread = threading.Thread(target=serve); thread.start()
    try: client = trusting.wrap_socket(near, server_hostname="localhost")
    finally: thread.join()
    return client, ends[0]
def handshake(certificate, private):
    try: client, server = connected(certificate, private)
    except ssl.SSLCertVerificationError as error: return error.verify_message
    server.sendall(b"hello"); return client.recv(10).decode()
def after(young, short, early, valid_since):
    client, server = open_before
    client.sendall(b"still"); still = server.recv(10).decode()
    server.sendall(b"here"); here = client.recv(10).decode()
    tokens = [accepted(token(valid_since, time.time() + 60)), accepted(soon_out)]
    return [handshake(*young), *tokens, handshake(*short), handshake(*early), still, here]
"""
)


@pytest.mark.parametrize("way", ["clone", "restore"])
def test_tls_and_jwt_checks_know_what_became_valid_and_what_ran_out_while_the_memory_slept(
    node: Node, way: str
) -> None:
    """Certificates and tokens of seconds: what is checked is the distance to the freeze, not its length."""
    authority = Authority()
    sandbox = interpreter(node, "", mounts=(Mount(str(PACKAGES), "/packages", read_only=True),))
    run(sandbox, f"AUTHORITY = {authority.certificate!r}" + VALIDITY)
    short, gone = authority.issue(until=4), time.time() + 5
    run(sandbox, f"open_before = connected(*{short!r}); soon_out = token(time.time() - 9, {gone - 1})")
    assert evaluate(sandbox, f"[handshake(*{short!r}), accepted(soon_out)]") == ["hello", True]
    snapshot = sandbox.checkpoint(stop=way == "restore")
    frozen = time.time()
    time.sleep(max(gone, frozen + 3) - time.time())  # the sleep that is tested
    young = authority.issue(since=frozen + 2 - time.time())  # none of it was valid before the freeze
    early = authority.issue(since=600)
    expected = [
        "hello", True, "ExpiredTokenError", "certificate has expired", "certificate is not yet valid", "still", "here",
    ]  # fmt: skip
    for one in snapshot.clones(CLONES) if way == "clone" else [snapshot.restore()[0]]:
        assert evaluate(one, f"after({young!r}, {short!r}, {early!r}, {frozen + 2})") == expected


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_reach_one_clone_alone_and_no_snapshot(node: Node) -> None:
    sandbox = interpreter(node, SETUP + "marker = 'm' + 'arked-' * 3\n")
    snapshot = sandbox.checkpoint()

    def given(number: int) -> Sandbox:
        return snapshot.clone(secrets={"KEY": b"sesame-%d-open" % number}, environment={"WHO": f"clone {number}"})

    with ThreadPoolExecutor(4) as threads:
        clones = list(threads.map(given, range(CLONES)))
    for number, clone in enumerate(clones):
        seen = evaluate(clone, "[*(secret.reveal() for secret in guest.secrets.values()), os.environ['WHO']]")
        assert seen == [f"sesame-{number}-open", f"clone {number}"]
    assert evaluate(snapshot.clone(), "[len(guest.secrets), os.environ.get('WHO')]") == [0, None]


def test_a_secret_that_the_program_has_not_copied_is_in_no_page_of_a_later_snapshot(node: Node) -> None:
    sandbox = interpreter(node, SETUP + "marker = 'm' + 'arked-' * 3\n")
    secret = b"a-secret-that-stands-alone-7f3a"
    clone = sandbox.checkpoint().clone(secrets={"KEY": secret})
    assert evaluate(clone, f"bytes(guest.secrets['KEY'].view()[:8]) == {secret[:8]!r}")
    later = clone.checkpoint()
    assert files_with(node, b"marked-arked-arked-")
    assert not files_with(node, secret)
    assert evaluate(clone, "len(guest.secrets['KEY'])") == len(secret)
    assert evaluate(later.clone(), "len(guest.secrets)") == 0


ENVIRONMENT = (
    SETUP
    + """
import subprocess
os.environ["KEPT"] = "from the template"
def seen(): return [os.environ.get(name) for name in ("WHO", "KEPT", "OWN")]
def inherited(): return subprocess.check_output("echo $WHO $KEPT $OWN", shell=True, text=True).split()
@guest.after_checkpoint
def resumed(event): events.append([event.what, sorted(event.environment)])
"""
)


def test_environment_of_one_clone_is_in_no_later_snapshot_and_not_in_its_clones(node: Node) -> None:
    snapshot = interpreter(node, ENVIRONMENT).checkpoint()
    value = "a-value-that-stands-alone-2c6e"
    clone = snapshot.clone(environment={"WHO": value, "KEPT": "changed", "OWN": "given"})
    run(clone, "os.environ['OWN'] = 'its own'")  # from now on that is no longer what it was given
    later = clone.checkpoint()
    assert not files_with(node, value.encode())
    assert evaluate(clone, "seen()") == [value, "changed", "its own"]
    assert evaluate(clone, "inherited()") == [value, "changed", "its", "own"]
    assert evaluate(clone, "events[-1]") == ["checkpoint", ["KEPT", "WHO"]]
    other = later.clone(environment={"WHO": "another"})
    assert evaluate(other, "seen()") == ["another", "from the template", "its own"]
    last = later.clone()
    assert evaluate(last, "seen()") == [None, "from the template", "its own"]
    assert evaluate(last, "inherited()") == ["from", "the", "template", "its", "own"]
    restored, _ = clone.checkpoint(stop=True).restore(environment={"WHO": "back"})
    assert evaluate(restored, "seen()") == ["back", "from the template", "its own"]


def test_a_frozen_sandbox_is_checkpointed_only_if_it_holds_nothing_that_it_was_given(node: Node) -> None:
    sandbox = interpreter(node)
    sandbox.freeze()
    snapshot = sandbox.checkpoint()
    secret = b"a-secret-that-stands-alone-5d0b"
    clone, later = snapshot.clone(secrets={"KEY": secret}), snapshot.clone()
    later.give(environment={"WHO": secret.decode()})
    for given in (clone, later):
        given.freeze()
        for stop in (False, True):
            with pytest.raises(InvalidRequest, match="given secrets or environment") as refused:
                given.checkpoint(stop=stop)
            assert "thaw" in refused.value.remediation
            assert given.state is Phase.FROZEN
        given.thaw()
        given.checkpoint()
    assert not files_with(node, secret)
    assert evaluate(clone, "len(guest.secrets['KEY'])") == len(secret)
    restored, _ = clone.checkpoint(stop=True).restore()
    restored.freeze()
    restored.checkpoint()


# --- connections -----------------------------------------------------------------------------------------------------

CONNECTIONS = (
    SETUP
    + """
import threading, selectors
def listener(port):
    server = socket.create_server(("127.0.0.1", port)); server.setblocking(True); return server
inner = listener(7100)
near = socket.create_connection(("127.0.0.1", 7100)); far, _ = inner.accept()
near.sendall(b"on its way "); far.sendall(b"and back")
gone = socket.create_connection(("127.0.0.1", 7100)); half, _ = inner.accept()
gone.sendall(b"last words"); gone.close()
outside = [socket.create_connection(("127.0.0.1", 7000)) for _ in range(3)]
seen = []
def read(): seen.append(["read", outcome(lambda: outside[0].recv(10))])
def poll():
    selector = selectors.DefaultSelector(); selector.register(outside[1], selectors.EVENT_READ)
    selector.select(); seen.append(["poll", outcome(lambda: outside[1].recv(10))])
def outcome(action):
    try: return repr(action())
    except OSError as error: return type(error).__name__
for work in (read, poll): threading.Thread(target=work, daemon=True).start()
"""
)


@pytest.mark.parametrize("way", ["clone", "restore"])
def test_connections_to_the_outside_fail_at_once_and_those_inside_keep_their_bytes(node: Node, way: str) -> None:
    sandbox = interpreter(node, "")
    server = run_within(sandbox.record.keeper_pid, lambda: socket.create_server(("127.0.0.1", 7000)))
    with server:
        run(sandbox, CONNECTIONS)
        peers = [server.accept()[0] for _ in range(3)]
        snapshot = sandbox.checkpoint(stop=way == "restore")
        woken = snapshot.clones(CLONES) if way == "clone" else [snapshot.restore()[0]]
        for one in woken:
            run(one, "while len(seen) < 2: time.sleep(0.001)", timeout=20)
            assert sorted(evaluate(one, "seen")) == [["poll", "OSError"], ["read", "OSError"]]
            assert evaluate(one, "outcome(lambda: outside[2].send(b'x'))") == "BrokenPipeError"
            assert evaluate(one, "far.recv(100).decode()") == "on its way "
            assert evaluate(one, "near.recv(100).decode()") == "and back"
            run(one, "near.sendall(b'still'); answer = far.recv(100)[:0].decode()")
            assert evaluate(one, "[half.recv(100).decode(), half.recv(100).decode()]") == ["last words", ""]
            run(one, "again = socket.create_connection(('127.0.0.1', 7100)); other, _ = inner.accept()")
        if way == "clone":
            assert evaluate(sandbox, "seen") == []
            peers[0].sendall(b"hello")
            run(sandbox, "while not seen: time.sleep(0.001)")
            assert evaluate(sandbox, "seen") == [["read", "b'hello'"]]
        for peer in peers:
            peer.close()


def test_every_clone_listens_on_the_same_port_with_an_address_of_its_own(node: Node) -> None:
    setup = SETUP + "server = socket.create_server(('0.0.0.0', 7200))\nimport threading\ntaken = []\n" + ACCEPTING
    sandbox = interpreter(node, setup, net=Net.NAT, publish=(Publish(0, 7200),))
    published = sandbox.spec.publish[0].host_port
    with socket.create_connection(("127.0.0.1", published)) as outside:
        run(sandbox, "while not taken: time.sleep(0.001)")
        snapshot = sandbox.checkpoint()
        clones = snapshot.clones(CLONES)
        addresses = {one.record.address for one in (sandbox, *clones)}
        assert len(addresses) == CLONES + 1
        for clone in clones:
            run(clone, "while len(taken) < 2: time.sleep(0.001)", timeout=20)
            assert evaluate(clone, "taken") == ["accepted", "OSError"]
            run(clone, "socket.create_connection((open('/etc/hosts').read().split()[-2], 7200))")
            run(clone, "while len(taken) < 3: time.sleep(0.001)", timeout=20)
        outside.sendall(b"x")
        run(sandbox, "while len(taken) < 2: time.sleep(0.001)")
        assert evaluate(sandbox, "taken") == ["accepted", "b'x'"]
    restored, _ = sandbox.checkpoint(stop=True).restore()
    assert restored.record.address == sandbox.record.address


ACCEPTING = """
def serve():
    while True:
        peer, _ = server.accept()
        taken.append("accepted")
        threading.Thread(target=read, args=(peer,), daemon=True).start()
def read(peer):
    try: taken.append(repr(peer.recv(10)))
    except OSError as error: taken.append(type(error).__name__)
threading.Thread(target=serve, daemon=True).start()
"""

# --- files, watches, timers ------------------------------------------------------------------------------------------

FILES = (
    SETUP
    + """
import ctypes, fcntl, select, signal, subprocess, threading
os.makedirs("/var/watched")
open("/run/program.pid", "w").write(str(os.getpid()))
child = subprocess.Popen(["sleep", "1000"])
locked = open("/var/lock-by-flock", "w"); fcntl.flock(locked, fcntl.LOCK_EX)
region = open("/var/lock-by-fcntl", "w"); fcntl.lockf(region, fcntl.LOCK_EX, 10, 5)
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0o4000); libc.inotify_add_watch(watch, b"/var/watched", 0x100)
own = [f"/proc/{os.getpid()}/status", f"/proc/{child.pid}/cmdline"]
TRY = '''
import fcntl
for path, take in ("/var/lock-by-flock", fcntl.flock), ("/var/lock-by-fcntl", fcntl.lockf):
    try: take(open(path, "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB); print("free")
    except OSError: print("held")
'''
def locks(): return subprocess.check_output([sys.executable, "-S", "-c", TRY], text=True).split()
alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
"""
)


def test_locks_pidfiles_own_paths_watches_and_timers_survive(node: Node) -> None:
    sandbox = interpreter(node, FILES)
    clones = sandbox.checkpoint().clones(CLONES)
    restored, _ = sandbox.checkpoint(stop=True).restore()
    for one in (*clones, restored):
        assert evaluate(one, "open('/run/program.pid').read() == str(os.getpid())")
        assert evaluate(one, "[open(path).read()[:5] for path in own]") == ["Name:", "sleep"]
        run(one, "open('/var/watched/new', 'w').close(); select.select([watch], [], [], 20)")
        assert evaluate(one, "os.read(watch, 1000)[16:19].decode()") == "new"
        run(one, "before = len(alarms)\nwhile len(alarms) < before + 3: time.sleep(0.001)", timeout=20)
        assert evaluate(one, "locks()") == ["held", "held"]


@pytest.mark.parametrize("take", ["flock(file, fcntl.LOCK_EX)", "lockf(file, fcntl.LOCK_EX, 10, 5)"])
def test_a_lock_on_a_shared_file_is_one_sandbox_s_and_who_would_wait_for_it_is_refused(
    node: Node, tmp_path: Path, take: str
) -> None:
    (shared := tmp_path / "shared").mkdir()
    refusal = r"process \d+ \(python3\), descriptor \d+: the lock on /mnt/lock"
    setup = f"import fcntl\nfile = open('/mnt/lock', 'w')\nfcntl.{take}"
    sandbox = interpreter(node, setup, mounts=(Mount(str(shared), "/mnt"),))
    snapshot = sandbox.checkpoint()
    with pytest.raises(Unavailable, match=refusal) as refused:
        snapshot.clone()
    assert "let go of it" in refused.value.remediation
    sandbox.stop(timeout=0)
    with pytest.raises(Unavailable, match=refusal):
        snapshot.clones(2)
    clone = snapshot.clone()
    assert is_locked(shared / "lock", take)
    with pytest.raises(Unavailable, match=refusal):
        snapshot.restore()
    clone.remove(force=True)
    snapshot.restore()
    assert is_locked(shared / "lock", take)


def is_locked(path: Path, take: str) -> bool:
    with path.open("r+") as file:
        try:
            getattr(fcntl, take.partition("(")[0])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_output_goes_on_with_nothing_lost_and_nothing_twice_after_any_number_of_restores(node: Node) -> None:
    setup = SETUP + "import itertools, threading\nnumbers = itertools.count()\n" + COUNTING
    sandbox = interpreter(node, setup)
    for _ in range(5):
        snapshot = sandbox.checkpoint(stop=True)
        sandbox, _ = snapshot.restore()
        run(sandbox, "before = printed\nwhile printed < before + 10: time.sleep(0.001)", timeout=20)
    clones = sandbox.checkpoint().clones(CLONES)
    for one in (sandbox, *clones):
        run(one, "stopped.set(); thread.join(); say('end')")
        out, err = _logs_until(one, b"end")
        assert out == err == [*range(len(out))]
        assert len(out) >= 50


COUNTING = """
stopped, printed = threading.Event(), 0
def say(word):
    for stream in (sys.stdout, sys.stderr): print(word, file=stream, flush=True)
def count():
    global printed
    while not stopped.is_set(): say(printed := next(numbers)); time.sleep(0.01)
thread = threading.Thread(target=count); thread.start()
"""


def _logs_until(sandbox: Sandbox, last: bytes) -> list[list[int]]:
    """The numbers on stdout and on stderr, once each has come to its last word."""
    printed = {Stream.STDOUT: b"", Stream.STDERR: b""}
    for record in sandbox.logs(follow=True):
        printed[record.stream] += record.content
        if all(text.rstrip().endswith(last) for text in printed.values()):
            break
    return [[int(word) for word in text.split()[:-1]] for text in printed.values()]


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_in_the_boot_that_a_template_is_made_of_ends_with_it_and_is_in_no_clone(node: Node) -> None:
    setup = SETUP.replace("guest.ready()", "while not os.path.exists('/tmp/come'): time.sleep(0.001)\nguest.ready()")
    with ThreadPoolExecutor(1) as threads:
        making = threads.submit(node.create_template, "golden", interpreter_spec(setup, ready="guest"))
        while not (booted := [one for one in node.sandboxes() if one.state is Phase.RUNNING]):
            assert not making.done(), making.result()
            time.sleep(0.001)  # nobody tells of a sandbox that is not ready yet
        script = "touch /tmp/come; echo here; while read line; do echo $line; done"
        session = booted[0].exec(["sh", "-c", script], stdin=True)
        assert isinstance(session, ExecSession)
        with session:
            assert isinstance(list(session.events())[-1], Interrupted)
        golden = making.result()
    assert not node.sandboxes()
    for clone in node.snapshot(golden.snapshot).clones(2):
        assert "sh\n" not in evaluate(clone, PROGRAMS)


PROGRAMS = "[open(f'/proc/{p}/comm').read() for p in os.listdir('/proc') if p.isdigit()]"


def test_exec_sessions_go_on_in_the_original_are_absent_in_clones_and_interrupted_by_a_stop(node: Node) -> None:
    sandbox = interpreter(node)
    session = sandbox.exec(["sh", "-c", "while read line; do echo $line; done"], stdin=True)
    assert isinstance(session, ExecSession)
    with session:
        for clone in sandbox.checkpoint().clones(CLONES):
            assert "sh\n" not in evaluate(clone, PROGRAMS)
        session.offer_stdin(b"still here\n")
        heard = b""
        while b"still here" not in heard:
            for event in session.poll(20):
                heard += event.content  # type: ignore[union-attr]
        sandbox.checkpoint(stop=True)
        last = next(event for event in session.events() if not hasattr(event, "content"))
    assert isinstance(last, Interrupted)
