// The panel at the side: everything about one sandbox or one snapshot, and a sandbox's log as it is written.

import * as actions from "./actions.js";
import { call, target } from "./api.js";
import { h } from "./dom.js";
import { age, clock, count, instant, milliseconds, moment, short, size } from "./format.js";
import { icon } from "./icons.js";
import { known } from "./live.js";
import { actionsOf, labelsView, stateBadge } from "./sandboxes.js";
import { sandboxName } from "./snapshots.js";
import { follow } from "./stream.js";

const MOST_LINES = 400;

const view = { kind: "", id: "", facts: null, stats: null, watch: null, problem: null, lines: [], openedFrom: null };
let redraw = () => {};
let session = null;
let seenAs = "";

export function begin(draw) {
  redraw = draw;
  document.addEventListener("keydown", (event) => {
    // A question, a menu and a terminal have an Escape of their own.
    if (
      event.key === "Escape" &&
      view.kind &&
      !event.defaultPrevented &&
      !event.target.closest("dialog, .menu, .terminal")
    )
      hide();
  });
}

export function chosen() {
  return view.id;
}

/** Show one; `kind` is `sandbox` or `snapshot`. */
export function show(kind, id) {
  if (!view.kind) view.openedFrom = document.activeElement;
  session?.abort();
  session = new AbortController();
  Object.assign(view, { kind, id, facts: null, stats: null, watch: null, problem: null, lines: [] });
  seenAs = "";
  redraw();
  if (kind === "sandbox") listen(session.signal);
}

export function hide() {
  session?.abort();
  const { openedFrom } = view;
  Object.assign(view, { kind: "", id: "" });
  redraw();
  if (openedFrom?.isConnected) openedFrom.focus();
}

/** Fetch the facts again when what the list says of it has changed. */
function keepTrue(listed) {
  const now = JSON.stringify([
    view.kind,
    view.id,
    listed?.state,
    listed?.parent_snapshot,
    listed?.pinned,
    listed?.names,
  ]);
  if (now === seenAs) return;
  seenAs = now;
  const { id, kind } = view;
  fetchFacts(kind, id).then(
    (found) => {
      if (view.id === id) {
        Object.assign(view, found, { problem: null });
        redraw();
      }
    },
    (problem) => {
      if (view.id === id) {
        view.problem = problem;
        redraw();
      }
    },
  );
}

async function fetchFacts(kind, id) {
  if (kind === "snapshot") return { facts: await call("GET", ["snapshots", id]) };
  const facts = await call("GET", ["sandboxes", id]);
  const [stats, watch] = await Promise.all([
    actions.ALIVE.has(facts.state) ? call("GET", ["sandboxes", id, "stats"]).catch(() => null) : null,
    call("GET", ["sandboxes", id, "supervision"]).catch(() => null),
  ]);
  return { facts, stats, watch };
}

function listen(signal) {
  follow(target(["sandboxes", view.id, "logs"], { follow: true }), {
    signal,
    hear: ({ event, data }) => {
      if (event !== "log") return;
      try {
        view.lines = [...view.lines, JSON.parse(data)].slice(-MOST_LINES);
      } catch {
        return;
      }
      redraw();
    },
    tell: ({ status, problem }) => {
      if (status === "waiting" && problem?.status === 404) session?.abort();
    },
  });
}

export function inspectorView({ open, terminal }) {
  if (!view.kind) return null;
  const isSandbox = view.kind === "sandbox";
  const listed = isSandbox
    ? known.sandboxes.find((one) => one.id === view.id || one.name === view.id)
    : known.snapshots.find((one) => one.id === view.id || one.names?.includes(view.id));
  keepTrue(listed);
  const title = isSandbox
    ? (listed?.name ?? view.facts?.name ?? view.id)
    : listed
      ? actions.titleOf(listed)
      : short(view.id);
  return h(
    "aside",
    { key: "inspector", class: "inspector", "aria-labelledby": "inspector-title" },
    h(
      "header",
      {},
      h("span", { class: "note" }, isSandbox ? "Sandbox" : "Snapshot"),
      h(
        "h2",
        {
          key: view.id,
          id: "inspector-title",
          tabindex: "-1",
          mounted: (element) => queueMicrotask(() => element.focus()),
        },
        title,
      ),
      listed && isSandbox && stateBadge(listed.state),
      h("button", { class: "ghost", "aria-label": "Close", title: "Close (Esc)", onclick: hide }, icon("close")),
    ),
    !listed && known.loaded.has(isSandbox ? "sandboxes" : "snapshots")
      ? h("p", { class: "empty" }, `This ${view.kind} is no longer on the node.`)
      : null,
    view.problem &&
      listed &&
      h(
        "p",
        { class: "failed", role: "alert" },
        icon("warn"),
        h("span", {}, `${view.problem.why ?? view.problem}. ${view.problem.remediation ?? ""}`),
      ),
    listed && (isSandbox ? sandboxFacts(listed, { open, terminal }) : snapshotFacts(listed, { open })),
  );
}

