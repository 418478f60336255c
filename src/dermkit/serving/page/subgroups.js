// How good the model is on its test images by age, sex, skin type and site of the body, as far as they were recorded.

import { figureName } from "./figures.js";
import { element } from "./dom.js";
import { counted, joined } from "./numbers.js";
import { dataTable } from "./tables.js";

/** The attributes that a data set may record, as metrics.json names them, and as people do; none of them a camera. */
const ATTRIBUTES = { age: "age", sex: "sex", skin_type: "skin type", site: "site of the body" };

/** Return the figures by group, folded; "" where the model has none. */
export function subgroupFold(evaluation) {
  const attributes = Object.entries(evaluation.subgroups ?? {});
  if (!attributes.length) return "";
  return element(
    "details",
    { class: "fold" },
    element("summary", {}, `By group: ${joined(attributes.map(([name]) => words(name)), "and")}`),
    element(
      "p",
      { class: "hint" },
      "By the most probable class. Even if all groups are served equally well, the best and the worst of several differ by chance. Too few: fewer than 50 malignant or 50 other lesions (images, where lesions are not known) support no conclusion.",
    ),
    attributes.map(([name, groups]) => [
      element("h4", {}, `By ${words(name)}`),
      dataTable(`Figures by ${words(name)}`, heads(groups), groups.map(groupRow)),
    ]),
  );
}

/** Return by what the model has no figures, in words. */
export function unknownAttributes(evaluation) {
  const names = Object.keys(ATTRIBUTES).filter((name) => !evaluation?.subgroups?.[name]);
  return [...names.map(words), "camera"];
}

function words(attribute) {
  return ATTRIBUTES[attribute] ?? attribute.replaceAll("_", " ");
}

function heads([first]) {
  return ["Group", ...Object.keys(first.figures).map(figureName)];
}

function groupRow(group) {
  const counts = `${counted(group.n, "image")}, ${group.n_malignant.toLocaleString("en")} malignant`;
  return {
    cells: [
      [group.name, element("div", { class: "counts" }, `${counts}${group.too_few ? "; too few" : ""}`)],
      ...Object.values(group.figures).map(figureCell),
    ],
  };
}

/** Return a figure with its value in bold, where it has one, and its interval. */
function figureCell(text) {
  const [value, ...rest] = String(text).split(/ (?=\()/);
  if (!rest.length) return value;
  return [element("b", {}, value), element("div", { class: "soft" }, rest.join(" ").replace(/^\(|\)$/g, ""))];
}
