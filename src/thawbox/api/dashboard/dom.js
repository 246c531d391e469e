// The page as a function of what is known: views return nodes as values, `render` changes only what differs.
//
// Rule 1: text gets into the page as text nodes and attribute values; nothing is ever parsed as HTML.
// Rule 2: a node that stays is not moved, so focus, selection and scroll survive every update.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "indeterminate"]);

/** A node: `h("button", {class: "x", onclick: act, key: id}, "text", other)`. `null` and `false` are left out. */
export function h(tag, attributes, ...children) {
  const { key, ...rest } = attributes ?? {};
  return { tag, key, attributes: rest, children: flat(children) };
}

function flat(children) {
  return children
    .flat(Infinity)
    .filter((child) => child !== null && child !== undefined && child !== false && child !== "")
    .map((child) => (typeof child === "object" ? child : String(child)));
}

/** Make the children of `parent` be these. */
export function render(parent, ...children) {
  reconcile(parent, flat(children), parent.namespaceURI === SVG);
}

/** A new DOM node for a value; a DOM node given as a child is taken as it is. */
function create(node, inSvg) {
  if (typeof node === "string") return document.createTextNode(node);
  if (node instanceof Node) return node;
  const isSvg = inSvg || node.tag === "svg";
  const element = isSvg ? document.createElementNS(SVG, node.tag) : document.createElement(node.tag);
  element.thawbox = { key: node.key, attributes: {}, listeners: {} };
  reconcile(element, node.children, isSvg);
  update(element, node.attributes);
  node.attributes.mounted?.(element);
  return element;
}

function isSame(element, node) {
  if (typeof node === "string") return element.nodeType === Node.TEXT_NODE;
  if (node instanceof Node) return element === node;
  return element.thawbox?.key === node.key && element.thawbox !== undefined && element.localName === node.tag;
}

function reconcile(parent, children, inSvg) {
  const keyed = new Map();
  for (const element of parent.childNodes) {
    if (element.thawbox?.key !== undefined) keyed.set(element.thawbox.key, element);
  }
  const left = [...parent.childNodes].filter((element) => element.thawbox?.key === undefined);
  const taken = children.map((node) => take(node, keyed, left));
  const kept = new Set(taken);
  for (const element of [...parent.childNodes]) if (!kept.has(element)) element.remove();
  let next = parent.firstChild;
  children.forEach((node, index) => {
    const element = taken[index] ?? create(node, inSvg);
    if (element === next) next = next.nextSibling;
    else parent.insertBefore(element, next);
    if (taken[index]) change(element, node, inSvg);
  });
}

function take(node, keyed, left) {
  if (node.key !== undefined) {
    const found = keyed.get(node.key);
    return found && isSame(found, node) ? found : undefined;
  }
  const index = left.findIndex((element) => isSame(element, node));
  return index < 0 ? undefined : left.splice(0, index + 1).at(-1);
}

function change(element, node, inSvg) {
  if (typeof node === "string") {
    if (element.data !== node) element.data = node;
  } else if (!(node instanceof Node)) {
    reconcile(element, node.children, inSvg || node.tag === "svg");
    update(element, node.attributes);
  }
}

function update(element, attributes) {
  const before = element.thawbox.attributes;
  for (const name of Object.keys(before)) if (!(name in attributes)) set(element, name, undefined);
  for (const [name, value] of Object.entries(attributes)) {
    if (before[name] !== value || PROPERTIES.has(name)) set(element, name, value);
  }
  element.thawbox.attributes = attributes;
}

function set(element, name, value) {
  if (name === "mounted") return;
  if (name.startsWith("on")) listen(element, name.slice(2), value);
  else if (name === "style") restyle(element, value ?? {});
  else if (PROPERTIES.has(name)) {
    if (element[name] !== (value ?? "")) element[name] = value ?? "";
  } else if (value === undefined || value === null || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}

function listen(element, type, act) {
  const { listeners } = element.thawbox;
  if (!(type in listeners)) element.addEventListener(type, (event) => element.thawbox.listeners[type]?.(event));
  listeners[type] = act;
}

/** By the style object, which the content security policy allows, and never by a style attribute, which it does not. */
function restyle(element, style) {
  for (const name of element.thawbox.styles ?? []) if (!(name in style)) element.style.removeProperty(name);
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.thawbox.styles = Object.keys(style);
}
