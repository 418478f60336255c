// MODEL_CARD.md as elements: headings, lists, tables, bold and code, which is all that a card has. Never as HTML.

import { element } from "./dom.js";

/** Return the text of a card as a block of the page. */
export function cardText(text) {
  const blocks = text.trim().split(/\n\s*\n/);
  return element("div", { class: "card-text" }, blocks.map(block));
}

function block(text) {
  const lines = text.split("\n");
  if (/^#+ /.test(lines[0]))
    return [
      element("h4", {}, inline(lines[0].replace(/^#+ /, ""))),
      lines.length > 1 ? block(lines.slice(1).join("\n")) : "",
    ];
  if (lines[0].startsWith("|")) return table(lines);
  if (lines[0].startsWith("- ")) return list(lines);
  return element("p", {}, inline(lines.join(" ")));
}

function list(lines) {
  const items = [];
  for (const line of lines) {
    if (line.startsWith("- ")) items.push(line.slice(2));
    else items[items.length - 1] += ` ${line.trim()}`;
  }
  return element(
    "ul",
    { class: "bullets" },
    items.map((text) => element("li", {}, inline(text))),
  );
}

function table(lines) {
  const cells = (line) =>
    line
      .replace(/^\||\|$/g, "")
      .split(/(?<!\\)\|/)
      .map((text) => text.trim());
  const [head, , ...rows] = lines;
  return element(
    "div",
    { class: "table-scroll", tabIndex: 0, role: "group", "aria-label": "Table of the card" },
    element(
      "table",
      {},
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          cells(head).map((text) => element("th", { scope: "col" }, inline(text))),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element(
            "tr",
            {},
            cells(row).map((text) => element("td", {}, inline(text))),
          ),
        ),
      ),
    ),
  );
}

/** Return a line with its bold and code parts; a backslash takes the meaning from the sign after it. */
function inline(text) {
  return text
    .split(/(\*\*.+?\*\*|`[^`]+`)/)
    .filter(Boolean)
    .map((part) => {
      if (/^\*\*.+\*\*$/.test(part)) return element("b", {}, unescaped(part.slice(2, -2)));
      if (/^`.+`$/.test(part)) return element("code", {}, part.slice(1, -1));
      return unescaped(part);
    });
}

function unescaped(text) {
  const signs = { lt: "<", gt: ">", amp: "&", quot: '"', "#39": "'", "#x27": "'" };
  return text.replace(/\\([\\`*_[\]|#])/g, "$1").replace(/&(#?\w+);/g, (whole, name) => signs[name] ?? whole);
}
