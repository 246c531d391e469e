// What a person can do to sandboxes, snapshots and pools: ask where it destroys something, do it, say what came of it.

import { call } from "./api.js";
import { count, milliseconds, short, size } from "./format.js";
import { known, outdated } from "./live.js";
import { ask, complain, notify } from "./overlays.js";

/** What is under way, by id of the sandbox or snapshot, or name of the pool: shown beside it. */
export const busy = new Map();

export const ALIVE = new Set(["creating", "running", "frozen"]);

let redraw = () => {};
export function whenBusy(draw) {
  redraw = draw;
}

/** Do one thing, marked as under way; whatever it fails with is shown. Resolves to its answer, or null. */
async function carryOut(subject, verb, act) {
  busy.set(subject, verb);
  redraw();
  try {
    return await act();
  } catch (problem) {
    complain(`${verb} failed`, problem);
    return null;
  } finally {
    busy.delete(subject);
    outdated("sandboxes", "snapshots", "pools");
    redraw();
  }
}

const sandboxPath = (sandbox, ...more) => ["sandboxes", sandbox.id, ...more];
const snapshotPath = (snapshot, ...more) => ["snapshots", snapshot.id, ...more];

export async function checkpoint(sandbox, wish = {}) {
  const made = await carryOut(sandbox.id, `Checkpoint of ${sandbox.name}`, () =>
    call("POST", sandboxPath(sandbox, "checkpoint"), { body: wish }),
  );
  if (!made) return;
  const told = made.skipped
    ? "nothing changed since the last one"
    : `${made.kind}, ${size(made.bytes)}, frozen for ${milliseconds(made.frozen_ms)}`;
  notify(`Checkpointed ${sandbox.name}`, `${told} · ${short(made.id)}`);
}

export async function checkpointAs(sandbox) {
  const wish = await ask({
    title: `Checkpoint ${sandbox.name}`,
    action: "Checkpoint",
    text: "Memory, open files and what was written become a snapshot. The program stands still for milliseconds.",
    fields: [
      { name: "name", label: "Name", hint: "optional; moves here if another snapshot has it" },
      {
        name: "mode",
        label: "Kind",
        options: [
          ["auto", "What is cheaper"],
          ["full", "Full"],
          ["delta", "Delta of the last one"],
        ],
      },
      { name: "pinned", label: "Pin", type: "checkbox", hint: "never removed by gc" },
      {
        name: "stop",
        label: "Stop the sandbox",
        type: "checkbox",
        hint: "it becomes suspended: no memory, no CPU, restorable",
      },
    ],
  });
  if (wish) await checkpoint(sandbox, { ...wish, name: wish.name || undefined });
}

export async function fork(sandbox) {
  const wish = await ask({
    title: `Fork ${sandbox.name}`,
    action: "Fork",
    text: "One checkpoint, then clones of it. Each goes on from this moment with an identity of its own.",
    fields: [
      { name: "count", label: "How many", type: "number", value: 1, min: 1, max: 64, required: true },
      { name: "name", label: "Name", hint: "optional; several are numbered" },
    ],
  });
  if (!wish) return;
  const made = await carryOut(sandbox.id, `Fork of ${sandbox.name}`, () =>
    call("POST", sandboxPath(sandbox, "fork"), { body: { count: wish.count, name: wish.name || undefined } }),
  );
  if (made) notify(`Forked ${sandbox.name}`, bornText(made.sandboxes));
}

function bornText(sandboxes) {
  const slowest = Math.max(...sandboxes.map((one) => one.ready_ms ?? one.restore_ms));
  return `${count(sandboxes.length, "clone")} ready within ${milliseconds(slowest)}: ${sandboxes
    .slice(0, 3)
    .map((one) => one.name)
    .join(", ")}${sandboxes.length > 3 ? "…" : ""}`;
}

export async function freeze(sandbox) {
  const done = await carryOut(sandbox.id, `Freezing ${sandbox.name}`, () =>
    call("POST", sandboxPath(sandbox, "freeze")),
  );
  if (done) notify(`Froze ${sandbox.name}`, "its memory is held, it uses no CPU");
}

