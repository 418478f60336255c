// What a person should know of the model before the first image: what it tells apart, how good it is, what it cannot do.

import { classWords, pointInUse } from "./answer_words.js";
import { byId, element } from "./dom.js";
import { joined, numberWord, sentence } from "./numbers.js";

/** Show the model on the empty page and its name in the bar. */
export function showModelSummary(model) {
  byId("model-name").textContent = model.model.name;
  byId("model-name").title = `dermkit ${model.model.version}, model ${model.model.model_key}`;
  document.title = `${model.model.name} - dermkit`;
  byId("open-model-card").disabled = false;
  byId("model-summary").replaceChildren(
    classFact(model),
    trainingFact(model),
    testFact(model),
    warningsFact(model.warnings),
  );
}

function fact(title, ...children) {
  return element("div", { class: "fact" }, element("h3", {}, title), children);
}

function classFact(model) {
  const names = model.classes.map((one) => classWords(model, one.name));
  const malignant = model.classes
    .filter((one) => one.malignancy === "malignant")
    .map((one) => classWords(model, one.name));
  return fact(
    `Tells ${numberWord(names.length)} classes apart`,
    element("p", {}, joined(names, "and")),
    element(
      "p",
      { class: "soft" },
      malignant.length
        ? `Malignant: ${joined(malignant, "and")}. Every image gets one of these classes, whatever it shows.`
        : "None of them is malignant. Every image gets one of these classes, whatever it shows.",
    ),
  );
}

function trainingFact({ training }) {
  const n = training.n_images;
  return fact(
    "Learned from",
    element("p", { class: "figure" }, n ? `${Number(n).toLocaleString("en")} images` : "not recorded"),
    element("p", { class: "soft" }, `Data set: ${training.dataset || "not recorded"}`),
  );
}

function testFact(model) {
  const point = pointInUse(model);
  if (point?.test_sensitivity) return figureFact("sensitivity", point.test_sensitivity.text, `; at ${point.name}`);
  const [first] = Object.entries(model.evaluation?.figures ?? {});
  if (!first)
    return fact(
      "On its test images",
      element("p", { class: "figure" }, "Not known"),
      element(
        "p",
        { class: "soft" },
        model.why_no_test_figures
          ? sentence(model.why_no_test_figures)
          : "It has scored no test images, so how often it is right is not known.",
      ),
    );
  return figureFact(first[0].replaceAll("_", " "), first[1], "");
}

function figureFact(name, text, scope) {
  const [value, ...rest] = String(text).split(/ (?=\()/);
  return fact(
    "On its test images",
    element("p", { class: "figure" }, `${value} ${name}`),
    element("p", { class: "soft" }, `${rest.join(" ").replace(/^\(|\)$/g, "")}${scope}`),
  );
}

function warningsFact(warnings) {
  if (!warnings.length) return "";
  return element(
    "div",
    { class: "fact note" },
    element("h3", {}, "Read first"),
    warnings.map((text) => element("p", {}, sentence(text))),
  );
}
