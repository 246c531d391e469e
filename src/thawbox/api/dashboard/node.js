// The head of the page: which node this is, whether the page is live, how the machine is, what the doctor found.

import { meter } from "./charts.js";
import { h } from "./dom.js";
import { age, count, moment, size, span } from "./format.js";
import { icon } from "./icons.js";
import { examine, known, leave } from "./live.js";
import { complain } from "./overlays.js";
import { token } from "./api.js";

const PARTS = [
  ["sandboxes", "Sandboxes"],
  ["snapshots", "Snapshots"],
  ["pools", "Pools"],
  ["recoveries", "Recoveries"],
  ["events", "Events"],
];
const view = { doctor: false, examining: false };

export function topBar({ redraw, theme, toggleTheme, goTo }) {
  const { node } = known;
  return h(
    "header",
    { key: "top", class: "top" },
    h(
      "div",
      { class: "brand" },
      h("img", { src: "/dashboard/icon.svg", alt: "", width: 20, height: 20 }),
      h("h1", {}, "thawbox"),
      node && h("span", { class: "note version" }, node.version),
    ),
    h(
      "nav",
      { "aria-label": "Parts of the page" },
      PARTS.map(([id, label]) =>
        h(
          "a",
          {
            href: `#${id}`,
            onclick: (event) => {
              event.preventDefault();
              goTo(id);
            },
          },
          label,
        ),
      ),
    ),
    h(
      "div",
      { class: "tools" },
      linkView(),
      h(
        "button",
        {
          class: "ghost",
          "aria-label": theme === "dark" ? "Use the light theme" : "Use the dark theme",
          title: theme === "dark" ? "Light" : "Dark",
          onclick: toggleTheme,
        },
        icon(theme === "dark" ? "sun" : "moon"),
      ),
      token() &&
        h(
          "button",
          {
            class: "ghost",
            "aria-label": "Forget the token",
            title: "Forget the token",
            onclick: () => {
              leave();
              redraw();
            },
          },
          icon("leave"),
        ),
    ),
  );
}

function linkView() {
  const { status, until } = known.link;
  if (status === "open") return h("span", { class: "link-state open", role: "status" }, h("i", {}), "live");
  const seconds = Math.max(0, Math.ceil(((until ?? 0) - Date.now()) / 1000));
  return h(
    "span",
    { class: `link-state ${status}`, role: "status" },
    h("i", {}),
    status === "connecting"
      ? "connecting"
      : h(
          "span",
          {},
          "disconnected",
          h("small", { "aria-hidden": "true" }, seconds ? ` · again in ${seconds} s` : " · trying"),
        ),
  );
}

/** Over everything while the node cannot be heard: what is shown may be old. */
export function linkBanner() {
  if (known.link.status !== "waiting") return null;
  const { problem } = known.link;
  return h(
    "p",
    { key: "banner", class: "banner", role: "alert" },
    icon("warn"),
    h(
      "span",
      {},
      h("b", {}, "Disconnected. "),
      `What is shown was true before. ${problem?.why ? `Last attempt: ${problem.why}.` : ""} The page reconnects by itself and misses no event.`,
    ),
  );
}

export function nodeView({ redraw }) {
  const { node, doctor } = known;
  return h(
    "section",
    { key: "node", class: "node-strip", "aria-label": "The node" },
    tile("Health", healthView(doctor, redraw)),
    tile("Sandboxes", stateTally(node)),
    tile(
      "Memory",
      node && [
        h("strong", {}, size(node.memory.total - node.memory.available)),
        h("small", {}, " in use"),
        meter(node.memory.total - node.memory.available, node.memory.total, "Memory in use"),
        h("small", { class: "under" }, `of ${size(node.memory.total)}`),
      ],
    ),
    tile(
      "Disk",
      node && [
        h("strong", {}, size(node.disk.store)),
        h("small", {}, " of snapshots"),
        meter(node.disk.total - node.disk.free, node.disk.total, "Disk in use"),
        h("small", { class: "under" }, `${size(node.disk.free)} of ${size(node.disk.total)} free`),
      ],
    ),
    tile(
      "Node",
      node && [
        h("strong", {}, `up ${span(node.uptime_s)}`),
        h(
          "small",
          { class: "under", title: node.home },
          `${count(node.cpus, "core")}, since ${moment(node.started_at)}`,
        ),
        h("small", { class: "under" }, `${count(node.snapshots, "snapshot")}, ${count(node.pools, "pool")}`),
      ],
    ),
    view.doctor && doctor && findings(doctor, redraw),
  );
}

