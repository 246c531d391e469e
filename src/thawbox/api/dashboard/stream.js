// Server-sent events over fetch: EventSource cannot carry an Authorization header.

import { send } from "./api.js";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 15000;
/** The service sends a comment every 15 s; a stream that is silent for longer than two of them is dead. */
const LONGEST_SILENCE = 40000;

/** Splits bytes into events `{id, event, data}`; comments vanish. Chunks may end anywhere. */
export class EventParser {
  #text = "";
  #decoder = new TextDecoder();

  push(bytes) {
    this.#text += this.#decoder.decode(bytes, { stream: true });
    const blocks = this.#text.split(/\r\n\r\n|\n\n|\r\r/);
    this.#text = blocks.pop();
    return blocks.map(readEvent).filter((event) => event !== null);
  }
}

function readEvent(block) {
  const event = { id: "", event: "message", data: [] };
  let told = false;
  for (const line of block.split(/\r\n|\n|\r/)) {
    const colon = line.indexOf(":");
    if (colon === 0 || line === "") continue;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") {
      event.data.push(value);
      told = true;
    } else if (name === "id") {
      event.id = value;
      told = true;
    } else if (name === "event") event.event = value;
  }
  return told ? { ...event, data: event.data.join("\n") } : null;
}

/** Reads one stream to its end; `hear` gets every event. Throws Problem, or AbortError when `signal` says so. */
export async function readEvents(address, { signal, headers = {}, hear, opened = () => {} }) {
  const silence = new AbortController();
  const ended = AbortSignal.any([signal, silence.signal]);
  let timer = setTimeout(() => silence.abort(), LONGEST_SILENCE);
  try {
    const response = await send("GET", address, {
      signal: ended,
      headers: { Accept: "text/event-stream", ...headers },
    });
    opened();
    const parser = new EventParser();
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), LONGEST_SILENCE);
      parser.push(value).forEach(hear);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Milliseconds before the next attempt: twice as long each time, up to 15 s, a third of it random. */
export function delayAfter(failures, random = Math.random()) {
  return Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** Math.min(failures - 1, 10)) * (2 / 3 + random / 3);
}

/** Follows a stream for ever, going on where it was after every break.
 *
 * `tell` hears `{status: "open"}`, `{status: "waiting", until, problem}` and `{status: "refused", problem}`, the last
 * of which ends it: a wrong token does not become right by asking again.
 */
export async function follow(address, { signal, hear, tell, from = "" }) {
  let last = from;
  let failures = 0;
  while (!signal.aborted) {
    let problem = null;
    try {
      await readEvents(address, {
        signal,
        headers: last ? { "Last-Event-ID": last } : {},
        opened: () => {
          failures = 0;
          tell({ status: "open" });
        },
        hear: (event) => {
          if (event.id) last = event.id;
          if (event.data) hear(event); // else it only says where the stream begins
        },
      });
    } catch (error) {
      if (signal.aborted) return;
      problem = error;
      if (error.status === 401 || error.status === 403) {
        tell({ status: "refused", problem });
        return;
      }
    }
    failures += 1;
    const delay = delayAfter(failures);
    tell({ status: "waiting", until: Date.now() + delay, problem });
    await pause(delay, signal);
  }
}

/** Waits; ends early when the browser says that the network is back, or the page is looked at again. */
function pause(delay, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      window.removeEventListener("online", end);
      document.removeEventListener("visibilitychange", end);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, delay);
    window.addEventListener("online", end);
    document.addEventListener("visibilitychange", end);
    signal.addEventListener("abort", end);
  });
}
