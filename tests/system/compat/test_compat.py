"""Programs as people run them, frozen in the middle of their work: each goes on after a restore and in a clone.

What is not installed is skipped, with its name; set-up for tests installs all of it.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guests import WORKLOADS, evaluate, interpreter, run
from roads import FILES, TEMPLATE, clones_by
from thawbox.errors import DumpFailed, Unsupported
from thawbox.host.init_client import Completed, Exited
from thawbox.model import Mount, Spec
from thawbox.node import Node
from thawbox.sandbox import Sandbox

Verdict = Callable[[str, str, str], None]


@dataclass(frozen=True)
class InPython:
    """A library used by tests/workloads/interpreter.py: `setup` runs first, `work` before each freeze and after.

    `work` leaves in `answer` a pair: what must stay the same, and a number that must rise.
    """

    setup: str
    work: str
    package: str = ""


COUNTING_LOOP = """
import asyncio, threading
count = 0
async def tick():
    global count
    while True:
        await asyncio.sleep(0.001)
        count += 1
async def echo(reader, writer):
    while line := await reader.readline(): writer.write(line); await writer.drain()
async def main():
    global ask, ticking
    ticking = asyncio.create_task(tick())
    await asyncio.start_server(echo, "127.0.0.1", 7000)
    reader, writer = await asyncio.open_connection("127.0.0.1", 7000)
    async def ask(): writer.write(b"hello\\n"); return (await reader.readline()).decode()
asyncio.run_coroutine_threadsafe(main(), loop).result()
nonce = os.urandom(8).hex()
"""
ASYNC_WORK = """
before = count
while count <= before: time.sleep(0.001)
answer = [[nonce, asyncio.run_coroutine_threadsafe(ask(), loop).result(), type(loop).__module__], count]
"""

PYTHON = {
    "asyncio": InPython(
        "import asyncio, threading\nloop = asyncio.new_event_loop()\n"
        "threading.Thread(target=loop.run_forever, daemon=True).start()\n" + COUNTING_LOOP,
        ASYNC_WORK,
    ),
    "uvloop": InPython(
        "import uvloop, threading\nloop = uvloop.new_event_loop()\n"
        "threading.Thread(target=loop.run_forever, daemon=True).start()\n" + COUNTING_LOOP,
        ASYNC_WORK,
        "uvloop",
    ),
    "multiprocessing": InPython(
        """
import multiprocessing, math
multiprocessing.set_start_method("fork")
pool = multiprocessing.Pool(2)
shared = multiprocessing.Value("i", 0)
queue = multiprocessing.Queue()
def feed():
    while True:
        with shared.get_lock(): shared.value += 1
        queue.put(shared.value)
        time.sleep(0.001)
feeder = multiprocessing.Process(target=feed, daemon=True)
feeder.start()
""",
        "answer = [[pool.map(math.factorial, range(8)), feeder.is_alive()], queue.get(timeout=20)]",
    ),
    "threads": InPython(
        """
import threading, queue
work, results, total = queue.Queue(), queue.Queue(), 0
def worker():
    while True: results.put(work.get() + 1)
threads = [threading.Thread(target=worker, daemon=True) for _ in range(16)]
for thread in threads: thread.start()
lock = threading.RLock(); lock.acquire()
""",
        """
for number in range(100): work.put(number)
total += sum(results.get(timeout=20) for _ in range(100))
answer = [[lock._is_owned(), sum(thread.is_alive() for thread in threads)], total]
""",
    ),
    "numpy": InPython(
        "import numpy\nmatrix = numpy.random.default_rng(1).random((300, 300)); times = 0",
        "times += 1; answer = [[float((matrix @ matrix).sum()), float(numpy.linalg.det(matrix[:50, :50]))], times]",
        "numpy",
    ),
    "sqlite": InPython(
        """
