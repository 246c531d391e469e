// The sandboxes: state, memory, age, owner, and what can be done to each.

import * as actions from "./actions.js";
import { ALIVE, busy } from "./actions.js";
import { sparkline } from "./charts.js";
import { h } from "./dom.js";
import { age, moment, short, size } from "./format.js";
import { icon } from "./icons.js";
import { known } from "./live.js";
import { openMenu } from "./overlays.js";
import { panel } from "./panel.js";

const SHOWN_AT_FIRST = 40;
const STATES = ["creating", "running", "frozen", "suspended", "exited", "lost"];
const FILTERS = [
  ["living", "Living"],
  ["parked", "Parked"],
  ["all", "All"],
];

const view = { filter: "living", words: "", showsAll: false };

export function sandboxesView({ redraw, open, terminal }) {
  const shown = known.sandboxes.filter(isWanted).sort(byAge);
  const cut = view.showsAll ? shown : shown.slice(0, SHOWN_AT_FIRST);
  const parked = known.sandboxes.filter(isParked).length;
  const tallies = {
    living: known.sandboxes.filter((one) => ALIVE.has(one.state)).length - parked,
    parked,
    all: known.sandboxes.length,
  };
  const most = Math.max(...cut.flatMap((one) => known.memory.get(one.id) ?? []), 1);
  const tools = [
    h("input", {
      class: "filter",
      type: "search",
      placeholder: "Filter by name, state, label…",
      "aria-label": "Filter sandboxes",
      value: view.words,
      oninput: (event) => {
        view.words = event.target.value;
        redraw();
      },
    }),
    h(
      "div",
      { class: "segments", role: "group", "aria-label": "Which sandboxes" },
      FILTERS.map(([value, label]) =>
        h(
          "button",
          {
            "aria-pressed": String(view.filter === value),
            onclick: () => {
              view.filter = value;
              redraw();
            },
          },
          label,
          h("span", { class: "tally" }, tallies[value]),
        ),
      ),
    ),
  ];
  return panel(
    { id: "sandboxes", title: "Sandboxes", tools, list: "sandboxes" },
    shown.length === 0
      ? h("p", { class: "empty" }, emptyText())
      : h(
          "table",
          { class: "sandboxes" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["State", "Name", "Program", "Memory", "Age", "Owner", "Snapshot"].map((name) =>
                h("th", { scope: "col", class: name.toLowerCase() }, name),
              ),
              h("th", { scope: "col", class: "acts" }, h("span", { class: "hidden" }, "Actions")),
            ),
          ),
          h(
            "tbody",
            {},
            cut.map((sandbox) => row(sandbox, { open, terminal, most })),
          ),
        ),
    cut.length < shown.length &&
      h(
        "button",
        {
          class: "wide",
          onclick: () => {
            view.showsAll = true;
            redraw();
          },
        },
        `Show all ${shown.length}`,
      ),
  );
}

function emptyText() {
  if (!known.loaded.has("sandboxes")) return "Looking…";
  if (view.words || known.sandboxes.length) return "No sandbox matches. Those that ended are under All.";
  return ["No sandbox yet. ", h("code", {}, "thawbox run --name agent -- python3 agent.py"), " starts one."];
}

/** A clone that a pool holds ready: it is the pool's, not somebody's. */
function isParked(sandbox) {
  return Boolean(sandbox.pool) && sandbox.state === "frozen";
}

