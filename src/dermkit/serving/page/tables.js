// Tables of the page: they scroll sideways in a frame of their own, which the keyboard reaches.

import { element } from "./dom.js";

/** Return a table; the first cell of a row is its heading. rows: `{ cells, isMarked }`; a cell is text or nodes. */
export function dataTable(label, heads, rows) {
  return element(
    "div",
    { class: "table-scroll", tabIndex: 0, role: "group", "aria-label": label },
    element("table", {}, element("thead", {}, headRow(heads)), element("tbody", {}, rows.map(bodyRow))),
  );
}

function headRow(heads) {
  return element(
    "tr",
    {},
    heads.map((text) => element("th", { scope: "col" }, text)),
  );
}

function bodyRow({ cells, isMarked }) {
  return element(
    "tr",
    { class: isMarked ? "in-use" : null },
    cells.map((content, place) => (place ? element("td", {}, content) : element("th", { scope: "row" }, content))),
  );
}
