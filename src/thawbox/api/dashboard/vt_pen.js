// What characters look like (SGR), and how wide they are.

/** Colours are `null` (the default), 0 to 255 (the palette) or `#rrggbb`. A pen is never changed, only replaced. */
export const PLAIN = Object.freeze({
  fore: null,
  back: null,
  bold: false,
  dim: false,
  italic: false,
  underline: false,
  inverse: false,
  conceal: false,
  strike: false,
});

const ON = {
  1: "bold",
  2: "dim",
  3: "italic",
  4: "underline",
  7: "inverse",
  8: "conceal",
  9: "strike",
  21: "underline",
};
const OFF = {
  22: ["bold", "dim"],
  23: ["italic"],
  24: ["underline"],
  27: ["inverse"],
  28: ["conceal"],
  29: ["strike"],
};

/** The pen after `CSI parameters m`. */
export function drawnWith(pen, parameters) {
  const next = { ...pen };
  for (let at = 0; at < parameters.length; at += 1) {
    const [code, ...more] = parameters[at];
    if (code === 0) Object.assign(next, PLAIN);
    else if (code === 4 && more.length) next.underline = more[0] !== 0;
    else if (ON[code]) next[ON[code]] = true;
    else if (OFF[code]) for (const name of OFF[code]) next[name] = false;
    else if (code === 38 || code === 48) {
      const name = code === 38 ? "fore" : "back";
      if (more.length)
        next[name] = colourOf(more.length > 4 ? [more[0], ...more.slice(2)] : more) ?? next[name]; // 38:2:SPACE:R:G:B
      else {
        const rest = parameters.slice(at + 1).map(([value]) => value);
        next[name] = colourOf(rest) ?? next[name];
        at += rest[0] === 5 ? 2 : rest[0] === 2 ? 4 : 1;
      }
    } else if (code >= 30 && code <= 37) next.fore = code - 30;
    else if (code >= 40 && code <= 47) next.back = code - 40;
    else if (code >= 90 && code <= 97) next.fore = code - 82;
    else if (code >= 100 && code <= 107) next.back = code - 92;
    else if (code === 39) next.fore = null;
    else if (code === 49) next.back = null;
  }
  return Object.freeze(next);
}

function colourOf([kind, ...values]) {
  if (kind === 5 && values.length >= 1) return Math.min(values[0], 255);
  if (kind === 2 && values.length >= 3)
    return `#${values
      .slice(0, 3)
      .map((value) => Math.min(value, 255).toString(16).padStart(2, "0"))
      .join("")}`;
  return undefined;
}

/** A colour of the 256 as CSS; the first 16 are the style sheet's. */
export function paletteColour(number) {
  if (number >= 232) {
    const grey = (number - 232) * 10 + 8;
    return `rgb(${grey}, ${grey}, ${grey})`;
  }
  const cube = number - 16;
  const level = (value) => (value ? value * 40 + 55 : 0);
  return `rgb(${level(Math.floor(cube / 36))}, ${level(Math.floor(cube / 6) % 6)}, ${level(cube % 6)})`;
}

const COMBINING = /^[\p{Mn}\p{Me}\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\u{e0100}-\u{e01ef}]$/u;
const WIDE = [
  [0x1100, 0x115f],
  [0x231a, 0x231b],
  [0x23e9, 0x23ec],
  [0x25fd, 0x25fe],
  [0x2614, 0x2615],
  [0x2648, 0x2653],
  [0x26a1, 0x26a1],
  [0x26bd, 0x26be],
  [0x26c4, 0x26c5],
  [0x26d4, 0x26d4],
  [0x26ea, 0x26ea],
  [0x26f2, 0x26f3],
  [0x26f5, 0x26f5],
  [0x26fa, 0x26fa],
  [0x26fd, 0x26fd],
  [0x2705, 0x2705],
  [0x270a, 0x270b],
  [0x2728, 0x2728],
  [0x274c, 0x274c],
  [0x274e, 0x274e],
  [0x2753, 0x2755],
  [0x2757, 0x2757],
  [0x2795, 0x2797],
  [0x27b0, 0x27b0],
  [0x2b1b, 0x2b1c],
  [0x2b50, 0x2b50],
  [0x2b55, 0x2b55],
  [0x2e80, 0x303e],
  [0x3041, 0x33ff],
  [0x3400, 0x4dbf],
  [0x4e00, 0x9fff],
  [0xa000, 0xa4cf],
  [0xa960, 0xa97f],
  [0xac00, 0xd7a3],
  [0xf900, 0xfaff],
  [0xfe30, 0xfe6f],
  [0xff01, 0xff60],
  [0xffe0, 0xffe6],
  [0x1f004, 0x1f004],
  [0x1f0cf, 0x1f0cf],
  [0x1f18e, 0x1f18e],
  [0x1f191, 0x1f19a],
  [0x1f200, 0x1f265],
  [0x1f300, 0x1f320],
  [0x1f32d, 0x1f335],
  [0x1f337, 0x1f37c],
  [0x1f37e, 0x1f393],
  [0x1f3a0, 0x1f3ca],
  [0x1f3cf, 0x1f3d3],
  [0x1f3e0, 0x1f3f0],
  [0x1f3f4, 0x1f3f4],
  [0x1f3f8, 0x1f43e],
  [0x1f440, 0x1f440],
  [0x1f442, 0x1f4fc],
  [0x1f4ff, 0x1f53d],
  [0x1f54b, 0x1f54e],
  [0x1f550, 0x1f567],
  [0x1f57a, 0x1f57a],
  [0x1f595, 0x1f596],
  [0x1f5a4, 0x1f5a4],
  [0x1f5fb, 0x1f64f],
  [0x1f680, 0x1f6c5],
  [0x1f6cc, 0x1f6cc],
  [0x1f6d0, 0x1f6d2],
  [0x1f6d5, 0x1f6d7],
  [0x1f6dc, 0x1f6df],
  [0x1f6eb, 0x1f6ec],
  [0x1f6f4, 0x1f6fc],
  [0x1f7e0, 0x1f7eb],
  [0x1f7f0, 0x1f7f0],
  [0x1f90c, 0x1f93a],
  [0x1f93c, 0x1f945],
  [0x1f947, 0x1f9ff],
  [0x1fa70, 0x1faff],
  [0x20000, 0x3fffd],
];

/** Columns that a character takes: 0 (it goes with the one before), 1 or 2 (East Asian Width W and F, UAX 11). */
export function widthOf(char) {
  const code = char.codePointAt(0);
  if (code < 0x300) return 1;
  if (COMBINING.test(char)) return 0;
  return WIDE.some(([from, to]) => code >= from && code <= to) ? 2 : 1;
}