import sqlite3
base = sqlite3.connect("/var/base.db", isolation_level=None); base.execute("PRAGMA journal_mode=WAL")
base.execute("CREATE TABLE seen (number INTEGER)"); base.execute("INSERT INTO seen VALUES (1)")
rollback = sqlite3.connect("/var/rollback.db", isolation_level=None); rollback.execute("CREATE TABLE seen (n)")
open_one = sqlite3.connect("/var/other.db", isolation_level=None); open_one.execute("CREATE TABLE kept (word TEXT)")
open_one.execute("BEGIN"); open_one.execute("INSERT INTO kept VALUES ('in the middle')")
""",
        """
base.execute("INSERT INTO seen SELECT max(number) + 1 FROM seen")
rollback.execute("INSERT INTO seen VALUES (1)")
kept = open_one.execute("SELECT word FROM kept").fetchall()
answer = [[kept, open_one.in_transaction], base.execute("SELECT max(number) FROM seen").fetchone()[0]]
""",
    ),
    "subprocess trees": InPython(
        """
import subprocess
tree = subprocess.Popen(["sh", "-c", "sh -c 'sh -c \\"cat; true\\"; true'; true"], stdin=-1, stdout=-1,
                        text=True, bufsize=1)
counter = subprocess.Popen(["sh", "-c", "n=0; while read line; do n=$((n+1)); echo $n; done"], stdin=-1, stdout=-1,
                           text=True, bufsize=1)
