// The model card: what the model learned from, how good it is on such images, and for whom that is not known.

import { modelWarnings } from "./scored_cards.js";
import { figureList, rateList } from "./figures.js";
import { costWords, pointInUse } from "./answer_words.js";
import { cardText } from "./card_text.js";
import { byId, element } from "./dom.js";
import { joined, sentence } from "./numbers.js";
import { subgroupFold, unknownAttributes } from "./subgroups.js";
import { dataTable } from "./tables.js";

/** Let the button in the bar open the card of a model. */
export function watchModelCard(getModel) {
  byId("open-model-card").addEventListener("click", () => {
    byId("card-body").replaceChildren(...cardSections(getModel()));
    byId("card-dialog").showModal();
  });
  byId("close-card").addEventListener("click", () => byId("card-dialog").close());
}

function cardSections(model) {
  return [
    modelWarnings(model),
    section("How good is it?", ...testSections(model)),
    section("What it costs, at each operating point", pointTable(model)),
    section("What it learned from", ...trainingLines(model)),
    section("What nobody knows of it", unknowns(model)),
    section("Its classes", classTable(model)),
    section("The whole card", cardText(model.card)),
  ].filter(Boolean);
}

function section(title, ...children) {
  return element("section", {}, element("h3", {}, title), children);
}

function testSections(model) {
  const { evaluation } = model;
  if (!evaluation)
    return [
      element("p", {}, sentence(`not known: ${model.why_no_test_figures || "this model has scored no test images"}`)),
    ];
  const point = pointInUse(model);
  return [
    element("p", {}, evaluation.verdict),
    evaluation.of_single_nets &&
      element("p", {}, "The figures are of its single nets, not of their mean, which answers here."),
    point && [
      element("h4", {}, `At ${point.name}, which is in use`),
      rateList(point),
      element("p", {}, costWords(point)),
    ],
    element("h4", {}, "By the most probable class"),
    figureList(Object.entries(evaluation.figures)),
    element(
      "p",
      { class: "hint" },
      `On ${evaluation.n} ${evaluation.split} images, which were drawn as the training images were.`,
    ),
    subgroupFold(evaluation),
  ];
}

function pointTable(model) {
  if (!model.operating_points.length)
    return element("p", {}, sentence(model.why_no_decision || "this model has no operating points"));
  return dataTable(
    "Operating points",
    ["Operating point", "Positive from", "Guarantee", "Sensitivity on test images", "Specificity on test images"],
    model.operating_points.map((point) => ({
      isMarked: point.name === model.operating_point,
      cells: [
        `${point.name}${point.name === model.operating_point ? " (in use)" : ""}`,
        point.threshold.toPrecision(3),
        point.guarantee,
        point.test_sensitivity?.text ?? "not known",
        point.test_specificity?.text ?? "not known",
      ],
    })),
  );
}

function trainingLines({ training }) {
  const n = training.n_images
    ? `${Number(training.n_images).toLocaleString("en")} images`
    : "an unknown number of images";
  return [
    element(
      "p",
      {},
      `${sentence(`${n} of the data set ${training.dataset || "(not recorded)"}`)} Recipe: ${training.recipe || "not recorded"}. ${training.about ?? ""}`,
    ),
    element(
      "p",
      { class: "hint" },
      `Licences of the images: ${flat(training.licences) || "not stated"}. Starting weights: ${training.weights_origin || "not recorded"}; their licence: ${training.weights_licence || "not stated"}.`,
    ),
  ];
}

function flat(value) {
  return Array.isArray(value)
    ? value.join(", ")
    : value && typeof value === "object"
      ? Object.entries(value)
          .map(([name, n]) => `${name} (${n})`)
          .join(", ")
      : String(value ?? "");
}

function unknowns(model) {
  const lines = [
    `How good it is by ${joined(unknownAttributes(model.evaluation))}: the model has no figures by these groups.`,
    "How good it is on images that were chosen or taken in another way than its data set's.",
    "What it says of lesions of other classes: every image gets one of its classes.",
    "Whether an image shows a lesion at all. An image unlike the training images is marked, where the model can tell.",
    model.out_of_distribution
      ? null
      : `Whether an image is unlike the training images: ${model.why_no_out_of_distribution}.`,
  ];
  return element(
    "ul",
    { class: "bullets" },
    lines.filter(Boolean).map((line) => element("li", {}, line)),
  );
}

function classTable(model) {
  return dataTable(
    "Classes",
    ["Class", "Diagnosis", "Counted as"],
    model.classes.map((one) => ({ cells: [one.name, one.diagnosis || "not known", one.malignancy] })),
  );
}
