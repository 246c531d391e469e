// A line of the screen: its cells, and a number that changes whenever they do.
//
// A cell is `{char, pen}`. A wide character takes two: the second has an empty `char`. A half that is overwritten,
// erased or pushed out takes the other half along.

import { PLAIN, widthOf } from "./vt_pen.js";

let changes = 0;

export class Line {
  constructor(columns, pen = PLAIN, char = " ") {
    this.cells = Array.from({ length: columns }, () => ({ char, pen }));
    this.version = changes += 1;
  }

  /** As text, without blanks at the end. */
  get text() {
    return this.cells
      .map((cell) => cell.char)
      .join("")
      .trimEnd();
  }

  /** Write a character of so many columns. */
  put(column, char, width, pen) {
    this.#split(column);
    this.#split(column + width);
    this.cells[column] = { char, pen };
    if (width === 2) this.cells[column + 1] = { char: "", pen };
    this.#touch();
  }

  /** Add a combining mark to the character at or before a column; returns what stands there now. */
  combine(column, mark) {
    const at = column > 0 && this.cells[column].char === "" ? column - 1 : column;
    const { char, pen } = this.cells[at];
    this.cells[at] = { char: (char + mark).slice(0, LONGEST_CLUSTER), pen };
    this.#touch();
    return this.cells[at].char;
  }

  erase(from, to, pen) {
    const end = Math.min(to, this.cells.length);
    this.#split(from);
    this.#split(end);
    for (let column = from; column < end; column += 1) this.cells[column] = { char: " ", pen };
    this.#touch();
  }

  /** Blanks in, the rest to the right; what leaves the line is gone. */
  insert(column, number, pen) {
    const columns = this.cells.length;
    const blanks = Array.from({ length: Math.min(number, columns - column) }, () => ({ char: " ", pen }));
    this.#split(column);
    this.cells.splice(column, 0, ...blanks);
    this.fit(columns, pen);
  }

  /** Cells out, the rest to the left, blanks from the right. */
  remove(column, number, pen) {
    const columns = this.cells.length;
    const end = Math.min(column + number, columns);
    this.#split(column);
    this.#split(end);
    this.cells.splice(column, end - column);
    this.fit(columns, pen);
  }

  /** Make it so long. */
  fit(columns, pen = PLAIN) {
    if (this.cells.length > columns) this.cells.length = columns;
    while (this.cells.length < columns) this.cells.push({ char: " ", pen });
    const last = this.cells[columns - 1];
    if (last.char && widthOf(last.char) === 2) this.cells[columns - 1] = { char: " ", pen: last.pen };
    this.#touch();
  }

  #split(at) {
    if (at <= 0 || at >= this.cells.length || this.cells[at].char !== "") return;
    for (const half of [at - 1, at]) this.cells[half] = { char: " ", pen: this.cells[half].pen };
  }

  #touch() {
    this.version = changes += 1;
  }
}

const LONGEST_CLUSTER = 16;
