"""The one story that the dashboard is for: checkpoint, fork, a death and the way back, by clicking."""

from __future__ import annotations

import os
import re
import signal

from playwright.sync_api import expect

from dashboards import OpenDashboard, Served

COUNTING = """
import secrets, time
nonce = secrets.token_hex(8)
for count in range(10**9):
    print(nonce, count, flush=True)
    time.sleep(0.05)
"""
COUNTED = re.compile(r"([0-9a-f]{16}) (\d+)")


def _printed(text: str) -> list[tuple[str, int]]:
    return [(nonce, int(count)) for nonce, count in COUNTED.findall(text)]


def test_a_sandbox_is_checkpointed_forked_killed_and_seen_to_recover_by_clicking(
    served: Served, dashboard: OpenDashboard
) -> None:
    served.run("agent", "python3", "-c", COUNTING, ready="log: 3\n")
    here = dashboard()
    page = here.page
    here.open()
    here.has_state("agent", "running")

    here.press("Checkpoint agent")
    here.told("Checkpointed agent")
    expect(page.locator("#snapshots .head", has_text="agent")).to_be_visible()

    here.press("Fork agent")
    page.get_by_label("How many").fill("2")
    page.get_by_label("Name", exact=True).fill("twin")
    page.get_by_role("button", name="Fork", exact=True).click()
    here.told("Forked agent")
    for twin in ("twin-1", "twin-2"):
        here.has_state(twin, "running")
        expect(page.locator("#snapshots .head", has_text=twin)).to_be_visible()
    here.picture("story-forked", whole=True)

    here.choose("agent", "Watch over…")
    page.get_by_label("Checkpoint every").fill("0")
    page.get_by_role("button", name="Watch over", exact=True).click()
    here.told("Watching over agent")
    here.row("agent").get_by_role("button", name="agent", exact=True).click()
    log = page.get_by_role("log", name="What agent printed")
    expect(log).to_contain_text(COUNTED)
    ((nonce, _), *_) = _printed(log.inner_text())
    before = served.pid_of("agent")

    os.kill(before, signal.SIGKILL)

    expect(page.locator("#recoveries tbody tr")).to_have_count(1)
    expect(page.locator("#recoveries tbody tr")).to_contain_text("agent")
    expect(page.locator("#recoveries svg .recovery")).to_have_count(1)
    expect(page.locator('#events [data-kind="recovery.done"]')).to_be_visible()
    here.has_state("agent", "running")
    assert served.pid_of("agent") != before
    # It went on with what it had made in memory alone: it was restored, and not started again.
    page.get_by_role("button", name="Close", exact=True).click()
    here.row("agent").get_by_role("button", name="agent", exact=True).click()
    expect(log).to_contain_text(nonce)
    assert {one for one, _ in _printed(log.inner_text())} == {nonce}
    here.picture("story-recovered", whole=True)


def test_a_snapshot_is_verified_cloned_flattened_and_removed_by_clicking(
    served: Served, dashboard: OpenDashboard
) -> None:
    served.run("origin")
    base, delta = (served.checkpoint("origin", name=name) for name in ("base", "tip"))
    assert (base["kind"], delta["kind"]) == ("full", "delta")
    here = dashboard()
    page = here.page
    here.open()

    page.locator(f'[data-snapshot="{delta["id"]}"]').click()
    here.press("Verify")
    here.told("is whole")
    here.press("Clone…")
    page.get_by_label("Name", exact=True).fill("copy")
    page.get_by_role("button", name="Clone", exact=True).click()
    here.told("Cloned tip")
    here.has_state("copy", "running")

    here.press("Flatten…")
    page.get_by_label("Name", exact=True).fill("flat")
    page.get_by_role("button", name="Flatten", exact=True).click()
    here.told("Flattened tip")
    flat = page.locator("#snapshots g.node.full", has_text="flat")
    expect(flat).to_be_visible()

    flat.locator(".snapshot").click()
    here.press("Remove…")
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    here.told("Removed snapshot flat")
    expect(flat).to_have_count(0)

    # What cannot be done is said with its cause and what to do: something depends on the base.
    page.locator(f'[data-snapshot="{base["id"]}"]').click()
    here.press("Remove…")
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    refused = page.get_by_role("alert").filter(has_text="failed")
    expect(refused).to_contain_text("What to do:")
    expect(refused.locator("code")).to_have_text(re.compile("^[a-z_.]+$"))
    expect(page.locator(f'[data-snapshot="{base["id"]}"]')).to_be_visible()


def test_what_destroys_something_asks_first_and_cancelling_destroys_nothing(
    served: Served, dashboard: OpenDashboard
) -> None:
    served.run("precious")
    here = dashboard()
    page = here.page
    here.open()
    for action in ("Stop…", "Remove…"):
        here.choose("precious", action)
        question = page.get_by_role("dialog")
        expect(question).to_contain_text("precious?")
        expect(question.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Escape")
        expect(question).to_have_count(0)
        assert served.state_of("precious") == "running"

    here.press("Freeze precious")
    here.has_state("precious", "frozen")
    here.press("Thaw precious")
    here.has_state("precious", "running")
    here.press("Checkpoint precious")
    here.told("Checkpointed precious")
    here.choose("precious", "Stop…")
    page.get_by_label("Seconds between").fill("0")
    page.get_by_role("dialog").get_by_role("button", name="Stop", exact=True).click()
    here.told("Stopped precious")
    page.get_by_role("button", name=re.compile("^All")).click()
    here.has_state("precious", "exited")
    here.press("Restore precious")
    here.told("Restored precious")
    here.has_state("precious", "running")
    here.choose("precious", "Remove…")
    page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
    here.told("Removed precious")
    expect(here.row("precious")).to_have_count(0)
