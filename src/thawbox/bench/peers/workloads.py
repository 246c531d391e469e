"""What gets frozen: programs with a nonce that exists in their memory alone, which they tell whoever asks by HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from thawbox.bench.agent import PAUSE
from thawbox.errors import Unavailable
from thawbox.model import Mount, Spec

PORT = 8000
HEARTBEAT = "/heartbeat"
"""Directory, inside, of the file `beat`, which a program that cannot be reached by a socket writes again and again."""

_PYTHON = """
import json, os, secrets, socket, sys, threading, time
nonce = secrets.token_hex(16)
memory = os.urandom(int(sys.argv[1]) << 20)
{more}
def beat():
    file, number = open("/heartbeat/beat", "w"), 0
    while True:
        number += 1
        file.seek(0)
        file.write(f"{{nonce}} {{number:012d}}")
        file.flush()
        time.sleep(0.002)
if os.path.isdir("/heartbeat"): threading.Thread(target=beat, daemon=True).start()
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind(("127.0.0.1", 8000))
listening.listen(64)
while True:
    caller, _ = listening.accept()
    question = caller.recv(4096)
    if question.startswith(b"GET /fork") and os.fork(): caller.close(); continue
    said = json.dumps({{"nonce": nonce, "size": len(memory)}}).encode()
    caller.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(said) + said)
    caller.close()
    if question.startswith(b"GET /fork"): os._exit(0)
"""
"""Asked for `/fork` it lets a child answer: the floor beneath every clone. `{more}` is what it loads besides."""

_TABLES = """
import numpy, pandas
table = pandas.DataFrame(numpy.random.default_rng(1).normal(size=(200_000, 8)), columns=list("abcdefgh"))
table["key"] = table.a.round(1)
means = table.groupby("key").mean()
"""

_NODE = """
const nonce = require('crypto').randomBytes(16).toString('hex');
const memory = require('crypto').randomBytes(16 << 20);
require('http').createServer((question, answer) => {
  answer.writeHead(200, {'Connection': 'close'});
  answer.end(JSON.stringify({nonce, size: memory.length}));
}).listen(8000, '127.0.0.1');
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """A program, how it is started, and where it tells its nonce (`path`, on its port 8000)."""

    name: str
    command: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    path: str = "/"
    workdir: str = "/"
    ready: str = f"tcp:{PORT}"
    beats: bool = True
    """It writes the heartbeat that those need who can reach no socket."""


def _site_packages() -> Path:
    return Path(sysconfig.get_path("purelib"))


def python(mib: int) -> Workload:
    """The interpreter and `mib` MiB of random bytes."""
    name = f"Python, {mib} MiB" if mib else "bare Python"
    return Workload(name, ("python3", "-c", _PYTHON.format(more=""), str(mib)))


def tables() -> Workload:
    """numpy and pandas, with a table that was grouped: the interpreter's own packages, mounted read-only."""
    packages = str(_site_packages())
    return Workload(
        "Python + numpy + pandas", ("python3", "-c", _PYTHON.format(more=_TABLES), "0"),
        mounts=(Mount(packages, packages, read_only=True),), env=(("PYTHONPATH", packages),),
    )  # fmt: skip


def node_server() -> Workload:
    """An HTTP server in Node with 16 MiB of state."""
    return Workload("Node HTTP server", ("node", "-e", _NODE), beats=False)


def of_spec(spec: Spec, *, path: str) -> Workload:
    """A user's own program, as `thawbox run` would start it: on its port 8000 it tells its nonce at `path`."""
    return Workload(
        spec.name or "your program", spec.command, mounts=spec.mounts, env=tuple(spec.env.items()), path=path,
        workdir=spec.workdir, ready=spec.ready or f"tcp:{PORT}", beats=False,
    )  # fmt: skip


def ask(connect: Callable[[], socket.socket], path: str = "/", *, timeout: float = 60.0) -> str:
    """The nonce that the program behind `connect` tells, asked again and again until it answers.

    `timeout` is seconds. Raises Unavailable when they have passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _ask_once(connect, path)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"the program did not answer within {timeout:g} s") from error
        time.sleep(PAUSE)


def _ask_once(connect: Callable[[], socket.socket], path: str) -> str:
    with connect() as link:
        link.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        with http.client.HTTPResponse(link) as response:
            response.begin()
            return str(json.loads(response.read())["nonce"])


def read_beat(directory: Path, *, after: tuple[str, int] | None = None, timeout: float = 60.0) -> tuple[str, int]:
    """The nonce and number that a program writes into its heartbeat file, once they are later than `after`.

    Raises Unavailable after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        words = (directory / "beat").read_text().split() if (directory / "beat").exists() else []
        if len(words) == 2 and len(words[1]) == 12 and (after is None or int(words[1]) > after[1]):
            return words[0], int(words[1])
        time.sleep(PAUSE)
    raise Unavailable(f"the program's heart did not beat within {timeout:g} s")
