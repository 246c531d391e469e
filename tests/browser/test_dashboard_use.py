"""Whoever uses the dashboard: by keyboard, on a phone, in the dark, with little trust."""

from __future__ import annotations

import http.client
import json
import re

from playwright.sync_api import Page, expect

from dashboards import PHONE, OpenDashboard, Served

MARKUP = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'

CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (c) => { const [r, g, b] = c.map((v) => { const s = v / 255; return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (element) => { for (let at = element; at; at = at.parentElement) { const c = rgb(getComputedStyle(at).backgroundColor); if (c[3] > 200) return c; } return [255, 255, 255, 255]; };
  const poor = [];
  const walker = document.createTreeWalker(document.getElementById("app"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest(":disabled, .hidden, svg, [aria-hidden=true], .terminal") || !element.checkVisibility()) continue;
    const [front, back] = [rgb(getComputedStyle(element).color), ground(element)];
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.className || element.localName}: ${walker.currentNode.data.slice(0, 30)}`);
  }
  return poor;
}"""  # noqa: E501


def _fits(page: Page) -> None:
    wide, has = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= has, f"{wide} px of content in {has} px"


def test_everything_can_be_done_by_keyboard_with_the_focus_in_sight(served: Served, dashboard: OpenDashboard) -> None:
    served.run("keyed")
    here = dashboard()
    page = here.page
    page.goto(served.url)
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type(served.token)
    page.keyboard.press("Enter")
    here.is_live()
    here.has_state("keyed", "running")
    expect(page.get_by_role("main")).to_be_focused()

    page.reload()
    here.has_state("keyed", "running")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to sandboxes")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("searchbox", name="Filter sandboxes")).to_be_focused()
    more = page.get_by_role("button", name="More actions for keyed")
    for _ in range(40):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            "() => { const s = getComputedStyle(document.activeElement);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; }"
        )
        assert seen, page.evaluate("document.activeElement.outerHTML")
        if more.evaluate("(element) => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Inspect")).to_be_focused()
    page.keyboard.press("End")
    expect(page.get_by_role("menuitem", name="Remove…")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(more).to_be_focused()

    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="keyed")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".inspector")).to_have_count(0)
    expect(more).to_be_focused()

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Freeze keyed")).to_be_focused()
    page.keyboard.press("Enter")
    here.has_state("keyed", "frozen")
    thaw = page.get_by_role("button", name="Thaw keyed")
    expect(thaw).to_be_enabled()
    thaw.focus()
    page.keyboard.press("Space")
    here.has_state("keyed", "running")


def test_a_phone_shows_everything_without_scrolling_sideways(served: Served, dashboard: OpenDashboard) -> None:
    served.run("pocket", labels={"team": "a-rather-long-name-of-a-team", "purpose": "testing"})
    served.checkpoint("pocket")
    here = dashboard(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = here.page
    page.goto(served.url)
    _fits(page)
    here.open()
    here.has_state("pocket", "running")
    expect(page.locator("#snapshots g.snapshot").first).to_be_visible()
    _fits(page)
    for part in ("Sandboxes", "Snapshots", "Pools", "Recoveries", "Events"):
        expect(page.get_by_role("heading", name=part, exact=True).last).to_be_visible()
    here.press("More actions for pocket")
    menu = page.get_by_role("menu").bounding_box()
    assert menu is not None
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= PHONE["width"]
    page.get_by_role("menuitem", name="Inspect").tap()
    expect(page.get_by_role("button", name="Checkpoint", exact=True)).to_be_visible()
    _fits(page)
    small = page.locator(".inspector button:not(.link)").evaluate_all(
        "(buttons) => buttons.filter((one) => one.getBoundingClientRect().height < 36).length"
    )
    assert small == 0, "buttons too small for a finger"


def test_both_themes_are_readable_and_the_chosen_one_stays(served: Served, dashboard: OpenDashboard) -> None:
    served.run("lit", labels={"team": "design"})
    served.checkpoint("lit", name="lit-once")
    here = dashboard(color_scheme="dark")
    page = here.page
    here.open()
    here.has_state("lit", "running")
    expect(page.get_by_text("checks ok")).to_be_visible()
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(ground)
    assert page.evaluate(CONTRASTS) == []
    here.press("Use the light theme")
    assert page.evaluate(ground) != dark
    assert page.evaluate(CONTRASTS) == []
    page.reload()
    here.is_live()
    assert page.evaluate(ground) != dark, "the chosen theme was forgotten"


def test_nothing_moves_for_whoever_asked_for_that(served: Served, dashboard: OpenDashboard) -> None:
    served.run("calm")
    here = dashboard(reduced_motion="reduce")
    here.open()
    here.row("calm").get_by_role("button", name="calm", exact=True).click()
    expect(here.page.locator(".inspector")).to_be_visible()
    assert here.page.evaluate("document.getAnimations().length") == 0


def test_markup_in_names_labels_commands_and_logs_stays_text(served: Served, dashboard: OpenDashboard) -> None:
    program = ("sh", "-c", f"echo '{MARKUP}'; exec sleep 1000", MARKUP)
    served.run("hostile", *program, labels={"note": MARKUP}, ready="log:</script>")
    here = dashboard()
    page = here.page
    here.open()
    row = here.row("hostile")
    expect(row).to_contain_text(MARKUP)
    expect(row.locator(".label")).to_contain_text("<img src=x")
    row.get_by_role("button", name="hostile", exact=True).click()
    expect(page.get_by_role("log", name="What hostile printed")).to_contain_text(MARKUP)
    # A name with markup is refused; the refusal quotes it.
    here.press("Fork…")
    page.get_by_label("Name", exact=True).fill(MARKUP)
    page.get_by_role("button", name="Fork", exact=True).click()
    refused = page.get_by_role("alert").filter(has_text="Fork of hostile failed")
    expect(refused).to_contain_text("<img src=x")
    expect(refused).to_contain_text("What to do:")
    assert page.evaluate("window.pwned") is None
    assert page.locator('img[src="x"]').count() == 0
    # Nor could a defect of ours make it markup: the policy refuses to parse text at all.
    thrown = page.evaluate(
        "() => { try { document.createElement('p').innerHTML = '<b>'; return ''; } catch (e) { return e.name; } }"
    )
    assert thrown == "TypeError"
    here.complaints.clear()  # the browser tells of the refusal just provoked


def test_a_wrong_token_is_refused_and_a_right_one_is_kept_in_this_tab_alone(
    served: Served, dashboard: OpenDashboard
) -> None:
    here = dashboard()
    page = here.page
    here.sign_in("tbx_wrong_token")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.locator("#sandboxes")).to_have_count(0)
    page.get_by_label("Token").fill(served.token)
    here.press("Open the dashboard")
    here.is_live()
    assert served.token not in page.url
    assert page.evaluate("JSON.stringify(localStorage)").count(served.token) == 0
    assert page.evaluate("document.cookie") == ""
    page.reload()
    here.is_live()
    here.press("Forget the token")
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_token_that_may_only_read_is_told_so_when_it_tries_more(served: Served, dashboard: OpenDashboard) -> None:
    served.run("watched")
    here = dashboard()
    here.sign_in(served.make_token("read"))
    here.is_live()
    here.press("Checkpoint watched")
    refused = here.page.get_by_role("alert").filter(has_text="Checkpoint of watched failed")
    expect(refused).to_contain_text("What to do:")
    expect(refused.locator("code")).to_contain_text("forbidden")


def test_the_files_are_open_to_all_strict_in_policy_and_nothing_else_is_served(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)

    def get(path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    status, headers, page = get("/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    named = set(re.findall(r'(?:href|src)="(/[^"]*)"', page.decode()))
    assert "/dashboard/main.js" in named
    todo, seen = set(named), set()
    while todo:
        path = todo.pop()
        seen.add(path)
        status, headers, content = get(path)
        assert status == 200, path
        assert headers["Content-Security-Policy"] == policy
        again, _, empty = get(path, **{"If-None-Match": headers["ETag"]})
        assert (again, empty) == (304, b"")
        if path.endswith(".js"):
            assert b"innerHTML" not in content
            imported = re.findall(rb'from "\./([a-z_]+\.js)"', content)
            todo |= {f"/dashboard/{name.decode()}" for name in imported} - seen
        assert b"://" not in content.replace(b"http://www.w3.org/2000/svg", b""), f"{path} names an address"
    for path in ("/dashboard/../app.py", "/dashboard/..%2fapp.py", "/dashboard/%2e%2e/app.py", "/dashboard/nothing.js"):
        status, _, problem = get(path)
        assert status == 404, path
        assert json.loads(problem)["remediation"]
    connection.close()


def test_the_page_at_1280_pixels_has_no_scroll_sideways(served: Served, dashboard: OpenDashboard) -> None:
    served.run("wide", "sh", "-c", "while :; do sleep 1; done # " + "a-long-word" * 30)
    here = dashboard()
    here.open()
    here.has_state("wide", "running")
    expect(here.page.get_by_text("checks ok")).to_be_visible()
    _fits(here.page)
