// Splits what a program writes to its terminal into text and control functions (ECMA-48, as xterm reads it).
//
// A state machine after Paul Williams' (vt100.net/emu/dec_ansi_parser). It owns no screen: `screen` is told
// `print(text)`, `control(byte)`, `escape(intermediates, final)`, `csi(prefix, parameters, intermediates, final)`,
// `command(text)` (OSC). Sequences may be cut anywhere between two writes; what is malformed vanishes.

const LONGEST_STRING = 4096;
const MOST_PARAMETERS = 32;

export class Parser {
  #decoder = new TextDecoder("utf-8");
  #state = "ground";
  #collected = "";
  #prefix = "";
  #intermediates = "";

  constructor(screen) {
    this.screen = screen;
  }

  /** Bytes, in UTF-8, or text. */
  write(data) {
    const text = typeof data === "string" ? data : this.#decoder.decode(data, { stream: true });
    for (let at = 0; at < text.length;) {
      if (this.#state === "ground") {
        let end = at;
        while (end < text.length && isPrintable(text.charCodeAt(end))) end += 1;
        if (end > at) {
          this.screen.print(text.slice(at, end));
          at = end;
          continue;
        }
      }
      this.#step(text[at], text.charCodeAt(at));
      at += 1;
    }
  }

  #step(char, code) {
    if (code === 0x18 || code === 0x1a) {
      this.#state = "ground";
      return;
    } // CAN, SUB
    if (code === 0x1b) {
      // ESC begins anew from anywhere; it also is the first half of what ends a string
      this.#finishString();
      this.#begin("escape");
      return;
    }
    if (this.#state === "osc" || this.#state === "ignored-string") {
      this.#string(char, code);
      return;
    }
    if (code < 0x20) {
      this.screen.control(code);
      return;
    }
    if (code === 0x7f || (code >= 0x80 && code < 0xa0)) return; // DEL; 8-bit controls are not UTF-8's
    if (this.#state === "escape") this.#escape(char, code);
    else if (this.#state === "csi") this.#csi(char, code);
    else if (this.#state === "csi-ignored") {
      if (code >= 0x40) this.#state = "ground";
    } else this.screen.print(char);
  }

  #begin(state) {
    this.#state = state;
    this.#collected = this.#prefix = this.#intermediates = "";
  }

  #escape(char, code) {
    if (code < 0x30) {
      this.#intermediates += char;
      return;
    }
    if (this.#intermediates === "") {
      if (char === "[") {
        this.#begin("csi");
        return;
      }
      if (char === "]") {
        this.#begin("osc");
        return;
      }
      if ("PX^_".includes(char)) {
        this.#begin("ignored-string");
        return;
      }
    }
    this.#state = "ground";
    if (code < 0x7f) this.screen.escape(this.#intermediates, char);
  }

  #csi(char, code) {
    if (code >= 0x40) {
      this.#state = "ground";
      if (code < 0x7f) this.screen.csi(this.#prefix, parametersOf(this.#collected), this.#intermediates, char);
    } else if (code >= 0x3c && this.#collected === "" && this.#intermediates === "" && this.#prefix === "")
      this.#prefix = char;
    else if (code >= 0x30 && code <= 0x3b && this.#intermediates === "")
      this.#collected = (this.#collected + char).slice(0, LONGEST_STRING);
    else if (code < 0x30) this.#intermediates += char;
    else this.#state = "csi-ignored";
  }

  #string(char, code) {
    if (code === 0x07) {
      this.#finishString();
      this.#state = "ground";
    } else if (code >= 0x20 && this.#collected.length < LONGEST_STRING) this.#collected += char;
  }

  #finishString() {
    if (this.#state === "osc") this.screen.command(this.#collected);
  }
}

function isPrintable(code) {
  return code >= 0x20 && code !== 0x7f && !(code >= 0x80 && code < 0xa0);
}

/** `38;2:1:2:3` as [[38], [2, 1, 2, 3]]; what is left out is 0. */
function parametersOf(text) {
  return text
    .split(";")
    .slice(0, MOST_PARAMETERS)
    .map((part) => part.split(":").map((number) => Math.min(Number.parseInt(number, 10) || 0, 65535)));
}
