// The screen of a terminal: cells, a cursor, a scroll region, what has scrolled away. No DOM, no sockets.
//
// Rule 1: rows and columns are counted from 0 here, from 1 by programs.
// Rule 2: the cursor may stand behind the last column (`#wraps`): the next character goes to the next line.

import { Line } from "./vt_line.js";
import { Parser } from "./vt_parser.js";
import { PLAIN, drawnWith, widthOf } from "./vt_pen.js";

const MOST_SCROLLED = 2000;
const TAB = 8;
const LINE_DRAWING = "◆▒␉␌␍␊°±␤␋┘┐┌└┼⎺⎻─⎼⎽├┤┴┬│≤≥π≠£·";

export class Screen {
  #parser = new Parser(this);
  #saved = null;
  #other = null;
  #wraps = false;
  #last = "";
  #charsets = ["B", "B"];
  #shift = 0;

  constructor({ columns, rows, reply = () => {}, told = () => {} }) {
    Object.assign(this, { columns, rows, reply, told, title: "" });
    this.scrolled = [];
    this.dropped = 0;
    this.#reset();
  }

  #reset() {
    this.pen = PLAIN;
    this.modes = {
      autowrap: true,
      cursor: true,
      applicationCursor: false,
      bracketedPaste: false,
      insert: false,
      origin: false,
      newline: false,
    };
    this.isAlternate = false;
    this.#other = null;
    this.#saved = null;
    this.#charsets = ["B", "B"];
    this.#shift = 0;
    this.lines = Array.from({ length: this.rows }, () => this.#blank());
    this.row = this.column = 0;
    this.#wraps = false;
    this.top = 0;
    this.bottom = this.rows - 1;
    this.#setTabs();
  }

