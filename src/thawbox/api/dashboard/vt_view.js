// A screen in the page: one element a line, redrawn only where a line has changed; keys, pasting, size.

import { pasted, sequenceOf } from "./vt_keys.js";
import { PLAIN, paletteColour } from "./vt_pen.js";
import { Screen } from "./vt_screen.js";

const ENCODER = new TextEncoder();

export class TerminalView {
  #due = false;
  #drawn = [];
  #kept = 0;
  #dropped = 0;

  /** `send` gets the bytes that were typed, `resized` `{rows, cols}`, `left` is called when the focus is to go. */
  constructor({ label, send, resized, left }) {
    this.#send = (text) => send(ENCODER.encode(text));
    this.#resized = resized;
    this.element = make("div", "screen");
    this.history = make("div", "history");
    this.lines = make("div", "lines");
    this.probe = make("span", "probe", "0".repeat(20));
    this.input = make("textarea", "");
    this.probe.setAttribute("aria-hidden", "true");
    for (const [name, value] of Object.entries({
      "aria-label": label,
      autocapitalize: "off",
      autocomplete: "off",
      autocorrect: "off",
      spellcheck: "false",
      rows: "1",
    }))
      this.input.setAttribute(name, value);
    this.element.append(this.probe, this.history, this.lines, this.input);
    this.screen = new Screen({ columns: 80, rows: 24, reply: (text) => this.#send(text) });
    this.#listen(left);
    this.observer = new ResizeObserver(() => this.fit());
    this.observer.observe(this.element);
  }

  #send;
  #resized;

  close() {
    this.observer.disconnect();
  }

  focus() {
    this.input.focus({ preventScroll: true });
  }

  write(data) {
    this.screen.write(data);
    this.#redraw();
  }

  /** As many rows and columns as there is room for. */
  fit() {
    const width = this.probe.getBoundingClientRect().width / 20;
    const height = this.probe.getBoundingClientRect().height;
    if (!width || !height || !this.element.clientHeight) return;
    const columns = Math.max(10, Math.floor((this.element.clientWidth - 24) / width));
    const rows = Math.max(3, Math.floor((this.element.clientHeight - 16) / height));
    if (columns === this.screen.columns && rows === this.screen.rows) return;
    this.screen.resize(columns, rows);
    this.#redraw();
    this.#resized({ rows, cols: columns });
  }

  // --- typing -----------------------------------------------------------------------------------------------------

  #listen(left) {
    const { input, element } = this;
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.ctrlKey && event.shiftKey && event.key.toUpperCase() === "X") {
        event.preventDefault();
        left();
        return;
      }
      const sequence = sequenceOf(event, this.screen.modes);
      if (sequence === null) return;
      event.preventDefault();
      this.#type(sequence);
    });
    input.addEventListener("input", (event) => {
      if (!event.isComposing) this.#takeText();
    });
    input.addEventListener("compositionend", () => this.#takeText());
    element.addEventListener("paste", (event) => {
      event.preventDefault();
      this.#type(pasted(event.clipboardData.getData("text/plain"), this.screen.modes));
    });
    element.addEventListener("mouseup", () => {
      if (getSelection().isCollapsed) this.focus();
    });
    for (const type of ["focus", "blur"]) input.addEventListener(type, () => this.#redraw());
  }

  #takeText() {
    const typed = this.input.value;
    this.input.value = "";
    if (typed) this.#type(typed.replaceAll("\n", "\r"));
  }

  #type(text) {
    this.element.scrollTop = this.element.scrollHeight;
    this.#send(text);
  }

  // --- drawing ----------------------------------------------------------------------------------------------------

  #redraw() {
    if (this.#due) return;
    this.#due = true;
    const draw = () => {
      this.#due = false;
      this.#draw();
    };
    if (document.hidden) setTimeout(draw, 50);
    else requestAnimationFrame(draw);
  }

  #draw() {
    const { screen, element } = this;
    const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
    this.#drawHistory();
    this.history.hidden = screen.isAlternate;
    while (this.lines.childElementCount > screen.rows) this.lines.lastElementChild.remove();
    while (this.lines.childElementCount < screen.rows) this.lines.append(make("div", "line"));
    screen.lines.forEach((line, row) => {
      const cursor = screen.modes.cursor && row === screen.row ? screen.column : -1;
      const drawn = `${line.version} ${cursor}`;
      if (this.#drawn[row] === drawn) return;
      this.#drawn[row] = drawn;
      this.lines.children[row].replaceChildren(...runsOf(line.cells, cursor).map(spanOf));
    });
    this.#placeInput();
    if (isAtEnd) element.scrollTop = element.scrollHeight;
  }

  #drawHistory() {
    const { scrolled, dropped } = this.screen;
    for (; this.#dropped < dropped && this.history.firstElementChild; this.#dropped += 1) {
      this.history.firstElementChild.remove();
      this.#kept -= 1;
    }
    this.#dropped = dropped;
    while (this.#kept > scrolled.length) {
      this.history.lastElementChild.remove();
      this.#kept -= 1;
    }
    for (; this.#kept < scrolled.length; this.#kept += 1) {
      const line = make("div", "line");
      line.append(...runsOf(scrolled[this.#kept].cells, -1).map(spanOf));
      this.history.append(line);
    }
  }

  /** The text field is where the cursor is, so that an input method opens there. */
  #placeInput() {
    const line = this.lines.children[this.screen.row];
    if (!line) return;
    this.input.style.top = `${line.offsetTop}px`;
    this.input.style.left = `calc(12px + ${this.screen.column}ch)`;
  }
}

