// Sizes, spans and moments as a person reads them; the same words as the command line's.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** `64.0 MiB`; `–` for what is not known. */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${UNITS[unit]}`;
}

/** Seconds in their largest fitting unit: `42s`, `7m`, `3h`, `12d`. */
export function span(seconds) {
  const positive = Math.max(0, seconds);
  for (const [limit, unit, length] of [
    [120, "s", 1],
    [7200, "m", 60],
    [172800, "h", 3600],
  ]) {
    if (positive < limit) return `${Math.floor(positive / length)}${unit}`;
  }
  return `${Math.floor(positive / 86400)}d`;
}

/** How long ago a moment (RFC 3339, or seconds since 1970) was. */
export function age(moment, now = Date.now()) {
  const at = instant(moment);
  return Number.isNaN(at) ? "–" : span((now - at) / 1000);
}

/** A moment in milliseconds since 1970. */
export function instant(moment) {
  if (typeof moment === "number") return moment * 1000;
  return Date.parse(moment ?? "");
}

/** `14:03:22` of the reader's day. */
export function clock(moment) {
  const at = new Date(typeof moment === "number" ? moment : instant(moment));
  return Number.isNaN(at.getTime()) ? "–" : at.toLocaleTimeString("en-GB", { hour12: false });
}

/** `27 Nov, 14:03:22`. */
export function moment(value) {
  const at = new Date(instant(value));
  if (Number.isNaN(at.getTime())) return "–";
  return `${at.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(at.getTime())}`;
}

/** Milliseconds with as many digits as mean something. */
export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

/** The first digits of a digest: enough to tell snapshots apart, and taken by every command. */
export function short(id) {
  return (id ?? "").slice(0, 12);
}

/** `1 sandbox`, `3 sandboxes`. */
export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** The value below which the share `q` of the sorted values lies. */
export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}
