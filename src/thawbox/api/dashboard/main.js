// Joins the parts, and draws them again, once for each frame, when something changed.

import { whenBusy } from "./actions.js";
import { h, render } from "./dom.js";
import { eventsView } from "./events.js";
import * as inspector from "./inspector.js";
import { enter, known, start } from "./live.js";
import { linkBanner, nodeView, tokenView, topBar } from "./node.js";
import { poolsView } from "./pools.js";
import { recoveriesView } from "./recoveries.js";
import { sandboxesView } from "./sandboxes.js";
import { snapshotsView } from "./snapshots.js";
import { openTerminal, terminalView } from "./terminal.js";

const app = document.getElementById("app");
for (const id of ["notices", "questions", "menus"]) {
  const host = document.createElement("div");
  host.id = id;
  document.body.append(host);
}

let due = false;
let wasAsked = false;

/** Draw soon. A page that nobody looks at gets no frames, so it draws by a timer, when it draws at all. */
function redraw() {
  if (due) return;
  due = true;
  if (document.hidden) setTimeout(draw, 250);
  else requestAnimationFrame(draw);
}

function draw() {
  due = false;
  const context = {
    redraw,
    open,
    terminal: (sandbox) => openTerminal(sandbox, redraw),
    chosen: inspector.chosen(),
    width: graphWidth(),
  };
  const bar = topBar({ redraw, theme: theme(), toggleTheme, goTo });
  if (known.phase === "token") {
    wasAsked = true;
    render(app, tokenView({ enter }));
    return;
  }
  render(
    app,
    bar,
    linkBanner(),
    h(
      "main",
      { key: "main", class: "page", tabindex: "-1", mounted: focusAfterToken },
      nodeView({ redraw }),
      sandboxesView(context),
      snapshotsView(context),
      h("div", { key: "pair", class: "pair" }, poolsView(context), recoveriesView(context)),
      eventsView(context),
    ),
    inspector.inspectorView(context),
    terminalView(),
  );
  document.title = `${known.link.status === "waiting" ? "⚠ " : ""}thawbox`;
}

/** The field that had the focus is gone: the keyboard goes on at the page's content. */
function focusAfterToken(main) {
  if (wasAsked) queueMicrotask(() => main.focus());
  wasAsked = false;
}

function graphWidth() {
  return Math.min(document.documentElement.clientWidth, 1600) - (document.documentElement.clientWidth < 700 ? 24 : 56);
}

function open(kind, id) {
  if (kind === "sandbox" || kind === "snapshot") inspector.show(kind, id);
}

/** A link within the page moves the focus too, or the next Tab would begin at the top again. */
function goTo(id) {
  const part = document.getElementById(id);
  part?.scrollIntoView({
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
    block: "start",
  });
  part?.focus({ preventScroll: true });
}

function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

function toggleTheme() {
  const chosen = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("thawbox.theme", chosen);
  } catch {
    /* it holds until the page is closed */
  }
  redraw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", redraw);
setInterval(redraw, 1000); // ages, and the seconds until the next attempt
inspector.begin(redraw);
whenBusy(redraw);
start(redraw);
