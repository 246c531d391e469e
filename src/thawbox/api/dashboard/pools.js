// Pools as levels: parked clones rise from the left against their watermarks, leases fill from the right.

import * as actions from "./actions.js";
import { busy } from "./actions.js";
import { columns } from "./charts.js";
import { h } from "./dom.js";
import { count, milliseconds, quantile } from "./format.js";
import { icon } from "./icons.js";
import { known } from "./live.js";
import { openMenu } from "./overlays.js";
import { panel } from "./panel.js";

const MOST_CELLS = 64;
/** Slower than this a caller waited for a restore, not for a thaw. */
const SLOW_MS = 40;

export function poolsView() {
  return panel(
    { id: "pools", title: "Pools", list: "pools", className: "half" },
    known.pools.length
      ? known.pools.map(poolView)
      : h(
          "p",
          { class: "empty" },
          known.loaded.has("pools")
            ? ["No pool. ", h("code", {}, "thawbox pool create web --template web"), " keeps clones parked."]
            : "Looking…",
        ),
  );
}

function poolView(pool) {
  const acquires = (known.acquires.get(pool.name) ?? []).map((one) => one.ms);
  const isLow = pool.open && pool.parked < pool.low;
  return h(
    "article",
    { key: pool.name, class: "pool", "data-pool": pool.name, "aria-label": `Pool ${pool.name}` },
    h(
      "header",
      {},
      h("h3", {}, pool.name),
      h("span", { class: "note" }, `template ${pool.template}`),
      !pool.open && h("span", { class: "badge exited" }, h("i", {}), pool.drained ? "drained" : "closed"),
      isLow && h("span", { class: "badge creating" }, h("i", {}), "below low"),
      pool.stale > 0 && h("span", { class: "badge suspended" }, h("i", {}), `${pool.stale} stale`),
      h(
        "button",
        {
          class: "ghost",
          "aria-label": `Actions for pool ${pool.name}`,
          "aria-haspopup": "menu",
          "aria-expanded": "false",
          onclick: (event) =>
            openMenu(event.currentTarget, `Actions for pool ${pool.name}`, [
              {
                label: "Roll to the newest template",
                icon: "roll",
                disabled: busy.has(pool.name) || !pool.open,
                act: () => actions.roll(pool),
              },
              {
                label: "Drain…",
                icon: "drain",
                danger: true,
                disabled: busy.has(pool.name) || !pool.open,
                act: () => actions.drain(pool),
              },
            ]),
        },
        icon("more"),
      ),
    ),
    level(pool),
    h(
      "dl",
      { class: "figures" },
      figure("parked", pool.parked, "parked"),
      figure("leased", pool.leased, "leased"),
      figure("restoring", pool.restoring, "restoring"),
      figure("", pool.waiting, "waiting"),
      figure("", pool.target ?? "–", "wanted"),
    ),
    acquiresView(pool, acquires),
    pool.last_failure &&
      h("p", { class: "failed" }, icon("warn"), h("span", {}, "Last failed restore: ", pool.last_failure)),
  );
}

function figure(kind, value, label) {
  return h("div", {}, kind && h("i", { class: `swatch ${kind}` }), h("dt", {}, label), h("dd", {}, String(value)));
}

/** Cells while they can be told apart, a bar above that. */
function level(pool) {
  const { parked, leased, restoring, limit, low, high } = pool;
  const words = `${parked} parked, ${restoring} restoring, ${leased} leased of at most ${limit}; low watermark ${low}, high ${high}`;
  const share = (number) => `${((number / limit) * 100).toFixed(2)}%`;
  const part = (kind, number, from) =>
    h("span", { class: `part ${kind}`, style: { left: share(from), width: share(number) } });
  return h(
    "div",
    { class: "level" },
    h(
      "div",
      {
        class: limit <= MOST_CELLS ? "tank cells" : "tank",
        role: "img",
        "aria-label": words,
        style: { "--limit": String(limit) },
      },
      part("parked", parked, 0),
      part("restoring", restoring, parked),
      part("leased", leased, Math.max(limit - leased, 0)),
    ),
    h(
      "div",
      { class: "marks", "aria-hidden": "true" },
      mark("low", low, limit),
      high !== low && mark("high", high, limit),
      mark("limit", limit, limit),
    ),
  );
}

function mark(name, at, limit) {
  const share = at / limit;
  return h(
    "span",
    { class: `mark ${name} ${share > 0.85 ? "left" : ""}`, style: { left: `${(share * 100).toFixed(2)}%` } },
    h("b", {}, `${name} ${at}`),
  );
}

function acquiresView(pool, values) {
  if (!values.length) return h("p", { class: "acquires note" }, "No acquire seen yet.");
  const [median, late] = [quantile(values, 0.5), quantile(values, 0.99)];
  const words = `last ${count(values.length, "acquire")}: half within ${milliseconds(median)}, 99 % within ${milliseconds(late)}`;
  return h(
    "div",
    { class: "acquires" },
    columns(values, { label: `Acquire latencies of pool ${pool.name}, ${words}`, limit: SLOW_MS }),
    h(
      "dl",
      { class: "figures" },
      figure("", milliseconds(values.at(-1)), "last acquire"),
      figure("", milliseconds(median), "p50"),
      figure("", milliseconds(late), "p99"),
      figure("", values.length, "seen"),
    ),
  );
}
