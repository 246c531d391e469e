// The live event log, newest first.

import { h } from "./dom.js";
import { clock, instant, milliseconds, moment, short, size } from "./format.js";
import { icon } from "./icons.js";
import { known } from "./live.js";
import { panel } from "./panel.js";

const SHOWN = 100;
const FAMILIES = ["sandbox", "snapshot", "pool", "recovery", "operation"];
const BAD = new Set(["sandbox.lost", "snapshot.damaged", "snapshot.refused", "recovery.gave_up", "operation.failed"]);
const view = { family: "", held: null };

export function eventsView({ redraw, open }) {
  const all = view.held ?? known.events;
  const shown = all.filter((event) => !view.family || event.kind.startsWith(`${view.family}.`)).slice(0, SHOWN);
  const missed =
    view.held && known.events.length && view.held[0]
      ? known.events.findIndex((event) => event.id === view.held[0].id)
      : 0;
  const tools = [
    h(
      "select",
      {
        "aria-label": "Which events",
        value: view.family,
        onchange: (event) => {
          view.family = event.target.value;
          redraw();
        },
      },
      h("option", { value: "" }, "All kinds"),
      FAMILIES.map((family) => h("option", { value: family }, family)),
    ),
    h(
      "button",
      {
        class: "ghost",
        "aria-pressed": String(view.held !== null),
        title: view.held ? "Go on" : "Hold still",
        "aria-label": view.held ? "Let the event log go on" : "Hold the event log still",
        onclick: () => {
          view.held = view.held ? null : known.events;
          redraw();
        },
      },
      icon(view.held ? "play" : "pause"),
      missed > 0 && h("span", { class: "tally" }, `${missed} new`),
    ),
  ];
  return panel(
    { id: "events", title: "Events", tools, list: "events" },
    shown.length
      ? h(
          "ol",
          { class: "events", role: "log", "aria-label": "Events, newest first", "aria-live": "off", tabindex: "0" },
          shown.map((event) => row(event, open)),
        )
      : h("p", { class: "empty" }, "Nothing has happened yet."),
  );
}

function row(event, open) {
  const [family, verb] = [event.kind.slice(0, event.kind.indexOf(".")), event.kind.slice(event.kind.indexOf(".") + 1)];
  const { subject } = event;
  const isLink = subject && (subject.type === "sandbox" || subject.type === "snapshot");
  const name = subject?.name || short(subject?.id ?? "");
  return h(
    "li",
    { key: event.id, class: BAD.has(event.kind) ? "bad" : "", "data-kind": event.kind },
    h("time", { title: moment(event.at) }, clock(instant(event.at))),
    h("span", { class: `kind of-${family}` }, h("b", {}, family), verb.replaceAll("_", " ")),
    isLink
      ? h("button", { class: "link", onclick: () => open(subject.type, subject.id) }, name)
      : h("span", { class: "subject" }, name),
    h("span", { class: "more" }, detailsOf(event)),
  );
}

const SKIPPED = new Set(["id", "at", "kind", "subject"]);
const PLAIN = new Set(["why", "cause", "kind_of"]);

/** What else an event says, in the order it says it. */
export function detailsOf(event) {
  return Object.entries(event)
    .filter(([name, value]) => !SKIPPED.has(name) && value !== null && value !== "")
    .map(([name, value]) => {
      if (name.endsWith("_ms") && typeof value === "number") return `${name.slice(0, -3)} ${milliseconds(value)}`;
      if (name.endsWith("_s") && typeof value === "number") return `${name.slice(0, -2)} ${value.toFixed(1)} s`;
      if (name === "parent_snapshot") return `from ${short(value)}`;
      if (name.endsWith("bytes") && typeof value === "number") return size(value);
      if (typeof value === "string" && /^[0-9a-f]{64}$/.test(value)) return `${name} ${short(value)}`;
      if (PLAIN.has(name)) return String(value);
      return `${name} ${typeof value === "object" ? (value.name ?? JSON.stringify(value)) : value}`;
    })
    .join(" · ");
}
