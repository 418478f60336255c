// Elements of the page. Text only ever becomes text: nothing here, or anywhere on this page, reads a string as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element with this id; it is there, since a test compares these ids with index.html. */
export function byId(id) {
  return document.getElementById(id);
}

/** Return a new element. attributes: `class`, `on...` (a listener), a property such as `disabled`, or an attribute. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child || child === 0));
  return node;
}

/** Return an icon of the sprite in index.html; it is decoration, and words stand beside it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Tell people who hear the page what changed. */
export function announce(text) {
  byId("announcements").textContent = text;
}