export async function thaw(sandbox) {
  const done = await carryOut(sandbox.id, `Thawing ${sandbox.name}`, () => call("POST", sandboxPath(sandbox, "thaw")));
  if (done) notify(`Thawed ${sandbox.name}`);
}

export async function stop(sandbox) {
  const wish = await ask({
    title: `Stop ${sandbox.name}?`,
    action: "Stop",
    danger: true,
    text: `Its program ends, and what it has in memory is lost. ${snapshotsWord(sandbox)} Files, logs and snapshots stay.`,
    fields: [
      {
        name: "timeout",
        label: "Seconds between SIGTERM and SIGKILL",
        type: "number",
        value: 10,
        min: 0,
        required: true,
      },
    ],
  });
  if (!wish) return;
  const done = await carryOut(sandbox.id, `Stopping ${sandbox.name}`, () =>
    call("POST", sandboxPath(sandbox, "stop"), { body: { timeout: wish.timeout } }),
  );
  if (done) notify(`Stopped ${sandbox.name}`);
}

function snapshotsWord(sandbox) {
  return sandbox.parent_snapshot
    ? `It can be restored from ${short(sandbox.parent_snapshot)}.`
    : "It has no snapshot to be restored from.";
}

export async function remove(sandbox) {
  const isAlive = ALIVE.has(sandbox.state);
  const wish = await ask({
    title: `Remove ${sandbox.name}?`,
    action: "Remove",
    danger: true,
    text: `${isAlive ? `It is ${sandbox.state}: it is killed first. ` : ""}Its files and its log are deleted. Snapshots made of it stay.`,
  });
  if (!wish) return;
  const done = await carryOut(sandbox.id, `Removal of ${sandbox.name}`, async () => {
    await call("DELETE", sandboxPath(sandbox), { query: isAlive ? { force: true } : {} });
    return true;
  });
  if (done) notify(`Removed ${sandbox.name}`);
}

/** Bring a sandbox back from a snapshot; one that is alive is stopped first, after a question. */
export async function restore(sandbox, snapshot = sandbox.parent_snapshot) {
  const isAlive = ALIVE.has(sandbox.state);
  if (isAlive) {
    const wish = await ask({
      title: `Roll ${sandbox.name} back?`,
      action: "Roll back",
      danger: true,
      text: `It is killed and goes on as it was in snapshot ${short(snapshot)}. What it did since is lost.`,
    });
    if (!wish) return;
  }
  const done = await carryOut(sandbox.id, `Restore of ${sandbox.name}`, async () => {
    if (isAlive) await call("POST", sandboxPath(sandbox, "stop"), { body: { timeout: 0 } });
    return call("POST", ["snapshots", snapshot, "restore"], { body: {} });
  });
  if (done) notify(`Restored ${sandbox.name}`, `ready after ${milliseconds(done.ready_ms ?? done.restore_ms)}`);
}

export async function supervise(sandbox) {
  const wish = await ask({
    title: `Watch over ${sandbox.name}`,
    action: "Watch over",
    text: "When it dies it is restored from its newest good snapshot, under the same name and address. A first one is taken now.",
    fields: [
      {
        name: "restart",
        label: "Restore it",
        options: [
          ["on-failure", "When it fails"],
          ["always", "Whenever it ends"],
        ],
      },
      {
        name: "checkpoint_every",
        label: "Checkpoint every … seconds",
        type: "number",
        value: 30,
        min: 0,
        required: true,
        hint: "0: never by itself",
      },
    ],
  });
  if (!wish) return;
  const done = await carryOut(sandbox.id, `Supervision of ${sandbox.name}`, () =>
    call("PUT", sandboxPath(sandbox, "supervision"), { body: wish }),
  );
  if (done) notify(`Watching over ${sandbox.name}`);
}

export async function verify(snapshot) {
  const found = await carryOut(snapshot.id, `Verification of ${short(snapshot.id)}`, () =>
    call("POST", snapshotPath(snapshot, "verify"), { body: { deep: true } }),
  );
  if (!found) return;
  if (found.ok) notify(`Snapshot ${short(snapshot.id)} is whole`, "every stored byte is what its id says");
  else
    complain(`Snapshot ${short(snapshot.id)} is damaged`, {
      why: found.problems.map((one) => `${one.file}: ${one.cause}`).join("; "),
      remediation: "restore an older snapshot; pull this one again if it was pushed",
    });
}

