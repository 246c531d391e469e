"""The page stays true: through a restart of the service, and in a terminal."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from dashboards import OpenDashboard, Served


def _ids(page: Page) -> list[int]:
    told = page.evaluate("import('/dashboard/live.js').then((live) => live.known.events.map((event) => event.id))")
    return [int(one) for one in told]


def test_a_page_says_that_it_is_disconnected_and_comes_back_by_itself_missing_nothing(
    served: Served, dashboard: OpenDashboard
) -> None:
    served.run("before")
    here = dashboard()
    page = here.page
    here.open()
    here.has_state("before", "running")

    served.stop()
    expect(page.locator(".link-state.waiting")).to_be_visible()
    expect(page.get_by_role("alert").filter(has_text="Disconnected.")).to_be_visible()
    here.has_state("before", "running")  # what was known stays in sight

    served.cli.run("--name", "meanwhile")  # by a command that finds no service and does it itself
    served.start()
    here.is_live()
    expect(page.get_by_text("Disconnected.")).to_have_count(0)
    here.has_state("meanwhile", "running")
    here.has_state("before", "running")
    served.ask("POST", "sandboxes/before/freeze")
    here.has_state("before", "frozen")
    expect(page.locator('#events [data-kind="sandbox.frozen"]').first).to_be_visible()
    ids = _ids(page)
    assert ids == list(range(ids[0], ids[-1] - 1, -1)), "an event was missed, or told twice"


def test_what_others_do_shows_up_by_itself(served: Served, dashboard: OpenDashboard) -> None:
    here = dashboard()
    page = here.page
    here.open()
    served.cli.run("--name", "newcomer")
    here.has_state("newcomer", "running")
    made = served.checkpoint("newcomer")
    expect(page.locator(f'[data-snapshot="{made["id"]}"]')).to_be_visible()
    served.ask("POST", "templates", {"name": "still", "spec": {"command": ["sleep", "1000"]}})
    served.ask("POST", "pools", {"name": "still", "template": "still", "low": 1, "high": 2, "limit": 8})
    pool = page.locator('[data-pool="still"]')
    expect(pool.get_by_role("img", name=re.compile("^1 parked, 0 restoring, 0 leased of at most 8"))).to_be_visible()
    lease = served.ask("POST", "pools/still/leases", {})
    expect(pool.get_by_role("img", name=re.compile(", 1 leased of at most 8"))).to_be_visible()
    latencies = pool.get_by_role("img", name=re.compile("^Acquire latencies of pool still, last 1 acquire:"))
    expect(latencies).to_be_visible()
    here.has_state(lease["name"], "running")
    served.ask("DELETE", f"pools/still/leases/{lease['lease']}")
    expect(here.row(lease["name"])).to_have_count(0)
    served.ask("DELETE", "pools/still?force=true")
    expect(pool).to_have_count(0)
    served.ask("DELETE", "templates/still")
    served.ask("DELETE", "sandboxes/newcomer?force=true")
    expect(here.row("newcomer")).to_have_count(0)


def _open_terminal(dashboard: OpenDashboard, sandbox: str) -> tuple[Page, Locator]:
    here = dashboard()
    here.open()
    here.press(f"Terminal {sandbox}")
    screen = here.page.locator(".terminal .lines")
    expect(screen).to_contain_text(re.compile(r"[#$]"))
    expect(here.page.get_by_label(f"Terminal of {sandbox}. Control Shift X leaves it.")).to_be_focused()
    return here.page, screen


def _line(screen: Locator, pattern: str) -> Locator:
    return screen.locator(".line").filter(has_text=re.compile(f"^{pattern}$")).last


def test_a_terminal_takes_what_is_typed_and_shows_what_comes(served: Served, dashboard: OpenDashboard) -> None:
    served.run("shell")
    page, screen = _open_terminal(dashboard, "shell")
    page.keyboard.type("echo $((6 * 7))\n")
    expect(_line(screen, "42")).to_be_visible()

    page.keyboard.type(r"printf '\033[31mred\033[0m \303\251\346\227\245 \033[7mturned\033[0m\n'" + "\n")
    expect(screen.locator("span.f1", has_text="red").last).to_be_visible()
    expect(screen.locator(".wide", has_text="日").last).to_be_visible()

    page.keyboard.type("stty size\n")
    rows = screen.locator(".line").count()
    expect(_line(screen, rf"{rows} \d+")).to_be_visible()

    page.keyboard.type(r"sh -c 'echo st\arted; exec sleep 1000'" + "\n")
    expect(_line(screen, "started")).to_be_visible()  # before, no group but the shell's would be told
    page.keyboard.press("Control+c")
    page.keyboard.type("echo st\\ill here\n")
    expect(_line(screen, "still here")).to_be_visible()


def test_a_full_screen_program_is_drawn_and_gone_when_it_ends(served: Served, dashboard: OpenDashboard) -> None:
    served.run("pager")
    page, screen = _open_terminal(dashboard, "pager")
    page.keyboard.type("clear; echo prompt-of-before; seq 200 | less\n")
    expect(screen).to_contain_text("20")
    expect(screen).not_to_contain_text("prompt-of-before")
    page.keyboard.press("G")
    expect(screen).to_contain_text("200")
    page.keyboard.press("q")
    expect(screen).to_contain_text("prompt-of-before")


def test_a_terminal_lets_the_focus_go_and_says_when_its_program_ended(served: Served, dashboard: OpenDashboard) -> None:
    served.run("brief")
    page, _ = _open_terminal(dashboard, "brief")
    page.keyboard.press("Control+Shift+X")
    expect(page.get_by_role("button", name="Close the terminal")).to_be_focused()
    page.get_by_label("Terminal of brief. Control Shift X leaves it.").focus()
    page.keyboard.type("exit 3\n")
    expect(page.locator(".terminal").get_by_role("status")).to_have_text("ended with status 3")
    page.get_by_role("button", name="Close the terminal").click()
    expect(page.locator(".terminal")).to_have_count(0)
    expect(page.get_by_role("button", name="Terminal brief")).to_be_focused()
