// Recoveries on a timeline: when something died, and how long until it was healthy again, by what took the time.

import { h } from "./dom.js";
import { age, clock, instant, milliseconds, moment, quantile, short, span } from "./format.js";
import { known } from "./live.js";
import { panel } from "./panel.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [560, 150, 46, 18, 8];
const SHORTEST = 2 * 60 * 1000;
const ROWS = 6;

export function recoveriesView({ open }) {
  const all = known.recoveries.filter((one) => !Number.isNaN(instant(one.at)));
  const healthy = all.map((one) => one.healthy_ms).filter((one) => typeof one === "number");
  const note = healthy.length
    ? `${all.length} · healthy again after ${milliseconds(quantile(healthy, 0.5))} (p50), ${milliseconds(Math.max(...healthy))} (max)`
    : "";
  return panel(
    { id: "recoveries", title: "Recoveries", note, list: "recoveries", className: "half" },
    all.length
      ? [timeline(all), table(all.slice(0, ROWS), open)]
      : h("p", { class: "empty" }, known.loaded.has("recoveries") ? "Nothing had to be recovered." : "Looking…"),
  );
}

/** The parts of a recovery, first to last; the rest is what the program took to be healthy. */
export function partsOf(recovery) {
  const whole = recovery.healthy_ms ?? (recovery.detect_ms ?? 0) + (recovery.restore_ms ?? 0);
  const detect = Math.min(recovery.detect_ms ?? 0, whole);
  const restore = Math.min(recovery.restore_ms ?? 0, whole - detect);
  return [
    ["detect", detect],
    ["restore", restore],
    ["wake", Math.max(whole - detect - restore, 0)],
  ];
}

function timeline(recoveries) {
  const now = Date.now();
  const begin = Math.min(...recoveries.map((one) => instant(one.at)));
  const range = Math.max(now - begin, SHORTEST) * 1.04;
  const most = niceAbove(Math.max(...recoveries.map((one) => one.healthy_ms ?? 0), 1));
  const x = (at) => LEFT + (1 - (now - at) / range) * (WIDTH - LEFT - 10);
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
  const ticks = [0, 0.5, 1].map((share) => share * most);
  return h(
    "figure",
    { class: "timeline" },
    h(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-label": `${recoveries.length} recoveries over the last ${span(range / 1000)}; the table below has the newest`,
      },
      ticks.map((value) =>
        h(
          "g",
          { class: "grid" },
          h("line", { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }),
          h("text", { x: LEFT - 6, y: y(value) + 3, "text-anchor": "end" }, milliseconds(value).replace(".0", "")),
        ),
      ),
      [0.25, 0.5, 0.75].map((share) =>
        h(
          "text",
          { class: "axis", x: x(now - range * share), y: HEIGHT - 4, "text-anchor": "middle" },
          `${span((range * share) / 1000)} ago`,
        ),
      ),
      h("text", { class: "axis", x: WIDTH - 10, y: HEIGHT - 4, "text-anchor": "end" }, "now"),
      recoveries.map((one) => bar(one, x(instant(one.at)), y)),
    ),
    h(
      "figcaption",
      { class: "legend" },
      [
        ["detect", "until noticed"],
        ["restore", "until restored"],
        ["wake", "until healthy"],
      ].map(([kind, label]) => h("span", {}, h("i", { class: `swatch ${kind}` }), label)),
    ),
  );
}

function bar(recovery, x, y) {
  let done = 0;
  const name = recovery.sandbox?.name ?? "";
  return h(
    "g",
    { key: `${recovery.sandbox?.id} ${recovery.at}`, class: "recovery" },
    h(
      "title",
      {},
      `${name}, ${moment(recovery.at)}\n${recovery.cause}\nhealthy after ${milliseconds(recovery.healthy_ms)}`,
    ),
    partsOf(recovery).map(([kind, value]) => {
      const rect = h("rect", {
        class: kind,
        x: x - 3,
        width: 6,
        y: y(done + value),
        height: Math.max(y(done) - y(done + value), 0),
      });
      done += value;
      return rect;
    }),
    recovery.healthy_ms === null && h("path", { class: "unhealthy", d: `M${x - 4} ${y(0) - 8}l8 8m0 -8l-8 8` }),
  );
}

/** The next of 1, 2, 5, 10, … above a value. */
function niceAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function table(recoveries, open) {
  return h(
    "table",
    { class: "recovered" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        ["When", "Sandbox", "Died of", "Lost", "Healthy"].map((name) => h("th", { scope: "col" }, name)),
      ),
    ),
    h(
      "tbody",
      {},
      recoveries.map((one) =>
        h(
          "tr",
          { key: `${one.sandbox?.id} ${one.at}` },
          h("td", { title: moment(one.at) }, clock(instant(one.at))),
          h(
            "td",
            {},
            h("button", { class: "link", onclick: () => open("sandbox", one.sandbox.id) }, one.sandbox?.name ?? "–"),
          ),
          h(
            "td",
            { class: "cause", title: `${one.cause}; from ${short(one.snapshot)}, ${age(one.at)} ago` },
            one.cause,
          ),
          h("td", { class: "number" }, typeof one.lost_s === "number" ? `${one.lost_s.toFixed(1)} s` : "–"),
          h("td", { class: "number strong" }, milliseconds(one.healthy_ms)),
        ),
      ),
    ),
  );
}