function sandboxFacts(sandbox, context) {
  const all = actionsOf(sandbox, context);
  const { facts, stats, watch } = view;
  return [
    actionRow([all.checkpoint, all.fork, all.freeze, all.terminal, all.restore, all.stop, all.remove]),
    table([
      ["Id", code(sandbox.id)],
      ["Program", code(sandbox.command.join(" "))],
      ["Made", `${moment(sandbox.created_at)} · ${age(sandbox.created_at)} ago`],
      [
        "Snapshot",
        sandbox.parent_snapshot &&
          h(
            "button",
            { class: "link mono", onclick: () => context.open("snapshot", sandbox.parent_snapshot) },
            short(sandbox.parent_snapshot),
          ),
      ],
      ["Address", sandbox.address && code(sandbox.address)],
      ["Labels", labelsView(sandbox.labels)],
      [
        "Memory",
        stats
          ? `${size(stats.memory)} now, ${size(stats.memory_peak)} at most${stats.memory_limit ? `, limit ${size(stats.memory_limit)}` : ""}`
          : null,
      ],
      ["CPU", stats ? `${(stats.cpu_usec / 1e6).toFixed(2)} s used` : null],
      ["Tasks", stats ? `${stats.pids}${stats.pids_limit ? ` of at most ${stats.pids_limit}` : ""}` : null],
      ["Pid", facts?.pid && `${facts.pid} on the host`],
      ["Hostname", facts?.hostname && code(facts.hostname)],
      ["Ended", facts?.ended_at && `${moment(facts.ended_at)}: ${facts.ended_why ?? ""}`],
      ["Exit status", facts?.exit_status ?? null],
      [
        "Watched over",
        watch &&
          `${watch.policy.restart}${watch.policy.checkpoint_every ? `, checkpoint every ${watch.policy.checkpoint_every} s` : ""}; ${watch.state}${watch.why ? `: ${watch.why}` : ""}`,
      ],
      [
        "Recoveries",
        facts?.recoveries?.length
          ? `${count(facts.recoveries.length, "recovery", "recoveries")}, the last took ${milliseconds(facts.recoveries.at(-1).healthy_ms)}`
          : null,
      ],
    ]),
    h("h3", { key: "log-title" }, "Log"),
    h(
      "div",
      {
        key: "log",
        class: "log",
        role: "log",
        tabindex: "0",
        "aria-label": `What ${sandbox.name} printed`,
        "aria-live": "off",
      },
      view.lines.length
        ? view.lines.map((line, index) =>
            h(
              "div",
              { key: `${line.time} ${index}`, class: line.stream },
              h("time", {}, clock(instant(line.time))),
              h("span", {}, line.text.replace(/\n$/, "")),
            ),
          )
        : h("p", { class: "faint" }, "It has printed nothing."),
    ),
    facts?.spec &&
      h("details", { key: "spec" }, h("summary", {}, "Spec"), h("pre", {}, JSON.stringify(facts.spec, null, 2))),
  ];
}

function snapshotFacts(snapshot, { open }) {
  const { facts } = view;
  const chain = facts?.chain ?? [];
  const born = known.sandboxes.filter((one) => one.parent_snapshot === snapshot.id);
  const busy = actions.busy.has(snapshot.id) && "something is under way";
  return [
    actionRow([
      { label: "Clone…", icon: "clone", disabled: busy, act: () => actions.clone(snapshot) },
      { label: "Verify", icon: "verify", disabled: busy, act: () => actions.verify(snapshot) },
      {
        label: "Flatten…",
        icon: "flatten",
        disabled: busy || (snapshot.kind === "full" && "it is full already"),
        act: () => actions.flatten(snapshot),
      },
      { label: snapshot.pinned ? "Unpin" : "Pin", icon: "pin", disabled: busy, act: () => actions.pin(snapshot) },
      { label: "Remove…", icon: "remove", danger: true, disabled: busy, act: () => actions.removeSnapshot(snapshot) },
    ]),
    table([
      ["Id", code(snapshot.id)],
      ["Names", snapshot.names?.join(", ")],
      [
        "Kind",
        snapshot.kind === "delta"
          ? [
              "delta of ",
              h(
                "button",
                { class: "link mono", onclick: () => open("snapshot", snapshot.parent) },
                short(snapshot.parent),
              ),
            ]
          : "full",
      ],
      ["Size", `${size(snapshot.bytes)} added to the store`],
      ["Chain", chain.length ? count(chain.length, "link") : null],
      ["Made", `${moment(snapshot.created_at)} · ${age(snapshot.created_at)} ago`],
      ["Of sandbox", sandboxName(snapshot)],
      ["Pinned", snapshot.pinned ? "yes: gc and rm leave it" : "no"],
      ["Expires", snapshot.expires_at && moment(snapshot.expires_at)],
      ["Labels", labelsView(snapshot.labels)],
      ["Engine", facts?.compat?.engine],
      ["Kernel", facts?.compat?.kernel],
      [
        "Sandboxes on it",
        born.length > 0 &&
          h(
            "span",
            { class: "links" },
            born.map((one) => h("button", { class: "link", onclick: () => open("sandbox", one.id) }, one.name)),
          ),
      ],
    ]),
    chain.length > 1 && [
      h("h3", { key: "chain-title" }, "Chain, base first"),
      h(
        "ol",
        { key: "chain", class: "chain" },
        chain.map((link) => {
          const id = typeof link === "string" ? link : link.id;
          const stored = known.snapshots.find((one) => one.id === id);
          return h(
            "li",
            { key: id },
            h(
              "button",
              { class: "link mono", disabled: id === snapshot.id, onclick: () => open("snapshot", id) },
              short(id),
            ),
            h("span", { class: "note" }, stored ? `${stored.kind}, ${size(stored.bytes)}` : ""),
          );
        }),
      ),
    ],
  ];
}

function actionRow(items) {
  return h(
    "div",
    { key: "acts", class: "action-row" },
    items.map((item) =>
      h(
        "button",
        {
          key: item.label.replace(/…$/, ""),
          class: item.danger ? "danger-text" : "",
          disabled: Boolean(item.disabled),
          title: item.disabled || undefined,
          onclick: item.act,
        },
        icon(item.icon),
        item.label,
      ),
    ),
  );
}

function table(rows) {
  return h(
    "dl",
    { key: "facts", class: "facts" },
    rows
      .filter(([, value]) => value !== null && value !== undefined && value !== false && value !== "")
      .map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))),
  );
}

function code(text) {
  return h("code", {}, text);
}
