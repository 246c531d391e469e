"""The pictures of the documentation: a node as it is at work, seen on a desk and on a phone, by day and by night."""

from __future__ import annotations

import os
import re
import signal

import pytest
from playwright.sync_api import expect

from dashboards import PHONE, OpenDashboard, Served

pytestmark = pytest.mark.skipif(
    not os.environ.get("THAWBOX_DASHBOARD_PICTURES"),
    reason="THAWBOX_DASHBOARD_PICTURES names no directory for pictures",
)

AGENT = """
import secrets, time
nonce = secrets.token_hex(4)
memory = bytearray(secrets.token_bytes(1 << 20)) * 24
for step in range(10**9):
    memory[step % 4096] = step % 251
    print(nonce, "step", step, flush=True)
    time.sleep(0.5)
"""
RESEARCH = ("--label", "team=research")
STEPS = ("sh", "-c", "while :; do date; sleep 2; done")


def _build(served: Served) -> None:
    cli = served.cli
    told = "log: 2\n"
    cli.run(
        "--name", "planner", "--ready", told, "--restart", "on-failure", *RESEARCH, command=("python3", "-c", AGENT)
    )
    cli.run("--name", "notebook", "--label", "team=data", command=("python3", "-m", "http.server", "8000"))
    cli.run("--name", "crawler", command=STEPS)
    cli.run("--name", "nightly", command=STEPS)
    cli("checkpoint", "planner", "--name", "warm")
    cli("fork", "planner", "-n", "3", "--name", "idea")
    cli("checkpoint", "idea-1", "--name", "promising")
    cli("fork", "idea-1", "-n", "2", "--name", "deeper")
    cli("checkpoint", "deeper-2")
    cli("freeze", "idea-3")
    cli("checkpoint", "notebook", "--name", "data-loaded", "--pin")
    cli("checkpoint", "crawler")
    cli("checkpoint", "nightly", "--stop")
    cli("template", "create", "web", "--ready", "tcp:8000", "--", "python3", "-m", "http.server", "8000")
    cli("pool", "create", "web", "--template", "web", "--low", "2", "--high", "6", "--limit", "16")
    held: list[str] = []
    for _ in range(24):
        held.append(cli("pool", "acquire", "web", "--json").json()["name"])
        if len(held) > 4:
            cli("pool", "release", held.pop(0))


def test_a_node_at_work_is_seen_whole(served: Served, dashboard: OpenDashboard) -> None:
    _build(served)
    here = dashboard()
    page = here.page
    here.open()
    recovered = page.locator("#recoveries tbody tr")
    for number, victim in enumerate(("planner", "idea-1", "planner", "idea-2", "deeper-1"), start=1):
        os.kill(served.pid_of(victim), signal.SIGKILL)
        expect(recovered).to_have_count(number)
        here.has_state(victim, "running")
    expect(page.get_by_text("checks ok")).to_be_visible()
    expect(page.locator('[data-pool="web"] .columns')).to_be_visible()
    samples = (
        "import('/dashboard/live.js').then((live) => [...live.known.memory.values()].every((one) => one.length > 8))"
    )
    page.wait_for_function(f"() => {samples}")
    here.picture("light", whole=True)
    page.emulate_media(color_scheme="dark")
    here.picture("dark", whole=True)
    page.emulate_media(color_scheme="light")
    here.row("planner").get_by_role("button", name="planner", exact=True).click()
    expect(page.get_by_role("log", name="What planner printed")).to_contain_text(re.compile(r"[0-9a-f]{8} step"))
    here.picture("sandbox")
    page.keyboard.press("Escape")
    here.press("Terminal notebook")
    screen = page.locator(".terminal .lines")
    expect(screen).to_contain_text(re.compile(r"[#$]"))
    page.keyboard.type("ls --color=always /; ps -eo pid,comm\n")
    expect(screen).to_contain_text("COMMAND")
    page.evaluate("scrollTo(0, 0)")
    here.picture("terminal")

    phone = dashboard(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True, color_scheme="dark")
    phone.open()
    phone.has_state("planner", "running")
    expect(phone.page.get_by_text("checks ok")).to_be_visible()
    phone.picture("phone")
