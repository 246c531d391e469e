"""A real `thawbox serve` over TCP, real sandboxes, and Debian's Chromium that looks at them.

What lives longer than a test lives as long as one module: Playwright keeps an event loop in the main thread while it
runs, and tests elsewhere bring loops of their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, sync_playwright

from cli_process import Cli
from dashboards import DESK, PATIENCE, Dashboard, OpenDashboard, Served
from thawbox.config import load_settings
from thawbox.errors import SandboxNotFound
from thawbox.node import Node
from traces import take_traces

CHROMIUM = next((path for path in ("/usr/lib/chromium/chromium", "/usr/bin/chromium") if Path(path).exists()), "")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PICTURES = os.environ.get("THAWBOX_DASHBOARD_PICTURES", "")
"""Where pictures go; without it they are taken all the same, into the test's own directory."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, rootfs_cache: Path) -> Iterator[Served]:
    """The service; nothing of its node is left afterwards."""
    home = tmp_path_factory.mktemp("dashboard") / "home"
    home.mkdir(mode=0o700)
    (home / "rootfs").symlink_to(rootfs_cache)
    with ExitStack() as undo:
        undo.callback(_leave_nothing, home)
        service = Served(Cli(home))
        service.start()
        undo.callback(service.stop)
        service.token = service.make_token("admin")
        yield service


def _leave_nothing(home: Path) -> None:
    with Node(load_settings(home=home)) as last:
        for sandbox in last.sandboxes():
            try:
                sandbox.remove(force=True)
            except SandboxNotFound:
                continue
        last.tidy()
    left = take_traces(home)
    shutil.rmtree(home)
    assert not left.of_kernel(), "the test left something in the kernel"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with a profile of its own."""
    own = tmp_path_factory.mktemp("chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(FLAGS), env={**os.environ, "TMPDIR": str(own)}
        )
        yield launched
        launched.close()


@pytest.fixture
def dashboard(served: Served, browser: Browser, tmp_path: Path) -> Iterator[OpenDashboard]:
    """Opens pages; fails when one of them logged an error, a violated policy among them."""
    pictures = Path(PICTURES) if PICTURES else tmp_path
    pictures.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        opened: list[Dashboard] = []

        def open_one(**options: Any) -> Dashboard:
            context = browser.new_context(**{"viewport": DESK, **options})
            undo.callback(context.close)
            context.set_default_timeout(PATIENCE)
            one = Dashboard(context.new_page(), served, pictures)
            one.page.on("console", lambda message: _listen(one, message))
            one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
            opened.append(one)
            return one

        yield open_one
        complaints = [complaint for one in opened for complaint in one.complaints]
    assert complaints == []


def _listen(one: Dashboard, message: ConsoleMessage) -> None:
    # The browser itself logs every request that is refused or not answered, which some tests are about.
    if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
        one.complaints.append(message.text)