function isWanted(sandbox) {
  if (view.filter === "parked" && !isParked(sandbox)) return false;
  if (view.filter === "living" && isParked(sandbox)) return false;
  if (
    view.filter === "living" &&
    !ALIVE.has(sandbox.state) &&
    sandbox.state !== "suspended" &&
    !busy.has(sandbox.id) &&
    !isRecovering(sandbox)
  )
    return false;
  const labels = Object.entries(sandbox.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  const text = [sandbox.name, sandbox.id, sandbox.state, ownerOf(sandbox), ...sandbox.command, ...labels]
    .join(" ")
    .toLowerCase();
  return view.words
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

/** One that just died stays in sight: somebody wants to see it come back. */
function isRecovering(sandbox) {
  return (
    sandbox.state === "lost" ||
    known.events.some(
      (event) =>
        event.subject?.id === sandbox.id && event.kind.startsWith("recovery.") && event.kind !== "recovery.done",
    )
  );
}

/** The living first, the youngest first among them. */
function byAge(one, other) {
  const rank = (sandbox) => (ALIVE.has(sandbox.state) ? 0 : 1);
  return (
    rank(one) - rank(other) || other.created_at.localeCompare(one.created_at) || one.name.localeCompare(other.name)
  );
}

function ownerOf(sandbox) {
  return sandbox.pool
    ? `pool ${typeof sandbox.pool === "object" ? sandbox.pool.name : sandbox.pool}`
    : (sandbox.owner?.name ?? sandbox.owner ?? "");
}

function row(sandbox, { open, terminal, most }) {
  const verb = busy.get(sandbox.id);
  const samples = known.memory.get(sandbox.id) ?? [];
  const command = sandbox.command.join(" ");
  return h(
    "tr",
    { key: sandbox.id, "data-sandbox": sandbox.name, class: verb ? "busy" : "" },
    h("td", { class: "state" }, stateBadge(verb ? "busy" : sandbox.state, sandbox.state)),
    h(
      "td",
      { class: "name" },
      h(
        "button",
        { class: "link", onclick: () => open("sandbox", sandbox.id), title: `Inspect ${sandbox.name}` },
        sandbox.name,
      ),
      h("span", { class: "sub" }, h("span", { class: "mono" }, sandbox.id), labelsView(sandbox.labels)),
    ),
    h("td", { class: "program mono", title: command }, command),
    h(
      "td",
      { class: "memory" },
      ALIVE.has(sandbox.state)
        ? [h("span", { class: "amount" }, size(sandbox.memory)), sparkline(samples, { most })]
        : h("span", { class: "faint" }, "–"),
    ),
    h("td", { class: "age", title: moment(sandbox.created_at) }, age(sandbox.created_at)),
    h("td", { class: "owner" }, ownerOf(sandbox) || h("span", { class: "faint" }, "–")),
    h(
      "td",
      { class: "snapshot mono" },
      sandbox.parent_snapshot
        ? h(
            "button",
            { class: "link", onclick: () => open("snapshot", sandbox.parent_snapshot), title: "Inspect its snapshot" },
            nameOf(sandbox.parent_snapshot),
          )
        : h("span", { class: "faint" }, "–"),
    ),
    h(
      "td",
      { class: "acts" },
      h(
        "div",
        { class: "actions" },
        verb && h("span", { class: "hidden", role: "status" }, `${verb} is under way`),
        buttons(sandbox, { open, terminal }),
      ),
    ),
  );
}

function nameOf(id) {
  return known.snapshots.find((one) => one.id === id)?.names?.[0] ?? short(id);
}

export function labelsView(labels) {
  const entries = Object.entries(labels ?? {});
  return (
    entries.length > 0 &&
    h(
      "span",
      { class: "labels" },
      entries.slice(0, 3).map(([key, value]) => h("span", { class: "label" }, value ? `${key}=${value}` : key)),
    )
  );
}

export function stateBadge(shown, state = shown) {
  return h(
    "span",
    { class: `badge ${STATES.includes(state) ? state : ""} ${shown === "busy" ? "pulsing" : ""}` },
    h("i", {}),
    state,
  );
}

/** Every action of a sandbox; what is not possible now says why. */
export function actionsOf(sandbox, { open, terminal }) {
  const { state, name } = sandbox;
  const isAlive = state === "running" || state === "frozen";
  const isBusy = busy.has(sandbox.id) && "something is under way";
  const notAlive = !isAlive && `it is ${state}`;
  return {
    checkpoint: {
      label: "Checkpoint",
      icon: "checkpoint",
      disabled: isBusy || notAlive,
      act: () => actions.checkpoint(sandbox),
    },
    checkpointAs: {
      label: "Checkpoint as…",
      icon: "checkpoint",
      disabled: isBusy || notAlive,
      act: () => actions.checkpointAs(sandbox),
    },
    fork: { label: "Fork…", icon: "fork", disabled: isBusy || notAlive, act: () => actions.fork(sandbox) },
    freeze:
      state === "frozen"
        ? { label: "Thaw", icon: "thaw", disabled: isBusy, act: () => actions.thaw(sandbox) }
        : {
            label: "Freeze",
            icon: "freeze",
            disabled: isBusy || (state !== "running" && `it is ${state}`),
            act: () => actions.freeze(sandbox),
          },
    terminal: {
      label: "Terminal",
      icon: "terminal",
      disabled: state !== "running" && (state === "frozen" ? "thaw it first" : `it is ${state}`),
      act: () => terminal(sandbox),
    },
    restore: {
      label: isAlive ? "Roll back…" : "Restore",
      icon: "restore",
      disabled: isBusy || (!sandbox.parent_snapshot && "it has no snapshot"),
      danger: isAlive,
      act: () => actions.restore(sandbox),
    },
    supervise: {
      label: "Watch over…",
      icon: "roll",
      disabled: isBusy || notAlive,
      act: () => actions.supervise(sandbox),
    },
    inspect: { label: "Inspect", icon: "inspect", act: () => open("sandbox", sandbox.id) },
    stop: {
      label: "Stop…",
      icon: "stop",
      danger: true,
      disabled: isBusy || notAlive,
      act: () => actions.stop(sandbox),
    },
    remove: { label: "Remove…", icon: "remove", danger: true, disabled: isBusy, act: () => actions.remove(sandbox) },
    name,
  };
}

function buttons(sandbox, context) {
  const all = actionsOf(sandbox, context);
  const first = ALIVE.has(sandbox.state) ? [all.checkpoint, all.fork, all.freeze, all.terminal] : [all.restore];
  return [
    first.map((item) =>
      h(
        "button",
        {
          key: item.icon,
          class: "ghost quick",
          "aria-label": `${item.label.replace("…", "")} ${sandbox.name}`,
          title: item.disabled ? `${item.label}: ${item.disabled}` : item.label,
          disabled: Boolean(item.disabled),
          onclick: item.act,
        },
        icon(item.icon),
      ),
    ),
    h(
      "button",
      {
        key: "more",
        class: "ghost",
        "aria-label": `More actions for ${sandbox.name}`,
        "aria-haspopup": "menu",
        "aria-expanded": "false",
        title: "More",
        onclick: (event) =>
          openMenu(event.currentTarget, `Actions for ${sandbox.name}`, [
            all.inspect,
            all.terminal,
            null,
            all.checkpoint,
            all.checkpointAs,
            all.fork,
            all.freeze,
            all.supervise,
            null,
            all.restore,
            all.stop,
            all.remove,
          ]),
      },
      icon("more"),
    ),
  ];
}
