// Sixteen-pixel line icons, drawn for this page.

import { h } from "./dom.js";

const PATHS = {
  checkpoint: "M8 2.5v7M5 6.8l3 3 3-3M2.5 11v1.5a1 1 0 0 0 1 1h9a1 1 0 0 0 1-1V11",
  fork: "M4.5 5.5v5M4.5 8.5h4a3 3 0 0 0 3-3M4.5 2.5a1.5 1.5 0 1 1 0 3 1.5 1.5 0 0 1 0-3ZM11.5 2.5a1.5 1.5 0 1 1 0 3 1.5 1.5 0 0 1 0-3ZM4.5 10.5a1.5 1.5 0 1 1 0 3 1.5 1.5 0 0 1 0-3Z",
  freeze: "M8 1.5v13M2.4 4.75l11.2 6.5M13.6 4.75 2.4 11.25M6.3 2.7 8 4.3l1.7-1.6M6.3 13.3 8 11.7l1.7 1.6",
  thaw: "M8 2C6 5 4.2 7.2 4.2 9.6a3.8 3.8 0 0 0 7.6 0C11.8 7.2 10 5 8 2Z",
  restore: "M3 8a5 5 0 1 0 1.6-3.7M3 2.5v3h3",
  terminal: "m3 4.5 3.5 3.5L3 11.5M8.5 12H13",
  more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
  close: "m4 4 8 8M12 4l-8 8",
  stop: "M4.5 4.5h7v7h-7Z",
  remove: "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9",
  inspect: "M7 2.5a4.5 4.5 0 1 1 0 9 4.5 4.5 0 0 1 0-9ZM10.3 10.3l3.2 3.2",
  verify: "m3 8.5 3.2 3.2L13 4.8",
  flatten: "M3 3.5h10M3 6.5h10M8 8.5v5M5.8 11.3 8 13.5l2.2-2.2",
  clone: "M5.5 5.5h8v8h-8ZM10.5 5.5v-3h-8v8h3",
  sun: "M8 5a3 3 0 1 1 0 6 3 3 0 0 1 0-6ZM8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
  moon: "M13 9.6A5.5 5.5 0 0 1 6.4 3a5.5 5.5 0 1 0 6.6 6.6Z",
  leave: "M6 3H3.5v10H6M7 8h6.5M11 5.5 13.5 8 11 10.5",
  pin: "M6 2.5h4l-.6 5 2.1 2h-7l2.1-2ZM8 9.5v4",
  warn: "M8 2.5 14 13H2ZM8 6.5v3M8 11.3v.01",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.5v9l7-4.5Z",
  roll: "M13 8a5 5 0 1 1-1.6-3.7M13 2.5v3h-3",
  drain: "M2.5 3.5h11L9.5 8.5v4l-3 1.5V8.5Z",
  name: "M2.5 8.5v-6h6l5 5-6 6ZM5.5 5.5h.01",
};

export function icon(name) {
  return h("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true" }, h("path", { d: PATHS[name] }));
}