  #setTabs() {
    this.tabs = new Set(Array.from({ length: Math.ceil(1000 / TAB) }, (_, index) => index * TAB));
  }

  /** What a program wrote: bytes in UTF-8, or text. */
  write(data) {
    this.#parser.write(data);
  }

  /** The screen as text, without blanks at the ends of lines. */
  text() {
    return this.lines
      .map((line) => line.text)
      .join("\n")
      .trimEnd();
  }

  resize(columns, rows) {
    if (columns === this.columns && rows === this.rows) return;
    const fit = (lines, cursor) => {
      for (const line of lines) line.fit(columns);
      let above = 0;
      while (lines.length > rows) {
        if (lines.length - 1 > cursor - above && lines.at(-1).text === "") lines.pop();
        else {
          const [gone] = lines.splice(0, 1);
          above += 1;
          if (lines === this.lines && !this.isAlternate) this.#keep(gone);
        }
      }
      while (lines.length < rows) lines.push(new Line(columns));
      return above;
    };
    const above = fit(this.lines, this.row);
    if (this.#other) {
      const gone = fit(this.#other.lines, this.#other.row);
      this.#other.row = clamp(this.#other.row - gone, 0, rows - 1);
      this.#other.column = Math.min(this.#other.column, columns - 1);
    }
    Object.assign(this, { columns, rows, top: 0, bottom: rows - 1 });
    this.row = clamp(this.row - above, 0, rows - 1);
    this.column = Math.min(this.column, columns - 1);
    this.#wraps = false;
  }

  // --- what the parser tells ------------------------------------------------------------------------------------

  print(text) {
    for (const char of text) {
      const drawn =
        this.#charsets[this.#shift] === "0" && char >= "`" && char <= "~"
          ? LINE_DRAWING[char.charCodeAt(0) - 96]
          : char;
      this.#put(drawn, Math.min(widthOf(drawn), this.columns));
    }
  }

  #put(char, width) {
    if (width === 0) {
      this.#combine(char);
      return;
    }
    if (this.modes.autowrap && (this.#wraps || this.column + width > this.columns)) {
      this.column = 0;
      this.#lineFeed();
    }
    this.#wraps = false;
    this.column = Math.min(this.column, this.columns - width);
    const line = this.lines[this.row];
    if (this.modes.insert) line.insert(this.column, width, this.pen);
    line.put(this.column, char, width, this.pen);
    this.#last = char;
    this.column += width;
    if (this.column >= this.columns) {
      this.column = this.columns - 1;
      this.#wraps = this.modes.autowrap;
    }
  }

  #combine(mark) {
    const column = this.#wraps ? this.column : this.column - 1;
    if (column >= 0) this.#last = this.lines[this.row].combine(column, mark);
  }

  control(code) {
    this.#last = "";
    if (code === 0x08) {
      this.column = Math.max(0, this.column - 1);
      this.#wraps = false;
    } else if (code === 0x09) this.#tab(1);
    else if (code === 0x0a || code === 0x0b || code === 0x0c) {
      this.#lineFeed();
      if (this.modes.newline) this.column = 0;
    } else if (code === 0x0d) {
      this.column = 0;
      this.#wraps = false;
    } else if (code === 0x0e || code === 0x0f) this.#shift = code === 0x0e ? 1 : 0;
    else if (code === 0x07) this.told("bell");
  }

  escape(intermediates, final) {
    this.#last = "";
    if (intermediates === "(" || intermediates === ")") this.#charsets[intermediates === "(" ? 0 : 1] = final;
    else if (intermediates === "#" && final === "8") this.#fillWithE();
    else if (intermediates !== "") return;
    else if (final === "7") this.#save();
    else if (final === "8") this.#recall();
    else if (final === "D") this.#lineFeed();
    else if (final === "E") {
      this.column = 0;
      this.#lineFeed();
    } else if (final === "M") this.#reverseLineFeed();
    else if (final === "H") this.tabs.add(this.column);
    else if (final === "c") {
      this.#reset();
      this.scrolled = [];
    }
  }

  command(text) {
    const [number, ...rest] = text.split(";");
    if (number === "0" || number === "2") {
      this.title = rest.join(";");
      this.told("title");
    }
  }

  csi(prefix, parameters, intermediates, final) {
    const before = this.#last;
    this.#last = "";
    const first = parameters[0][0];
    const many = Math.max(first, 1);
    const second = parameters[1]?.[0] ?? 0;
    if (prefix === "?") {
      this.#privately(final, parameters);
      return;
    }
    if (prefix === ">" && final === "c") {
      this.reply("\x1b[>0;0;0c");
      return;
    }
    if (intermediates === "!" && final === "p") {
      this.#softReset();
      return;
    }
    if (prefix !== "" || intermediates !== "") return;
    const acts = {
      A: () => this.#moveBy(-many),
      B: () => this.#moveBy(many),
      e: () => this.#moveBy(many),
      C: () => this.#moveTo(this.row, this.column + many),
      a: () => this.#moveTo(this.row, this.column + many),
      D: () => this.#moveTo(this.row, this.column - many),
      E: () => this.#moveBy(many, 0),
      F: () => this.#moveBy(-many, 0),
      G: () => this.#moveTo(this.row, many - 1),
      "`": () => this.#moveTo(this.row, many - 1),
      d: () => this.#moveTo(this.#originRow() + many - 1, this.column),
      H: () => this.#moveTo(this.#originRow() + many - 1, Math.max(second, 1) - 1),
      f: () => this.#moveTo(this.#originRow() + many - 1, Math.max(second, 1) - 1),
      J: () => this.#eraseDisplay(first),
      K: () => this.#eraseLine(first),
      X: () => {
        this.#erase(this.row, this.column, this.column + many);
        this.#wraps = false;
      },
      L: () => this.#insertLines(many),
      M: () => this.#deleteLines(many),
      P: () => this.#shiftCells("remove", many),
      "@": () => this.#shiftCells("insert", many),
      S: () => this.#scroll(many),
      T: () => this.#scroll(-many),
      I: () => this.#tab(many),
      Z: () => this.#tab(-many),
      b: () => this.print(before.repeat(Math.min(many, this.columns * this.rows))),
      g: () => {
        if (first === 3) this.tabs.clear();
        else if (first === 0) this.tabs.delete(this.column);
      },
      m: () => {
        this.pen = drawnWith(this.pen, parameters);
      },
      r: () => this.#setRegion(many - 1, (second || this.rows) - 1),
      s: () => this.#save(),
      u: () => this.#recall(),
      h: () => this.#ansiMode(parameters, true),
      l: () => this.#ansiMode(parameters, false),
      n: () => {
        if (first === 5) this.reply("\x1b[0n");
        else if (first === 6) this.reply(`\x1b[${this.row - this.#originRow() + 1};${this.column + 1}R`);
      },
      c: () => {
        if (first === 0) this.reply("\x1b[?1;2c");
      },
    };
    acts[final]?.();
  }

  // --- the cursor -----------------------------------------------------------------------------------------------

  #originRow() {
    return this.modes.origin ? this.top : 0;
  }

  #moveTo(row, column) {
    const [low, high] = this.modes.origin ? [this.top, this.bottom] : [0, this.rows - 1];
    this.row = clamp(row, low, high);
    this.column = clamp(column, 0, this.columns - 1);
    this.#wraps = false;
  }

  /** Up or down; a margin of the scroll region is in the way only for a cursor that has it ahead. */
  #moveBy(rows, column = this.column) {
    const low = this.row >= this.top ? this.top : 0;
    const high = this.row <= this.bottom ? this.bottom : this.rows - 1;
    this.row = clamp(this.row + rows, low, high);
    this.column = column;
    this.#wraps = false;
  }

  #tab(times) {
    for (let left = Math.min(Math.abs(times), this.columns); left > 0; left -= 1) {
      let column = this.column;
      do column += Math.sign(times);
      while (column > 0 && column < this.columns - 1 && !this.tabs.has(column));
      this.column = clamp(column, 0, this.columns - 1);
    }
    if (times < 0) this.#wraps = false;
  }

  #save() {
    this.#saved = {
      row: this.row,
      column: this.column,
      pen: this.pen,
      origin: this.modes.origin,
      charsets: [...this.#charsets],
      shift: this.#shift,
      wraps: this.#wraps,
    };
  }

  #recall() {
    const saved = this.#saved ?? {
      row: 0,
      column: 0,
      pen: PLAIN,
      origin: false,
      charsets: ["B", "B"],
      shift: 0,
      wraps: false,
    };
    this.row = clamp(saved.row, 0, this.rows - 1);
    this.column = clamp(saved.column, 0, this.columns - 1);
    this.pen = saved.pen;
    this.modes.origin = saved.origin;
    this.#charsets = [...saved.charsets];
    this.#shift = saved.shift;
    this.#wraps = saved.wraps && this.column === this.columns - 1;
  }

  // --- scrolling ------------------------------------------------------------------------------------------------

  #setRegion(top, bottom) {
    const low = Math.min(bottom, this.rows - 1);
    if (top >= low) return;
    this.top = top;
    this.bottom = low;
    this.#moveTo(this.#originRow(), 0);
  }

  #lineFeed() {
    this.#wraps = false;
    if (this.row === this.bottom) this.#scroll(1);
    else if (this.row < this.rows - 1) this.row += 1;
  }

  #reverseLineFeed() {
    this.#wraps = false;
    if (this.row === this.top) this.#scroll(-1);
    else if (this.row > 0) this.row -= 1;
  }

  /** Up for a positive number. What leaves a whole, ordinary screen at its top is kept. */
  #scroll(lines, top = this.top) {
    const height = this.bottom - top + 1;
    for (let left = Math.min(Math.abs(lines), height); left > 0; left -= 1) {
      if (lines > 0) {
        const [gone] = this.lines.splice(top, 1);
        if (top === 0 && !this.isAlternate) this.#keep(gone);
        this.lines.splice(this.bottom, 0, this.#blank());
      } else {
        this.lines.splice(this.bottom, 1);
        this.lines.splice(top, 0, this.#blank());
      }
    }
  }

  #keep(line) {
    this.scrolled.push(line);
    if (this.scrolled.length > MOST_SCROLLED) {
      this.scrolled.shift();
      this.dropped += 1;
    }
  }

  #insertLines(many) {
    if (this.row < this.top || this.row > this.bottom) return;
    this.#scroll(-many, this.row);
    this.column = 0;
    this.#wraps = false;
  }

  #deleteLines(many) {
    if (this.row < this.top || this.row > this.bottom) return;
    const kept = this.scrolled.length;
    this.#scroll(many, this.row);
    if (this.row === 0 && !this.isAlternate) this.scrolled.length = Math.min(kept, this.scrolled.length); // deleted, not scrolled away
    this.column = 0;
    this.#wraps = false;
  }

  // --- erasing, inserting, deleting -----------------------------------------------------------------------------

  #blank() {
    return new Line(this.columns, this.#eraser());
  }

  /** What is erased takes the present background, and nothing else of the pen. */
  #eraser() {
    return this.pen.back === null ? PLAIN : Object.freeze({ ...PLAIN, back: this.pen.back });
  }

  #erase(row, from, to) {
    this.lines[row].erase(from, to, this.#eraser());
  }

  #eraseLine(what) {
    const [from, to] = { 0: [this.column, this.columns], 1: [0, this.column + 1], 2: [0, this.columns] }[what] ?? [
      0, 0,
    ];
    if (to) this.#erase(this.row, from, to);
  }

  #eraseDisplay(what) {
    if (what === 3) {
      this.scrolled = [];
      return;
    }
    if (what > 2) return;
    if (what !== 2) this.#eraseLine(what);
    const [from, to] = { 0: [this.row + 1, this.rows], 1: [0, this.row], 2: [0, this.rows] }[what];
    for (let row = from; row < to; row += 1) this.#erase(row, 0, this.columns);
  }

  #shiftCells(how, many) {
    this.lines[this.row][how](this.column, many, this.#eraser());
    this.#wraps = false;
  }

  #fillWithE() {
    this.lines = this.lines.map(() => new Line(this.columns, PLAIN, "E"));
    this.#moveTo(0, 0);
  }

  // --- modes ----------------------------------------------------------------------------------------------------

  #ansiMode(parameters, isOn) {
    for (const [mode] of parameters) {
      if (mode === 4) this.modes.insert = isOn;
      else if (mode === 20) this.modes.newline = isOn;
    }
  }

  #privately(final, parameters) {
    if (final === "J" || final === "K") {
      // selective erase: nothing here is protected
      if (final === "J") this.#eraseDisplay(parameters[0][0]);
      else this.#eraseLine(parameters[0][0]);
      return;
    }
    if (final !== "h" && final !== "l") return;
    const isOn = final === "h";
    for (const [mode] of parameters) {
      if (mode === 1) this.modes.applicationCursor = isOn;
      else if (mode === 6) {
        this.modes.origin = isOn;
        this.#moveTo(this.#originRow(), 0);
      } else if (mode === 7) {
        this.modes.autowrap = isOn;
        this.#wraps = false;
      } else if (mode === 25) this.modes.cursor = isOn;
      else if (mode === 2004) this.modes.bracketedPaste = isOn;
      else if (mode === 1048) {
        if (isOn) this.#save();
        else this.#recall();
      } else if (mode === 47 || mode === 1047 || mode === 1049) this.#alternate(isOn, { saves: mode === 1049 });
    }
  }

  #alternate(isOn, { saves }) {
    if (isOn && saves && !this.isAlternate) this.#save();
    if (isOn !== this.isAlternate) {
      const mine = { lines: this.lines, row: this.row, column: this.column, saved: this.#saved };
      this.lines = isOn ? Array.from({ length: this.rows }, () => this.#blank()) : this.#other.lines;
      this.#saved = isOn ? null : this.#other.saved; // each screen has its own
      this.#other = isOn ? mine : null;
      this.isAlternate = isOn;
    }
    if (!isOn && saves) this.#recall();
  }

  #softReset() {
    this.modes = {
      ...this.modes,
      cursor: true,
      autowrap: true,
      insert: false,
      origin: false,
      applicationCursor: false,
    };
    this.pen = PLAIN;
    this.top = 0;
    this.bottom = this.rows - 1;
    this.#saved = null;
    this.#charsets = ["B", "B"];
    this.#shift = 0;
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