export async function clone(snapshot) {
  const wish = await ask({
    title: `Clone ${titleOf(snapshot)}`,
    action: "Clone",
    text: "New sandboxes go on from this snapshot, each with an identity of its own.",
    fields: [
      { name: "count", label: "How many", type: "number", value: 1, min: 1, max: 64, required: true },
      { name: "name", label: "Name", hint: "optional; several are numbered" },
    ],
  });
  if (!wish) return;
  const made = await carryOut(snapshot.id, `Clone of ${titleOf(snapshot)}`, () =>
    call("POST", snapshotPath(snapshot, "clone"), { body: { count: wish.count, name: wish.name || undefined } }),
  );
  if (made) notify(`Cloned ${titleOf(snapshot)}`, bornText(made.sandboxes));
}

export async function flatten(snapshot) {
  const wish = await ask({
    title: `Flatten ${titleOf(snapshot)}`,
    action: "Flatten",
    text: "A full snapshot is made that restores as this one does, without its parents. The chain stays.",
    fields: [{ name: "name", label: "Name", hint: "optional" }],
  });
  if (!wish) return;
  const made = await carryOut(snapshot.id, `Flattening of ${titleOf(snapshot)}`, () =>
    call("POST", snapshotPath(snapshot, "flatten"), { body: { name: wish.name || undefined } }),
  );
  if (made) notify(`Flattened ${titleOf(snapshot)}`, `${short(made.id)}, ${size(made.bytes)}`);
}

export async function removeSnapshot(snapshot) {
  const dependants = known.snapshots.filter((one) => one.parent === snapshot.id).length;
  const wish = await ask({
    title: `Remove snapshot ${titleOf(snapshot)}?`,
    action: "Remove",
    danger: true,
    text: `It cannot be brought back.${dependants ? ` ${count(dependants, "snapshot is a delta", "snapshots are deltas")} of it.` : ""}`,
    fields: dependants ? [{ name: "cascade", label: "Also remove what depends on it", type: "checkbox" }] : [],
  });
  if (!wish) return;
  const done = await carryOut(snapshot.id, `Removal of ${titleOf(snapshot)}`, async () => {
    await call("DELETE", snapshotPath(snapshot), { query: wish.cascade ? { cascade: true } : {} });
    return true;
  });
  if (done) notify(`Removed snapshot ${titleOf(snapshot)}`);
}

export async function pin(snapshot) {
  const pinned = !snapshot.pinned;
  const done = await carryOut(snapshot.id, `${pinned ? "Pinning" : "Unpinning"} ${titleOf(snapshot)}`, () =>
    call("PATCH", snapshotPath(snapshot), { body: { pinned } }),
  );
  if (done) notify(`${pinned ? "Pinned" : "Unpinned"} ${titleOf(snapshot)}`);
}

export function titleOf(snapshot) {
  return snapshot.names?.[0] ?? short(snapshot.id);
}

export async function roll(pool) {
  const done = await carryOut(pool.name, `Rolling of pool ${pool.name}`, () =>
    call("POST", ["pools", pool.name, "roll"], { body: {} }),
  );
  if (done) notify(`Pool ${pool.name} is rolled`, "every parked clone is of the present template");
}

export async function drain(pool) {
  const wish = await ask({
    title: `Drain pool ${pool.name}?`,
    action: "Drain",
    danger: true,
    text: `${count(pool.parked, "parked clone is", "parked clones are")} destroyed and no new ones come. ${pool.leased ? `${count(pool.leased, "lease is", "leases are")} waited for.` : ""}`,
    fields: [
      {
        name: "timeout",
        label: "Seconds after which leases are ended",
        type: "number",
        value: 30,
        min: 0,
        required: true,
      },
    ],
  });
  if (!wish) return;
  const done = await carryOut(pool.name, `Draining of pool ${pool.name}`, () =>
    call("POST", ["pools", pool.name, "drain"], { body: { timeout: wish.timeout } }),
  );
  if (done) notify(`Pool ${pool.name} is drained`);
}
