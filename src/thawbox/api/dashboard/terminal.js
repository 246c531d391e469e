// A terminal in a sandbox, over the service's WebSocket.

import { Problem, call, target, token } from "./api.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { complain } from "./overlays.js";
import { TerminalView } from "./vt_view.js";

const SHELL = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l"];
const [STDOUT, STDERR] = [1, 2];

let session = null;
let redraw = () => {};

/** Open a shell in a sandbox; one that is open already goes. */
export function openTerminal(sandbox, draw) {
  redraw = draw;
  if (session?.sandbox.id === sandbox.id && session.state === "open") {
    session.view.focus();
    return;
  }
  closeTerminal({ returnFocus: false });
  session = begin(sandbox, document.activeElement);
  redraw();
  requestAnimationFrame(() => {
    session?.view.fit();
    session?.view.focus();
  });
}

function begin(sandbox, openedFrom) {
  const mine = { sandbox, openedFrom, state: "connecting", why: "" };
  mine.view = new TerminalView({
    label: `Terminal of ${sandbox.name}. Control Shift X leaves it.`,
    send: (bytes) => {
      if (mine.state === "open") mine.socket.send(bytes);
    },
    resized: (size) => {
      if (mine.state === "open") mine.socket.send(JSON.stringify({ resize: size }));
    },
    left: () => document.getElementById("terminal-close")?.focus(),
  });
  const address = new URL(target(["sandboxes", sandbox.id, "terminal"]), location.href);
  address.protocol = address.protocol.replace("http", "ws");
  mine.socket = new WebSocket(address, ["thawbox.v1", ...(token() ? [`bearer.${token()}`] : [])]);
  mine.socket.binaryType = "arraybuffer";
  mine.socket.addEventListener("open", () => {
    const { rows, columns } = mine.view.screen;
    mine.state = "open";
    mine.socket.send(
      JSON.stringify({ argv: SHELL, env: { TERM: "xterm-256color", LANG: "C.UTF-8" }, tty: { rows, cols: columns } }),
    );
    redraw();
  });
  mine.socket.addEventListener("message", ({ data }) => hear(mine, data));
  mine.socket.addEventListener("close", (event) => ended(mine, event));
  return mine;
}

function hear(mine, data) {
  if (typeof data !== "string") {
    const bytes = new Uint8Array(data);
    if (bytes[0] === STDOUT || bytes[0] === STDERR) mine.view.write(bytes.subarray(1));
    return;
  }
  const told = JSON.parse(data);
  if (told.refused) mine.why = told.refused;
  else if (told.exit) mine.why = endOf(told.exit);
  else if (told.interrupted) mine.why = `interrupted: ${told.interrupted}`;
  else if (told.error) {
    mine.why = "refused";
    complain(`No terminal in ${mine.sandbox.name}`, new Problem(told.error));
  }
}

function endOf({ exit_status, signal }) {
  return signal ? `ended by signal ${signal}` : `ended with status ${exit_status}`;
}

async function ended(mine, { reason }) {
  const wasOpen = mine.state === "open";
  mine.state = "closed";
  mine.why ||= reason || (wasOpen ? "the connection is gone" : "");
  if (mine === session) redraw();
  if (wasOpen || mine.why || mine !== session) return;
  // A WebSocket that was refused does not say why; the sandbox's own route does.
  try {
    const { state } = await call("GET", ["sandboxes", mine.sandbox.id]);
    mine.why = `refused; the sandbox is ${state}`;
  } catch (problem) {
    mine.why = "refused";
    complain(`No terminal in ${mine.sandbox.name}`, problem);
  }
  redraw();
}

export function closeTerminal({ returnFocus = true } = {}) {
  if (!session) return;
  const { socket, view, openedFrom } = session;
  session = null;
  socket.close();
  view.close();
  redraw();
  if (returnFocus && openedFrom?.isConnected) openedFrom.focus();
}

export function terminalView() {
  if (!session) return null;
  const { sandbox, state, why, view } = session;
  return h(
    "section",
    { key: `terminal ${sandbox.id}`, class: "terminal", "aria-label": `Terminal of ${sandbox.name}` },
    h(
      "header",
      {},
      icon("terminal"),
      h("h2", {}, sandbox.name),
      h("span", { role: "status" }, state === "open" ? "" : state === "connecting" ? "connecting…" : why),
      h(
        "div",
        { class: "tools" },
        h("span", { class: "hint" }, h("kbd", {}, "Ctrl Shift X"), " leaves"),
        state === "closed" &&
          h(
            "button",
            {
              onclick: () => {
                const again = sandbox;
                closeTerminal({ returnFocus: false });
                openTerminal(again, redraw);
              },
            },
            "Open again",
          ),
        h(
          "button",
          {
            id: "terminal-close",
            class: "ghost",
            "aria-label": "Close the terminal",
            title: "Close",
            onclick: () => closeTerminal(),
          },
          icon("close"),
        ),
      ),
    ),
    view.element,
  );
}
