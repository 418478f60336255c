// MODEL_CARD.md as elements: headings, lists, tables, bold and code, which is all that a card has. Never as HTML.

import { element } from "./dom.js";
import { dataTable } from "./tables.js";

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
  return dataTable(
    "Table of the card",
    cells(head).map(inline),
    rows.map((row) => ({ cells: cells(row).map(inline) })),
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
