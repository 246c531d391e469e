// What the page knows of the node, kept true: lists are fetched once, events say which of them to fetch again.
//
// Rule 1: an event is never applied to a list by hand; it only says that the list is out of date. The service's own
// answer is the one truth, so what is missed while disconnected is mended by the fetch that follows.
// Rule 2: nothing is fetched while nobody looks, but events.

import { call, keepToken, list, target, token } from "./api.js";
import { follow } from "./stream.js";

const SETTLE = 120;
const LOOK_AGAIN = 5000;
const KEPT_EVENTS = 500;
const KEPT_ACQUIRES = 120;
const KEPT_SAMPLES = 60;

export const known = {
  /** `starting`, `token` (one is asked for) or `open`. */
  phase: "starting",
  refusal: null,
  /** `{status: "connecting" | "open" | "waiting", until}`. */
  link: { status: "connecting" },
  loaded: new Set(),
  node: null,
  doctor: null,
  sandboxes: [],
  snapshots: [],
  pools: [],
  recoveries: [],
  events: [],
  /** Of each pool, the last acquires: `{at, ms}`. */
  acquires: new Map(),
  /** Of each sandbox, the last samples of its memory. */
  memory: new Map(),
  problems: new Map(),
};

const FETCHES = {
  node: async () => {
    known.node = await call("GET", ["node"]);
  },
  doctor: async () => {
    known.doctor = await call("GET", ["doctor"]);
  },
  sandboxes: async () => {
    known.sandboxes = await list(["sandboxes"], "sandboxes", { all: true });
    sample();
  },
  snapshots: async () => {
    known.snapshots = await list(["snapshots"], "snapshots");
  },
  pools: async () => {
    known.pools = await list(["pools"], "pools");
  },
  recoveries: async () => {
    known.recoveries = (await call("GET", ["recoveries"], { query: { limit: 200 } })).recoveries;
  },
};

const TOLD_BY = {
  sandbox: ["sandboxes", "node"],
  snapshot: ["snapshots", "sandboxes", "node"],
  pool: ["pools", "sandboxes"],
  recovery: ["recoveries", "sandboxes"],
  node: ["node"],
  template: ["pools"],
};

let redraw = () => {};
let stale = new Set();
let running = null;
let timer = 0;
/** Milliseconds between fetches: a node that takes long to answer, or has much to tell, is asked less often. */
let rest = SETTLE;
let session = null;

/** Begin; `draw` is called after every change. */
export function start(draw) {
  redraw = draw;
  setInterval(() => {
    if (known.phase === "open" && known.link.status === "open" && !document.hidden)
      outdated("sandboxes", "pools", "node");
  }, LOOK_AGAIN);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && known.phase === "open") outdated("sandboxes", "pools", "node");
  });
  enter();
}

/** Try what token there is; over a unix socket none is needed. */
export async function enter(offered = token()) {
  keepToken(offered);
  try {
    await FETCHES.node();
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) {
      leave(offered ? problem : null);
      return;
    }
    known.problems.set("node", problem);
  }
  known.phase = "open";
  known.refusal = null;
  outdated(...Object.keys(FETCHES));
  connect();
  redraw();
}

/** Forget the token and ask for one; `problem` says why the last was refused. */
export function leave(problem = null) {
  session?.abort();
  keepToken("");
  Object.assign(known, { phase: "token", refusal: problem, link: { status: "connecting" }, node: null, doctor: null });
  Object.assign(known, { sandboxes: [], snapshots: [], pools: [], recoveries: [], events: [], loaded: new Set() });
  known.acquires.clear();
  known.memory.clear();
  redraw();
}

function connect() {
  session?.abort();
  session = new AbortController();
  const begin = Math.max(0, (known.node?.event ?? 0) - KEPT_EVENTS);
  follow(target(["events"]), { signal: session.signal, hear, tell: linked, from: String(begin) });
}

function linked(link) {
  if (link.status === "refused") {
    leave(link.problem);
    return;
  }
  known.link = link;
  if (link.status === "open") outdated(...Object.keys(FETCHES).filter((name) => name !== "doctor"));
  redraw();
}

function hear({ id, event, data }) {
  let told;
  try {
    told = { ...JSON.parse(data), id, kind: event };
  } catch {
    return;
  }
  if (known.events.some((one) => one.id === id)) return;
  known.events = [told, ...known.events].slice(0, KEPT_EVENTS);
  if (event === "pool.acquired" && told.acquire_ms !== undefined)
    remember(known.acquires, told.subject?.name, { at: told.at, ms: told.acquire_ms }, KEPT_ACQUIRES);
  outdated(...(TOLD_BY[event.split(".")[0]] ?? []));
  redraw();
}

function sample() {
  const present = new Set(known.sandboxes.map((one) => one.id));
  for (const id of known.memory.keys()) if (!present.has(id)) known.memory.delete(id);
  for (const one of known.sandboxes) {
    if (typeof one.memory === "number") remember(known.memory, one.id, one.memory, KEPT_SAMPLES);
  }
}

function remember(map, key, value, most) {
  map.set(key, [...(map.get(key) ?? []), value].slice(-most));
}

/** Say that these are to be fetched again. They are, once for all that is said within a moment. */
export function outdated(...names) {
  names.forEach((name) => stale.add(name));
  if (!running && !timer && stale.size) timer = setTimeout(refresh, rest);
}

async function refresh() {
  timer = 0;
  const wanted = [...stale];
  stale = new Set();
  const begun = performance.now();
  running = Promise.all(wanted.map(fetchOne));
  await running;
  running = null;
  rest = Math.min(Math.max(SETTLE, 3 * (performance.now() - begun)), LOOK_AGAIN);
  redraw();
  outdated();
}

async function fetchOne(name) {
  try {
    await FETCHES[name]();
    known.problems.delete(name);
    known.loaded.add(name);
  } catch (problem) {
    if (problem.status === 401) {
      if (known.phase === "open") leave(problem);
      return;
    }
    if (problem.code !== "unreachable") known.problems.set(name, problem); // the link itself says that nobody answers
  }
}

/** The doctor's findings, found anew: it freezes and restores a program, which takes a second or two. */
export async function examine() {
  known.doctor = await call("GET", ["doctor"], { query: { fresh: true } });
  redraw();
}
