// What a key means to a program: the bytes that xterm sends.

const CURSOR = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F" };
const TILDE = {
  Insert: 2,
  Delete: 3,
  PageUp: 5,
  PageDown: 6,
  F5: 15,
  F6: 17,
  F7: 18,
  F8: 19,
  F9: 20,
  F10: 21,
  F11: 23,
  F12: 24,
};
const FUNCTION = { F1: "P", F2: "Q", F3: "R", F4: "S" };
const PLAIN = { Enter: "\r", Escape: "\x1b", Tab: "\t", Backspace: "\x7f" };

/** The text that a keydown stands for; null for one that the page or the browser should have, or that is text itself. */
export function sequenceOf(event, modes) {
  const { key, ctrlKey, altKey, shiftKey, metaKey } = event;
  if (metaKey || (ctrlKey && shiftKey)) return null; // the browser's and the page's own
  const modifiers = 1 + (shiftKey ? 1 : 0) + (altKey ? 2 : 0) + (ctrlKey ? 4 : 0);
  if (CURSOR[key]) {
    if (modifiers > 1) return `\x1b[1;${modifiers}${CURSOR[key]}`;
    return `\x1b${modes.applicationCursor ? "O" : "["}${CURSOR[key]}`;
  }
  if (FUNCTION[key]) return modifiers > 1 ? `\x1b[1;${modifiers}${FUNCTION[key]}` : `\x1bO${FUNCTION[key]}`;
  if (TILDE[key]) return modifiers > 1 ? `\x1b[${TILDE[key]};${modifiers}~` : `\x1b[${TILDE[key]}~`;
  if (key === "Tab" && shiftKey) return "\x1b[Z";
  if (key === "Backspace" && ctrlKey) return "\x08";
  if (PLAIN[key]) return (altKey ? "\x1b" : "") + PLAIN[key];
  if (key.length === 1 && ctrlKey && !altKey) return controlOf(key);
  if (key.length === 1 && altKey && !ctrlKey) return `\x1b${key}`;
  return null;
}

function controlOf(key) {
  const upper = key.toUpperCase();
  if (upper >= "@" && upper <= "_") return String.fromCharCode(upper.charCodeAt(0) - 64);
  return (
    { " ": "\0", 2: "\0", 3: "\x1b", 4: "\x1c", 5: "\x1d", 6: "\x1e", 7: "\x1f", 8: "\x7f", "/": "\x1f", "?": "\x7f" }[
      key
    ] ?? null
  );
}

/** Pasted text as a program gets it; one that asked for it is told where it begins and ends. */
export function pasted(text, modes) {
  const typed = text.replaceAll(/\r?\n/g, "\r");
  return modes.bracketedPaste ? `\x1b[200~${typed.replaceAll("\x1b", "")}\x1b[201~` : typed;
}
