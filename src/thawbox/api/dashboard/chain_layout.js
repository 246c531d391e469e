// Where snapshots stand in the chain graph. Pure: values in, positions out.
//
// A chain reads from left to right, base first. The first delta of a snapshot goes on in its lane, further ones begin
// lanes below. Areas are to scale: the side of a square is the root of its bytes. Chains are set side by side where
// there is room.

export const LARGEST = 64;
export const SMALLEST = 5;
const COLUMN = 148;
const GAP = 20;
const LABEL = 32;
const CHIP = 17;
export const CHIPS = 3;

/** Side, in pixels, of the square for so many bytes when the largest snapshot has `most`. */
export function side(bytes, most) {
  return Math.max(SMALLEST, LARGEST * Math.sqrt(bytes / Math.max(most, 1)));
}

/** `{nodes, edges, width, height, most}`; a node is `{snapshot, heads, left, x, y, side, top, isCut}` with its
 * centre in x, y and its label below `top`.
 *
 * `heads` of a snapshot are the sandboxes that go on from it. `width` is what is wanted; a longer chain takes more.
 */
export function layOut(snapshots, sandboxes, { width, column = COLUMN }) {
  const byId = new Map(snapshots.map((snapshot) => [snapshot.id, snapshot]));
  const children = new Map(snapshots.map((snapshot) => [snapshot.id, []]));
  const heads = new Map(snapshots.map((snapshot) => [snapshot.id, []]));
  for (const snapshot of snapshots) children.get(snapshot.parent)?.push(snapshot);
  for (const sandbox of sandboxes) heads.get(sandbox.parent_snapshot)?.push(sandbox);
  for (const list of children.values()) list.sort(older);
  const most = Math.max(...snapshots.map((snapshot) => snapshot.bytes), 1);
  const roots = snapshots.filter((snapshot) => !byId.has(snapshot.parent));
  // The largest first, the newest among equals: what is small finds room beside them.
  const trees = roots.map((root) => treeOf(root, { children, heads, most }));
  trees.sort((one, other) => other.nodes.length - one.nodes.length || other.newest.localeCompare(one.newest));
  return { ...shelve(trees, { width, column }), most };
}

function older(one, other) {
  return one.created_at.localeCompare(other.created_at) || one.id.localeCompare(other.id);
}

/** A chain and all that branches off it: nodes by lane and depth, without positions. */
function treeOf(root, { children, heads, most }) {
  const nodes = [];
  const lanes = [];
  let newest = "";
  const todo = [{ snapshot: root, depth: 0, lane: null, parent: null }];
  while (todo.length) {
    const { snapshot, depth, lane: given, parent } = todo.pop();
    const lane = given ?? lanes.push({ side: 0, chips: 0 }) - 1;
    const node = {
      snapshot,
      depth,
      lane,
      parent,
      heads: heads.get(snapshot.id),
      side: side(snapshot.bytes, most),
      isCut: Boolean(snapshot.parent) && parent === null,
    };
    nodes.push(node);
    lanes[lane].side = Math.max(lanes[lane].side, node.side);
    lanes[lane].chips = Math.max(lanes[lane].chips, Math.min(node.heads.length, CHIPS + 1));
    if (snapshot.created_at > newest) newest = snapshot.created_at;
    const [first, ...others] = children.get(snapshot.id);
    for (const other of others.reverse()) todo.push({ snapshot: other, depth: depth + 1, lane: null, parent: node });
    if (first) todo.push({ snapshot: first, depth: depth + 1, lane, parent: node }); // popped first: it keeps the lane
  }
  return { nodes, lanes, newest, depth: Math.max(...nodes.map((node) => node.depth)) + 1 };
}

/** Each tree goes as high as there is room for it, in columns. */
function shelve(trees, { width, column }) {
  const nodes = [];
  const edges = [];
  const columns = Math.max(1, Math.floor(width / column), ...trees.map((tree) => tree.depth));
  const filled = Array.from({ length: columns }, () => 0);
  let wide = 1;
  for (const tree of trees) {
    const { at, top } = placeFor(tree.depth, filled);
    const tops = [];
    let down = top;
    for (const lane of tree.lanes) {
      tops.push(down);
      down += lane.side + LABEL + lane.chips * CHIP + GAP / 2;
    }
    filled.fill(down + GAP, at, at + tree.depth);
    for (const node of tree.nodes) {
      node.left = (at + node.depth) * column;
      node.x = node.left + node.side / 2;
      node.y = tops[node.lane] + tree.lanes[node.lane].side / 2;
      node.top = tops[node.lane] + tree.lanes[node.lane].side;
      nodes.push(node);
      if (node.parent) edges.push({ from: node.parent, to: node });
    }
    wide = Math.max(wide, (at + tree.depth) * column);
  }
  return { nodes, edges, width: wide, height: Math.max(...filled, 1) };
}

function placeFor(depth, filled) {
  let best = { at: 0, top: Infinity };
  for (let at = 0; at + depth <= filled.length; at += 1) {
    const top = Math.max(...filled.slice(at, at + depth));
    if (top < best.top) best = { at, top };
  }
  return best;
}

/** Round sizes for the legend, largest first, that differ visibly and fit beneath `most`. */
export function legendSizes(most) {
  const found = [];
  for (let bytes = 1024; bytes <= most; bytes *= 4) found.push(bytes);
  return found
    .slice(-5)
    .reverse()
    .filter((_, index) => index % 2 === 0)
    .slice(0, 3);
}