/** Neighbours that look the same, joined; blanks without looks at the end are left out. */
export function runsOf(cells, cursor) {
  let end = cells.length;
  while (end > cursor + 1 && end > 0 && cells[end - 1].char === " " && cells[end - 1].pen === PLAIN) end -= 1;
  const runs = [];
  for (let at = 0; at < end; at += 1) {
    const { char, pen } = cells[at];
    if (char === "" && cells[at - 1]) continue; // the second half of a wide character
    const isCursor = at === cursor || (at + 1 === cursor && cells[at + 1]?.char === "");
    const width = cells[at + 1]?.char === "" ? 2 : 1;
    const isOdd = width === 2 || char.codePointAt(0) > 0x24f; // glyphs of other fonts may be of another width
    const last = runs.at(-1);
    if (last && !isCursor && !isOdd && !last.isCursor && !last.isOdd && last.pen === pen) last.text += char;
    else runs.push({ text: char, pen, isCursor, isOdd, width });
  }
  return runs;
}

function spanOf({ text, pen, isCursor, isOdd, width }) {
  if (pen === PLAIN && !isCursor && !isOdd) return document.createTextNode(text);
  const span = make("span", classesOf(pen, { isCursor, isOdd, width }), text);
  const [fore, back] = pen.inverse ? [pen.back, pen.fore] : [pen.fore, pen.back];
  for (const [property, colour] of [
    ["color", fore],
    ["background-color", back],
  ]) {
    if (typeof colour === "string") span.style.setProperty(property, colour);
    else if (colour > 15) span.style.setProperty(property, paletteColour(colour));
  }
  return span;
}

function classesOf(pen, { isCursor, isOdd, width }) {
  const [fore, back] = pen.inverse ? [pen.back ?? "d", pen.fore ?? "d"] : [pen.fore, pen.back];
  const bright = pen.bold && !pen.inverse && typeof fore === "number" && fore < 8 ? fore + 8 : fore;
  const named = (colour) => colour === "d" || (typeof colour === "number" && colour < 16);
  return [
    named(bright) && bright !== null && `f${bright}`,
    named(back) && back !== null && `b${back}`,
    ...["bold", "dim", "italic", "underline", "strike", "conceal"].filter((name) => pen[name]),
    isCursor && "cursor",
    isOdd && (width === 2 ? "wide" : "odd"),
  ]
    .filter(Boolean)
    .join(" ");
}

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
