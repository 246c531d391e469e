// Small pictures of numbers, as SVG.

import { h } from "./dom.js";

/** A line of the last values, filled below, from zero; drawn over the whole width however many there are. */
export function sparkline(values, { width = 64, height = 18, label = "", most = Math.max(...values, 0) } = {}) {
  if (values.length < 2) return h("svg", { class: "spark", width, height, "aria-hidden": "true" });
  const x = (index) => (index / (values.length - 1)) * (width - 2) + 1;
  const y = (value) => height - 1 - (most ? value / most : 0) * (height - 3);
  const line = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  return h(
    "svg",
    {
      class: "spark",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }),
    },
    h("polygon", { class: "fill", points: `${x(0)},${height} ${line} ${x(values.length - 1)},${height}` }),
    h("polyline", { class: "line", points: line }),
  );
}

/** One bar a value, from zero; the slowest are marked. */
export function columns(values, { width = 240, height = 40, label = "", limit = Infinity, slots = 60 } = {}) {
  const most = Math.max(...values, 1e-9);
  const step = width / slots;
  const shown = values.slice(-slots);
  return h(
    "svg",
    {
      class: "columns",
      viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": label,
    },
    shown.map((value, index) => {
      const tall = Math.max(1, (value / most) * (height - 1));
      return h("rect", {
        class: value > limit ? "slow" : "",
        x: (width - (shown.length - index) * step).toFixed(2),
        y: (height - tall).toFixed(2),
        width: Math.max(0.6, step - 1).toFixed(2),
        height: tall.toFixed(2),
      });
    }),
  );
}

/** A share of a whole: a thin bar. */
export function meter(value, whole, label) {
  const share = whole ? Math.min(1, Math.max(0, value / whole)) : 0;
  return h(
    "span",
    {
      class: share > 0.9 ? "meter full" : "meter",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(share * 100),
    },
    h("span", { style: { width: `${(share * 100).toFixed(1)}%` } }),
  );
}
