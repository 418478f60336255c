// How good the model is on its test images, as lists of figures with n and intervals.

import { costWords, pointInUse } from "./answer_words.js";
import { element } from "./dom.js";
import { sentence } from "./numbers.js";

/** Return the card of what the operating point in use costs; without one, of how good the model is. */
export function rateCard(image, model) {
  const point = pointInUse(model);
  if (!point) return performanceCard(model);
  return element(
    "div",
    { class: "card" },
    element("h3", {}, `What “${point.name}” costs`),
    rateList(point),
    element("p", { class: "plain" }, costWords(point)),
    element("p", { class: "bars-note" }, `This operating point is ${point.guarantee}.`),
  );
}

function performanceCard(model) {
  const figures = Object.entries(model?.evaluation?.figures ?? {});
  return element(
    "div",
    { class: "card" },
    element("h3", {}, "How good is this model?"),
    figures.length
      ? [
          figureList(figures),
          element(
            "p",
            { class: "bars-note" },
            `Of the most probable class, on ${model.evaluation.n} test images like its training images.`,
          ),
        ]
      : element("p", {}, "Not known: it has scored no test images."),
  );
}

/** Return the name of a figure as people write it. */
export function figureName(name) {
  return name === "auroc" ? "AUROC" : sentence(name.replaceAll("_", " ")).slice(0, -1);
}

/** Return figures, [name, text] each, with their values in bold: "81.2 % (95 % interval ...)". */
export function figureList(figures) {
  return element(
    "dl",
    { class: "rates" },
    figures.map(([name, text]) => {
      const [value, ...rest] = String(text).split(/ (?=\()/);
      return element(
        "div",
        { class: "rate" },
        element("dt", {}, figureName(name)),
        element(
          "dd",
          {},
          element("b", {}, value),
          element("span", { class: "soft" }, ` ${rest.join(" ").replace(/^\(|\)$/g, "")}`),
        ),
      );
    }),
  );
}

/** Return sensitivity and specificity of an operating point on the model's test images. */
export function rateList(point) {
  const unknown = "not known (the model holds no test figures of this operating point)";
  return figureList([
    ["sensitivity", point.test_sensitivity?.text ?? unknown],
    ["specificity", point.test_specificity?.text ?? unknown],
  ]);
}
