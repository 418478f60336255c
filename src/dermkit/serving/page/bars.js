// The probabilities of all classes as bars, always in the order of the model, so that two images can be compared.

import { classCode, classRows, classWords } from "./answer_words.js";
import { element } from "./dom.js";
import { percent } from "./numbers.js";

/** Return the bars of an answer. */
export function classBars(answer, model) {
  return element(
    "ul",
    { class: "bars" },
    classRows(answer).map((row) => barRow(row, model)),
  );
}

function barRow(row, model) {
  const fill = element("span");
  fill.style.width = `${100 * row.probability}%`;
  const code = classCode(model, row.name);
  return element(
    "li",
    { class: `bar-row${row.isFirst ? " first" : ""}` },
    element(
      "span",
      { class: "name" },
      element("b", {}, classWords(model, row.name)),
      code && element("span", { class: "soft" }, ` ${code}`),
      row.malignancy === "benign"
        ? ""
        : element("span", { class: `tag ${row.malignancy === "malignant" ? "malignant" : ""}` }, row.malignancy),
      row.isInSet && element("span", { class: "tag in-set" }, "in the set"),
    ),
    element("span", { class: "percent" }, percent(row.probability)),
    element("span", { class: `track ${row.malignancy}`, "aria-hidden": "true" }, fill),
  );
}
