// Snapshots as a graph of chains, to scale, with the sandboxes that go on from each.

import { busy } from "./actions.js";
import { CHIPS, layOut, legendSizes, side } from "./chain_layout.js";
import { h } from "./dom.js";
import { age, count, short, size } from "./format.js";
import { known } from "./live.js";
import { panel } from "./panel.js";

const MARGIN = 12;
const view = { ended: false, words: "" };

export function snapshotsView({ redraw, open, chosen, width }) {
  const total = known.snapshots.reduce((sum, one) => sum + one.bytes, 0);
  const shown = wanted();
  const tools = [
    h("input", {
      class: "filter",
      type: "search",
      placeholder: "Filter by name, id, sandbox…",
      "aria-label": "Filter snapshots",
      value: view.words,
      oninput: (event) => {
        view.words = event.target.value;
        redraw();
      },
    }),
  ];
  const note = known.snapshots.length ? `${known.snapshots.length} · ${size(total)} stored` : "";
  return panel(
    { id: "snapshots", title: "Snapshots", note, tools, list: "snapshots" },
    shown.length
      ? [graph(shown, { open, chosen, width }), legend(shown)]
      : h(
          "p",
          { class: "empty" },
          known.loaded.has("snapshots")
            ? view.words
              ? "No snapshot matches."
              : "No snapshot yet. Checkpoint a sandbox to make one."
            : "Looking…",
        ),
  );
}

/** With words, whole chains are shown that hold a match: a delta without its base would say little. */
function wanted() {
  if (!view.words) return known.snapshots;
  const byId = new Map(known.snapshots.map((one) => [one.id, one]));
  const rootOf = (one) => (byId.has(one.parent) ? rootOf(byId.get(one.parent)) : one);
  const roots = new Set(known.snapshots.filter(matches).map(rootOf));
  return known.snapshots.filter((one) => roots.has(rootOf(one)));
}

