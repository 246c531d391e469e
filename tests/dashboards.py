"""The dashboard as somebody uses it, and the service that it belongs to."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from cli_process import SLEEPING, Cli

PATIENCE = 60_000
"""Milliseconds for anything to appear: much more than it takes on a machine that does nothing else."""
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=PATIENCE)


@dataclass
class Served:
    """A `thawbox serve` on a home and a port of its own."""

    cli: Cli
    port: int = 0
    token: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start it, on the port it had before if it had one, and wait until it answers."""
        self.process = self.cli.start(
            "serve", "--host", "127.0.0.1", "--port", str(self.port), "--json", stdin=subprocess.DEVNULL, stderr=None
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.port = int(str(told["url"]).rstrip("/").rpartition(":")[2])

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def make_token(self, scope: str) -> str:
        return str(self.cli("token", "create", "--name", f"{scope}er", "--scope", scope, "--json").json()["token"])

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """What the service answers: faster than a command, which is a process that begins by importing."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
            connection.request(method, f"/v1/{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, (method, path, content)
            return json.loads(content) if content else None

    def run(self, name: str, *command: str, **spec: object) -> None:
        """A sandbox of this name; it sleeps unless a command says otherwise."""
        self.ask("POST", "sandboxes", {"spec": {"name": name, "command": command or SLEEPING, **spec}})

    def state_of(self, sandbox: str) -> str:
        return str(self.ask("GET", f"sandboxes/{sandbox}")["state"])

    def pid_of(self, sandbox: str) -> int:
        """Of its init, on the host."""
        return int(self.ask("GET", f"sandboxes/{sandbox}")["pid"])

    def checkpoint(self, sandbox: str, **wish: object) -> dict[str, Any]:
        made: dict[str, Any] = self.ask("POST", f"sandboxes/{sandbox}/checkpoint", wish)
        return made


@dataclass
class Dashboard:
    """A page of the dashboard, as somebody uses it."""

    page: Page
    served: Served
    pictures: Path
    complaints: list[str] = field(default_factory=list)

    def sign_in(self, token: str | None = None) -> None:
        """Open it and give a token."""
        self.page.goto(self.served.url)
        self.page.get_by_label("Token").fill(self.served.token if token is None else token)
        self.page.get_by_role("button", name="Open the dashboard").click()

    def open(self) -> None:
        """Open it and wait until it is live."""
        self.sign_in()
        self.is_live()

    def is_live(self) -> None:
        expect(self.page.locator(".link-state.open")).to_be_visible()

    def row(self, sandbox: str) -> Locator:
        return self.page.locator(f'[data-sandbox="{sandbox}"]')

    def has_state(self, sandbox: str, state: str) -> None:
        expect(self.row(sandbox).locator(".badge")).to_have_text(state)

    def press(self, what: str) -> None:
        """Click the button of this name."""
        self.page.get_by_role("button", name=what, exact=True).click()

    def choose(self, sandbox: str, action: str) -> None:
        """Open a sandbox's menu and click an entry."""
        self.press(f"More actions for {sandbox}")
        self.page.get_by_role("menuitem", name=action, exact=True).click()

    def told(self, text: str) -> None:
        """A notice says so; it is dismissed."""
        notice = self.page.locator(".notice", has_text=text)
        expect(notice.first).to_be_visible()
        notice.first.get_by_role("button", name="Dismiss").click()

    def picture(self, name: str, *, whole: bool = False) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png", full_page=whole, animations="disabled")


OpenDashboard = Callable[..., Dashboard]