function tile(name, content) {
  return h(
    "div",
    { key: name, class: "tile" },
    h("h2", {}, name),
    h("div", {}, content || h("span", { class: "faint" }, "–")),
  );
}

function healthView(doctor, redraw) {
  if (!doctor) return null;
  const bad = doctor.checks.filter((check) => check.state !== "ok");
  const isFit = doctor.ok;
  return [
    h("strong", { class: isFit ? "good" : "bad" }, isFit ? "fit" : "unfit"),
    h("small", {}, ` ${doctor.checks.length - bad.length} of ${doctor.checks.length} checks ok`),
    h(
      "button",
      {
        class: "link under",
        "aria-expanded": String(view.doctor),
        "aria-controls": "findings",
        onclick: () => {
          view.doctor = !view.doctor;
          redraw();
        },
      },
      bad.length ? `${count(bad.length, "finding")} of the doctor` : "what the doctor checked",
    ),
    doctor.at && h("small", { class: "under" }, `examined ${age(doctor.at)} ago`),
  ];
}

function stateTally(node) {
  if (!node) return null;
  const states = Object.entries(node.sandboxes).filter(([, number]) => number > 0);
  const living = states
    .filter(([state]) => state === "running" || state === "frozen" || state === "creating")
    .reduce((sum, [, number]) => sum + number, 0);
  return [
    h("strong", {}, String(living)),
    h("small", {}, " living"),
    h(
      "span",
      { class: "under tally-line" },
      states.map(([state, number]) => h("span", { class: `badge ${state}` }, h("i", {}), `${number} ${state}`)),
    ),
  ];
}

function findings(doctor, redraw) {
  const order = { fail: 0, warn: 1, ok: 2 };
  const checks = [...doctor.checks].sort((one, other) => order[one.state] - order[other.state]);
  const again = async () => {
    view.examining = true;
    redraw();
    try {
      await examine();
    } catch (problem) {
      complain("The examination failed", problem);
    }
    view.examining = false;
    redraw();
  };
  return h(
    "div",
    { key: "findings", id: "findings", class: "findings" },
    h(
      "div",
      { class: "row" },
      h("h3", {}, "What the doctor found"),
      doctor.at && h("span", { class: "note" }, `${age(doctor.at)} ago`),
      h("button", { disabled: view.examining, onclick: again }, view.examining ? "Examining…" : "Examine again"),
    ),
    h(
      "ul",
      {},
      checks.map((check) =>
        h(
          "li",
          { key: check.name, class: check.state },
          h("b", {}, check.state),
          h("span", { class: "name" }, check.name),
          h("span", { class: "detail" }, check.detail),
          check.state !== "ok" && h("p", {}, h("b", {}, "Why it matters: "), check.why),
          check.state !== "ok" && check.remedy && h("p", {}, h("b", {}, "What to do: "), check.remedy),
        ),
      ),
    ),
  );
}

/** Asked for over TCP, where every request carries a token. */
export function tokenView({ enter }) {
  const problem = known.refusal;
  return h(
    "main",
    { key: "token", class: "sign-in" },
    h(
      "form",
      {
        class: "card",
        onsubmit: (event) => {
          event.preventDefault();
          enter(event.target.elements.token.value.trim());
        },
      },
      h(
        "div",
        { class: "brand" },
        h("img", { src: "/dashboard/icon.svg", alt: "", width: 28, height: 28 }),
        h("h1", {}, "thawbox"),
      ),
      h("p", {}, "This node asks for a token. Make one on its command line:"),
      h("pre", {}, "thawbox token create --name me --scope admin"),
      h(
        "div",
        { class: "field" },
        h(
          "label",
          {},
          h("span", {}, "Token"),
          h("input", {
            name: "token",
            type: "password",
            autocomplete: "off",
            required: true,
            spellcheck: "false",
            "aria-describedby": "token-hint",
            "aria-invalid": problem ? "true" : undefined,
            mounted: (element) => queueMicrotask(() => element.focus()),
          }),
        ),
        h("small", { id: "token-hint" }, "kept in this tab until it is closed, and sent to this node alone"),
      ),
      problem &&
        h(
          "p",
          { class: "failed", role: "alert" },
          icon("warn"),
          h("span", {}, `${problem.why || "the token was refused"}. ${problem.remediation}`),
        ),
      h("button", { class: "primary", type: "submit" }, "Open the dashboard"),
    ),
  );
}