function matches(snapshot) {
  const text = [snapshot.id, ...(snapshot.names ?? []), sandboxName(snapshot), snapshot.kind].join(" ").toLowerCase();
  return view.words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

export function sandboxName(snapshot) {
  return snapshot.sandbox_name ?? snapshot.sandbox?.name ?? "";
}

function graph(snapshots, { open, chosen, width }) {
  const heads = known.sandboxes;
  const laid = layOut(snapshots, heads, { width: Math.max(width - 2 * MARGIN, 320) });
  return h(
    "div",
    { class: "graph", tabindex: "0", role: "group", "aria-label": "Snapshot chains, to scale; scrolls sideways" },
    h(
      "svg",
      {
        width: laid.width + 2 * MARGIN,
        height: laid.height + 2 * MARGIN,
        viewBox: `${-MARGIN} ${-MARGIN} ${laid.width + 2 * MARGIN} ${laid.height + 2 * MARGIN}`,
      },
      h(
        "defs",
        {},
        h(
          "pattern",
          { id: "delta", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
          h("rect", { class: "hatch", width: 2, height: 5 }),
        ),
      ),
      laid.edges.map((edge) => h("path", { key: `edge ${edge.to.snapshot.id}`, class: "edge", d: curve(edge) })),
      laid.nodes.map((node) => nodeView(node, { open, isChosen: chosen === node.snapshot.id })),
    ),
  );
}

function curve({ from, to }) {
  const [x0, y0, x1, y1] = [from.x + from.side / 2 + 2, from.y, to.x - to.side / 2 - 2, to.y];
  if (Math.abs(y0 - y1) < 1) return `M${x0} ${y0}H${x1}`;
  const turn = to.left - 20;
  return `M${x0} ${y0}H${turn - 10}Q${turn} ${y0} ${turn} ${y0 + 10}V${y1 - 10}Q${turn} ${y1} ${turn + 10} ${y1}H${x1}`;
}

function nodeView(node, { open, isChosen }) {
  const { snapshot, heads } = node;
  const title = snapshot.names?.[0] ?? short(snapshot.id).slice(0, 8);
  const made = sandboxName(snapshot);
  const half = node.side / 2;
  const show = () => open("snapshot", snapshot.id);
  const { left } = node;
  return h(
    "g",
    {
      key: snapshot.id,
      class: `node ${snapshot.kind} ${isChosen ? "chosen" : ""} ${busy.has(snapshot.id) ? "pulsing" : ""}`,
    },
    h(
      "g",
      {
        class: "snapshot",
        role: "button",
        tabindex: "0",
        "data-snapshot": snapshot.id,
        "aria-label": `Snapshot ${title}, ${snapshot.kind}, ${size(snapshot.bytes)}, of ${made || "an unknown sandbox"}, ${age(snapshot.created_at)} old, ${count(heads.length, "sandbox", "sandboxes")} on it`,
        onclick: show,
        onkeydown: (event) => {
          if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            show();
          }
        },
      },
      h("title", {}, `${snapshot.id}\n${snapshot.kind} of ${made}`),
      h("rect", {
        class: "hit",
        x: left - 5,
        y: node.y - half - 5,
        width: 136,
        height: node.top - node.y + half + 40,
        rx: 6,
      }),
      h("rect", {
        class: "body",
        x: node.x - half,
        y: node.y - half,
        width: node.side,
        height: node.side,
        rx: Math.min(4, half / 2),
      }),
      snapshot.kind === "delta" &&
        node.side > 8 &&
        h("rect", {
          class: "delta-fill",
          x: node.x - half,
          y: node.y - half,
          width: node.side,
          height: node.side,
          rx: Math.min(4, half / 2),
          fill: "url(#delta)",
        }),
      snapshot.pinned && h("circle", { class: "pin", cx: node.x + half, cy: node.y - half, r: 3.5 }),
      h("text", { class: "title", x: left, y: node.top + 15 }, clip(title, 20)),
      h(
        "text",
        { class: "detail", x: left, y: node.top + 28 },
        `${size(snapshot.bytes)} · ${age(snapshot.created_at)}`,
      ),
    ),
    heads.slice(0, CHIPS).map((sandbox, index) => chip(sandbox, left, node.top + 45 + index * 17, open)),
    heads.length > CHIPS &&
      h("text", { class: "detail", x: left + 11, y: node.top + 45 + CHIPS * 17 }, `and ${heads.length - CHIPS} more`),
  );
}

function chip(sandbox, x, y, open) {
  const show = () => open("sandbox", sandbox.id);
  return h(
    "g",
    {
      key: sandbox.id,
      class: `head ${sandbox.state}`,
      role: "button",
      tabindex: "0",
      "aria-label": `Sandbox ${sandbox.name}, ${sandbox.state}`,
      onclick: show,
      onkeydown: (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          show();
        }
      },
    },
    h("rect", { class: "hit", x: x - 3, y: y - 12, width: 128, height: 16, rx: 3 }),
    h("circle", { cx: x + 4, cy: y - 4, r: 3.5 }),
    h("text", { x: x + 12, y }, clip(sandbox.name, 18)),
  );
}

function clip(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

function legend(snapshots) {
  const most = Math.max(...snapshots.map((one) => one.bytes), 1);
  return h(
    "footer",
    { class: "legend" },
    h(
      "span",
      {},
      h(
        "svg",
        { width: 12, height: 12, class: "full node" },
        h("rect", { class: "body", x: 1, y: 1, width: 10, height: 10, rx: 2 }),
      ),
      "full",
    ),
    h(
      "span",
      {},
      h(
        "svg",
        { width: 12, height: 12, class: "delta node" },
        h("rect", { class: "body", x: 1, y: 1, width: 10, height: 10, rx: 2 }),
        h("rect", { class: "delta-fill", x: 1, y: 1, width: 10, height: 10, rx: 2, fill: "url(#delta)" }),
      ),
      "delta of the one before",
    ),
    h(
      "span",
      {},
      h("svg", { width: 10, height: 10, class: "head running" }, h("circle", { cx: 5, cy: 5, r: 3.5 })),
      "sandbox that goes on from it",
    ),
    h(
      "span",
      { class: "scale" },
      "area to scale",
      legendSizes(most).map((bytes) => {
        const edge = side(bytes, most);
        return h(
          "span",
          {},
          h(
            "svg",
            { width: edge + 2, height: edge + 2 },
            h("rect", { class: "measure", x: 1, y: 1, width: edge, height: edge, rx: Math.min(2, edge / 4) }),
          ),
          size(bytes).replace(".0", ""),
        );
      }),
    ),
  );
}
