// Requests to the service. What it reports as a problem is thrown as a Problem, with cause and remediation.

const KEY = "thawbox.token";
const PAGE = 1000;

/** RFC 9457, as the service writes it; also for what never got there. */
export class Problem extends Error {
  constructor({ status = 0, code = "", cause = "", remediation = "", log = "" }) {
    super(cause);
    Object.assign(this, { status, code, why: cause, remediation, log });
  }
}

export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** Kept for this tab alone and until it closes; an empty one is forgotten. */
export function keepToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export function authorization() {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

/** What the service answers, as an object; `null` for an empty answer. Throws Problem. */
export async function call(method, path, { body, query, signal } = {}) {
  const response = await send(method, target(path, query), {
    signal,
    headers: {
      Accept: "application/json",
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(method === "POST" ? { "Idempotency-Key": idempotencyKey() } : {}),
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** Every item of a paginated list. */
export async function list(path, name, query = {}) {
  const found = [];
  let cursor = null;
  do {
    const page = await call("GET", path, { query: { ...query, limit: PAGE, ...(cursor ? { cursor } : {}) } });
    found.push(...page[name]);
    cursor = page.next ?? null;
  } while (cursor);
  return found;
}

/** A response whose body is to be read as it comes. Throws Problem. */
export async function send(method, address, { headers = {}, ...options } = {}) {
  let response;
  try {
    response = await fetch(address, {
      method,
      headers: { ...authorization(), ...headers },
      cache: "no-store",
      ...options,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      code: "unreachable",
      cause: "the node does not answer",
      remediation: "the page reconnects by itself; see whether `thawbox serve` runs",
    });
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  const text = await response.text();
  try {
    const told = JSON.parse(text);
    return new Problem({ ...told, status: response.status, cause: told.cause ?? told.detail ?? told.title });
  } catch {
    return new Problem({
      status: response.status,
      code: `http.${response.status}`,
      cause: response.statusText || text,
    });
  }
}

export function target(path, query = {}) {
  const written = path.map((part) => encodeURIComponent(part)).join("/");
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== ""));
  return `/v1/${written}${asked.size ? `?${asked}` : ""}`;
}

/** crypto.randomUUID exists only where the page came by TLS or from this machine; this exists everywhere. */
function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
