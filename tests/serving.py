"""A real `thawbox serve` on a home of its own, asked over real sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cli_process import Cli
from thawbox.config import load_settings
from thawbox.errors import SandboxNotFound
from thawbox.host.namespaces import reap
from thawbox.host.proc import children, command_name
from thawbox.node import Node
from traces import take_traces

SLEEP = {"command": ["sleep", "1000"]}
PATIENCE = 120.0
WORKLOADS = Path(__file__).parent / "workloads"
TINY = {
    "command": ["python3", "-B", "/workloads/tiny.py"],
    "mounts": [{"source": str(WORKLOADS), "target": "/workloads", "read_only": True}],
    "ready": "tcp:8000",
}


def _reap_launchers() -> None:
    """A service that was killed leaves its launchers to whoever adopts orphans, which may be the tests' process."""
    for pid in children(os.getpid()):
        if command_name(pid) == "thawbox-launch":
            reap(pid, block=False)


@dataclass(slots=True)
class Serving:
    """The process, and how to ask it. It can be ended and started again on the same home."""

    home: Path
    options: tuple[str, ...] = ()
    stack: ExitStack = field(default_factory=ExitStack)
    process: subprocess.Popen[bytes] | None = None
    url: str | None = None

    def start(self, *options: str) -> Serving:
        """Start it and return once it answers."""
        cli = Cli(self.home)
        options = options or self.options
        self.process = subprocess.Popen(
            cli.argv("serve", "--json", *options), env=cli.environment(), stdout=subprocess.PIPE
        )  # fmt: skip
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.process.stdout.close()
        self.url = told["url"]
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it by a signal and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self.process = None
        return status

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def client(self, *, token: str | None = None, url: str | None = None, **options: Any) -> httpx.Client:
        """A client over the unix socket, or over TCP where `url` says so; closed at the end."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        transport = None if url is not None else httpx.HTTPTransport(uds=str(self.home / "serve.sock"))
        made = httpx.Client(
            base_url=url or "http://node", transport=transport, headers=headers, timeout=PATIENCE, **options
        )  # fmt: skip
        return self.stack.enter_context(made)

    def close(self) -> None:
        """End it, remove what is left on its home, and see that the kernel holds nothing of it."""
        self.stack.close()
        if self.process is not None:
            self.end()
        with Node(load_settings(home=self.home)) as node:
            for spec in node.pools():
                node.remove_pool(spec.name, force=True)
            for sandbox in node.sandboxes():
                try:
                    sandbox.remove(force=True)
                except SandboxNotFound:
                    continue
            node.tidy()
        _reap_launchers()
        assert not take_traces(self.home).of_kernel(), "the test left something in the kernel"


def made(answer: httpx.Response, status: int = 201) -> Any:
    """What was answered, which must have been with this status."""
    assert answer.status_code == status, (answer.status_code, answer.text[:2000])
    return answer.json() if answer.content else None


def problem(answer: httpx.Response, status: int, code: str) -> Any:
    """The problem that was answered, complete as RFC 9457 and we have it."""
    assert answer.status_code == status, (answer.status_code, answer.text[:2000])
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert {"type", "title", "status", "detail", "code", "cause", "remediation"} <= set(told)
    assert (told["status"], told["code"]) == (status, code), told
    assert told["cause"]
    assert told["remediation"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return told


def token(client: httpx.Client, name: str, scope: str, **limits: int) -> str:
    """The text of a new token."""
    wish = {"name": name, "scope": scope, "limits": limits}
    return str(made(client.post("/v1/tokens", json=wish))["token"])


@dataclass(frozen=True, slots=True)
class Told:
    """One server-sent event."""

    id: int | None
    event: str
    content: Any


def sse(lines: Iterator[str]) -> Iterator[Told]:
    """The events of a stream; comments are passed over."""
    number, event, content = None, "", ""
    for line in lines:
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("event: "):
            event = line[7:]
        elif line.startswith("data: "):
            content = line[6:]
        elif not line and event:
            yield Told(number, event, json.loads(content))
            number, event, content = None, "", ""


class Listener:
    """Follows the events in a thread; `wait_for` returns the first that fits."""

    def __init__(self, client: httpx.Client, *, after: int | None = None, kinds: str = "") -> None:
        self.heard: list[Told] = []
        self._changed = threading.Condition()
        self._listening = threading.Event()
        query = {"kinds": kinds} | ({"after": str(after)} if after is not None else {})
        self._client = client
        self._thread = threading.Thread(target=self._follow, args=(query,), daemon=True)
        self._thread.start()
        assert self._listening.wait(PATIENCE)

    def _follow(self, query: dict[str, str]) -> None:
        try:
            with self._client.stream("GET", "/v1/events", params=query, timeout=None) as answer:
                lines = answer.iter_lines()
                next(lines)  # a comment says that it listens
                self._listening.set()
                for told in sse(lines):
                    with self._changed:
                        self.heard.append(told)
                        self._changed.notify_all()
        except (httpx.HTTPError, httpx.StreamError, RuntimeError):
            return  # the service ended, or the test did

    def wait_for(self, event: str, subject: str) -> Told:
        """The event of this kind about the thing with this id or name."""

        def found() -> Told | None:
            fits = (one for one in self.heard if one.event == event)
            return next((one for one in fits if subject in (one.content["subject"] or {}).values()), None)

        with self._changed:
            assert self._changed.wait_for(found, PATIENCE), (event, subject, [one.event for one in self.heard])
            told = found()
        assert told is not None
        return told


NOT_AT_ALL = 99


def as_nobody(act: Callable[[], int], *, directory: Path) -> int:
    """Do it in a child process in this directory that is not root; its exit status, NOT_AT_ALL where it failed."""
    child = os.fork()
    if child == 0:
        os.chdir(directory)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            status = act()
        except BaseException:  # noqa: BLE001 - a child says how it went by its status
            status = NOT_AT_ALL
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
