// The frame of every part of the page: a heading, its tools, what went wrong when it was fetched, and its content.

import { h } from "./dom.js";
import { icon } from "./icons.js";
import { known } from "./live.js";

export function panel({ id, title, note = "", tools = [], list = "", className = "" }, ...content) {
  const problem = known.problems.get(list);
  return h(
    "section",
    { key: id, id, class: `panel ${className}`, "aria-labelledby": `${id}-title`, tabindex: "-1" },
    h(
      "header",
      {},
      h("h2", { id: `${id}-title` }, title),
      note && h("span", { class: "note" }, note),
      h("div", { class: "tools" }, tools),
    ),
    problem &&
      h(
        "p",
        { class: "failed", role: "alert" },
        icon("warn"),
        h("span", {}, `${problem.why ?? problem}. ${problem.remediation ?? ""}`),
      ),
    content,
  );
}