def ask(process): process.stdin.write("hello\\n"); process.stdin.flush(); return process.stdout.readline().strip()
""",
        "answer = [[ask(tree), tree.poll()], int(ask(counter))]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", PYTHON)
def test_a_python_library_goes_on(node: Node, verdict: Verdict, program: str) -> None:
    case = PYTHON[program]
    packages = _packages(case.package)
    mounts = (Mount(str(packages), "/opt/packages", read_only=True),) if packages else ()
    setup = f"sys.path.insert(0, '/opt/packages')\n{case.setup}"
    sandbox = interpreter(node, setup, mounts=mounts, hooks="none", ready_timeout=60)
    version = sys.version.split()[0]
    if case.package:
        version = evaluate(sandbox, f"{case.package}.__version__")
    _goes_on(sandbox, lambda one: tuple(run(one, case.work)), Report(program, version, verdict))


@dataclass(frozen=True)
class Report:
    """Where the verdict on a program goes."""

    program: str
    version: str
    verdict: Verdict
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.verdict(self.program, self.version, text)


def _goes_on(sandbox: Sandbox, work: Callable[[Sandbox], tuple[Any, int]], report: Report) -> None:
    """Freeze, restore and clone; the same must stay the same, and the number go on from where it was."""
    report.say("fails")
    same, before = work(sandbox)
    try:
        snapshot = sandbox.checkpoint()
    except (Unsupported, DumpFailed) as refused:
        report.say(f"refused: {refused.cause[:160]}")
        raise
    assert work(sandbox)[0] == same
    for road in (FILES, TEMPLATE):
        for one in clones_by(road, snapshot, 2):
            found, after = work(one)
            assert found == same
            assert after > before, "it began anew"
            one.remove(force=True)
        _, before = work(sandbox)
        snapshot = sandbox.checkpoint(stop=True)
        sandbox, _ = snapshot.restore()
        found, after = work(sandbox)
        assert found == same
        assert after > before, "it began anew"
    report.say("works")


# --- programs --------------------------------------------------------------------------------------------------------


def test_a_fastapi_server_with_workers_goes_on(node: Node, verdict: Verdict) -> None:
    packages = _packages("fastapi")
    command = ("python3", "-m", "uvicorn", "compat_web:app", "--port", "8000", "--log-level", "warning")
    sandbox = node.run(
        Spec(
            command, mounts=(WORKLOADS, Mount(str(packages), "/opt/packages", read_only=True)),
            env={"PYTHONPATH": "/opt/packages:/workloads", "PYTHONDONTWRITEBYTECODE": "1"},
            ready="http://127.0.0.1:8000/", ready_timeout=60,
        )
    )  # fmt: skip
    import fastapi
    import uvicorn

    version = f"{fastapi.__version__} / {uvicorn.__version__}"
    _goes_on(sandbox, _by_http, Report("FastAPI / uvicorn", version, verdict))


NODE_HTTP = """
const http = require('http'), nonce = require('crypto').randomBytes(8).toString('hex')
let count = 0
http.createServer((q, r) => { r.end(JSON.stringify([[nonce, process.pid], ++count])) }).listen(8000, '127.0.0.1')
"""
NODE_WORKERS = """
const http = require('http'), { Worker } = require('worker_threads')
const code = `const { parentPort } = require('worker_threads'); const own = Math.random(); let count = 0
parentPort.on('message', () => parentPort.postMessage([own, ++count]))`
const workers = [1, 2, 3].map(() => new Worker(code, { eval: true }))
const ask = (worker) => new Promise((done) => { worker.once('message', done); worker.postMessage(0) })
http.createServer(async (q, r) => {
  const said = await Promise.all(workers.map(ask))
  r.end(JSON.stringify([said.map((one) => one[0]), Math.min(...said.map((one) => one[1]))]))
}).listen(8000, '127.0.0.1')
"""


@pytest.mark.parametrize(("program", "code"), [("Node HTTP server", NODE_HTTP), ("worker_threads", NODE_WORKERS)])
def test_a_node_program_goes_on(node: Node, verdict: Verdict, program: str, code: str) -> None:
    node_binary = _binary("node")
    sandbox = node.run(Spec(("node", "-e", code), ready="http://127.0.0.1:8000/", ready_timeout=60))
    _goes_on(sandbox, _by_http, Report(program, _version(node_binary, "--version"), verdict))


KERNEL_CLIENT = """
import sys
sys.path.insert(0, "/opt/packages")
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file="/tmp/kernel.json")
client.load_connection_file(); client.start_channels()
client.wait_for_ready(timeout=60)
printed = []
client.execute_interactive(sys.argv[1], timeout=60, output_hook=lambda m: printed.append(m["content"].get("text", "")))
print("".join(printed), end="")
"""


def test_a_jupyter_kernel_goes_on(node: Node, verdict: Verdict) -> None:
    packages = _packages("ipykernel")
    _packages("jupyter_client")
    sandbox = node.run(
        Spec(
            ("python3", "-m", "ipykernel_launcher", "-f", "/tmp/kernel.json"),
            mounts=(Mount(str(packages), "/opt/packages", read_only=True),),
            env={"PYTHONPATH": "/opt/packages", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/tmp"},
            ready="cmd:test -s /tmp/kernel.json", ready_timeout=60,
        )
    )  # fmt: skip

    def work(one: Sandbox) -> tuple[Any, int]:
        code = (
            "import os\ntry: count += 1\nexcept NameError: count, nonce = 1, os.urandom(8).hex()\nprint(nonce, count)"
        )
        nonce, count = _output(one, "python3", "-c", KERNEL_CLIENT, code).split()
        return nonce, int(count)

    version = next(path.name.split("-")[1] for path in packages.glob("ipykernel-*.dist-info")).removesuffix(".dist")
    _goes_on(sandbox, work, Report("ipykernel (ZeroMQ)", version, verdict))


def test_a_redis_server_goes_on(node: Node, verdict: Verdict) -> None:
    server, _ = _binary("redis-server"), _binary("redis-cli")
    sandbox = node.run(Spec(("redis-server", "--save", "", "--dir", "/tmp"), ready="tcp:6379", ready_timeout=60))
    _output(sandbox, "redis-cli", "set", "word", "kept")

    def work(one: Sandbox) -> tuple[Any, int]:
        said = [_output(one, "redis-cli", *words.split()).strip() for words in ("get word", "incr count")]
        identity = re.search(r"run_id:(\w+)", _output(one, "redis-cli", "info", "server"))
        return (said[0], identity and identity[1]), int(said[1])

    version = re.search(r"v=([\d.]+)", _version(server, "--version"))
    _goes_on(sandbox, work, Report("Redis server", version[1] if version else "?", verdict))


def test_a_postgresql_server_goes_on(node: Node, verdict: Verdict) -> None:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("needs postgresql")
    where = binaries[-1]
    script = (
        f"{where}/initdb -D /tmp/base -U owner -A trust -N --no-locale -E UTF8 >/dev/null && "
        f"exec {where}/postgres -D /tmp/base -k /tmp -c shared_buffers=16MB"
    )
    sandbox = node.run(
        Spec(("sh", "-c", script), user="1000:1000", env={"HOME": "/tmp"}, ready=f"cmd:{where}/pg_isready -q -h /tmp",
             ready_timeout=120)
    )  # fmt: skip

    def ask(one: Sandbox, query: str) -> str:
        psql = (str(where / "psql"), "-h", "/tmp", "-d", "postgres", "-U", "owner", "-qAt", "-c", query)
        return _output(one, *psql, user="1000:1000").strip()

    def work(one: Sandbox) -> tuple[Any, int]:
        said = ask(one, "UPDATE seen SET n = n + 1 RETURNING n")
        return ask(one, "SELECT pg_postmaster_start_time()"), int(said)

    ask(sandbox, "CREATE TABLE seen AS SELECT 0 AS n")
    _goes_on(sandbox, work, Report("PostgreSQL server", _version(where / "postgres", "--version").split()[2], verdict))


PAGE = "data:text/html,<script>n=Math.random();i=0;setInterval(()=>document.title=n+' '+(++i),20)</script>"


def test_a_headless_chromium_goes_on(node: Node, verdict: Verdict) -> None:
    browser = Path("/usr/lib/chromium/chromium")  # the script in /usr/bin reads the host's /etc
    if not browser.exists():
        pytest.skip("needs chromium")
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-zygote",
               "--remote-debugging-port=8000", "--user-data-dir=/tmp/profile")  # fmt: skip
    sandbox = node.run(
        Spec((str(browser), *options, PAGE), env={"HOME": "/tmp"}, ready="http://127.0.0.1:8000/json/list",
             ready_timeout=120)
    )  # fmt: skip

    def work(one: Sandbox) -> tuple[Any, int]:
        while True:
            pages = [page for page in _get(one, "/json/list") if page["type"] == "page"]
            words = pages[0]["title"].split() if pages else []
            if len(words) == 2 and words[1].isdigit():
                return words[0], int(words[1])

    version = re.search(r"[\d.]+", _version(browser, "--version"))
    _goes_on(sandbox, work, Report("Chromium, headless", version[0] if version else "?", verdict))


# --- asking ----------------------------------------------------------------------------------------------------------


def _get(sandbox: Sandbox, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", 8000)
    connection.sock = sandbox.connect(8000, timeout=60)
    try:
        connection.request("GET", path, headers={"Connection": "close", "Host": "localhost"})
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def _by_http(sandbox: Sandbox) -> tuple[Any, int]:
    same, number = _get(sandbox, "/")
    return same, number


def _output(sandbox: Sandbox, *argv: str, user: str = "") -> str:
    done = sandbox.run(*argv, user=user)
    assert isinstance(done, Completed)
    assert isinstance(done.outcome, Exited)
    assert done.outcome.exit_status == 0, done.stderr.decode()
    return done.stdout.decode()


def _packages(name: str) -> Path | None:
    """The directory that holds a package, for a sandbox to see; skips the test where there is none."""
    if not name:
        return None
    found = importlib.util.find_spec(name)
    if found is not None and found.origin:
        return Path(found.origin).parents[1]
    pytest.skip(f"needs the Python package {name}")


def _binary(name: str) -> Path:
    found = shutil.which(name)
    if found is None or not Path(found).resolve().is_relative_to("/usr"):
        pytest.skip(f"needs {name} in /usr")
    return Path(found)


def _version(binary: Path, option: str) -> str:
    return subprocess.run([binary, option], capture_output=True, text=True).stdout.strip()
