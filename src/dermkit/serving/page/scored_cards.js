// What the model says of an image that it scored, as cards: what has to be read first comes first.

import { classCode, classWords, decisionWords, mostProbable, setWords, topProbability } from "./answer_words.js";
import { classBars } from "./bars.js";
import { element, icon } from "./dom.js";
import { rateCard } from "./figures.js";
import { metadataCard } from "./metadata_card.js";
import { mapOf } from "./maps.js";
import { bytes, percent, sentence } from "./numbers.js";
import { problemWords } from "./problem_words.js";

/** Return the cards of an answer that should be read first, in order. */
export function scoredCards(image, model, actions) {
  const { answer } = image;
  return [
    headlineCard(image, model),
    element(
      "div",
      { class: "card" },
      element("h3", {}, "All classes"),
      classBars(answer, model),
      element("p", { class: "bars-note" }, calibrationNote(answer)),
    ),
    rateCard(image, model),
    model?.metadata_fields.length ? metadataCard(image, model, actions) : "",
  ];
}

/** Return the cards that may be read last. */
export function furtherCards(image, model, actions) {
  return [casesCard(image, model, actions), detailsCard(image, model)];
}

/** Return warnings as boxes; "" for none. */
export function warningList(warnings) {
  if (!warnings.length) return "";
  return element(
    "div",
    { class: "warnings" },
    warnings.map(({ isSerious, title, text }) =>
      element(
        "div",
        { class: `warning${isSerious ? " serious" : ""}` },
        icon("warning"),
        element("p", {}, element("b", {}, title), text),
      ),
    ),
  );
}

/** Return what has to be read before any answer of a model, as one box; "" for nothing. */
export function modelWarnings({ warnings }) {
  return warningList(
    warnings.length
      ? [
          {
            isSerious: warnings.some((text) => text.startsWith("Broken guarantee")),
            title: "Read first",
            text: warnings.map(sentence).join(" "),
          },
        ]
      : [],
  );
}

function headlineCard(image, model) {
  return element("div", { class: "card headline" }, headline(image, model));
}

/** Return class, probability, decision and set of an answer. */
export function headline(image, model) {
  const { answer } = image;
  const [decision, set] = [decisionWords(answer, image.operatingPoint, model), setWords(answer, model)];
  const code = classCode(model, mostProbable(answer));
  return [
    element("p", { class: "eyebrow" }, "Most probable"),
    element("p", { class: "class" }, classWords(model, mostProbable(answer))),
    element(
      "p",
      { class: "probability" },
      element("b", {}, percent(topProbability(answer))),
      " probability",
      code && element("span", { class: "soft" }, ` · class ${code}`),
    ),
    element(
      "div",
      { class: `decision ${decision.kind}` },
      element("p", { class: "word" }, decision.word),
      element("p", {}, decision.text),
    ),
    set &&
      element(
        "p",
        { class: "set" },
        element("b", {}, "Prediction set. "),
        set.text,
        set.note && element("span", { class: "soft" }, set.note),
      ),
  ];
}

/** Return whether the probabilities are calibrated, in a sentence. */
export function calibrationNote(answer) {
  return answer.decisions
    ? "Probabilities after calibration on the model's validation images. They are no risks of a person."
    : "Probabilities as the net gives them, not calibrated: do not read them as risks.";
}

function casesCard(image, model, { takeCases }) {
  if (!image.cases.length) return model?.explain && model.out_of_distribution ? casesButton(image, takeCases) : "";
  return element(
    "details",
    { class: "card", open: true },
    element("summary", {}, "Nearest training cases"),
    element(
      "ol",
      { class: "cases" },
      image.cases.map((one) =>
        element(
          "li",
          { class: "case" },
          element(
            "span",
            {},
            element("b", {}, classWords(model, one.label)),
            one.is_nearest_of_class && element("span", { class: "soft" }, " nearest of its class"),
          ),
          element("span", { class: "distance" }, `distance ${one.distance.toFixed(2)}`),
          element("span", { class: "id" }, one.image_id),
        ),
      ),
    ),
    element(
      "p",
      { class: "bars-note" },
      "What the net takes for similar, by its own features; not what is similar to a dermatologist. A model holds no pictures.",
    ),
  );
}

function casesButton(image, takeCases) {
  const button = element(
    "button",
    { type: "button", id: "find-cases", class: "small" },
    "Find the nearest training cases",
  );
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Looking for them …";
    try {
      await mapOf(image, mostProbable(image.answer), takeCases);
    } catch (error) {
      button.textContent = problemWords(error.code).title;
    }
  });
  return element("div", { class: "card" }, button);
}

function detailsCard(image, model) {
  const { answer } = image;
  const rows = [
    ["File", image.name],
    ["Size", `${answer.width} × ${answer.height} pixels, ${bytes(image.file.size)}`],
    ["Model", model ? `${model.model.name}, dermkit ${model.model.version}` : ""],
    [
      "Distance from training",
      answer.distribution
        ? `${answer.distribution.distance.toFixed(3)} (p = ${answer.distribution.p_value.toFixed(3)})`
        : "this model cannot tell",
    ],
    ["SHA-256 of its pixels", answer.pixel_sha256],
    ["Request", image.requestId],
  ];
  return element(
    "details",
    { class: "card" },
    element("summary", {}, "Details"),
    element(
      "dl",
      { class: "facts" },
      rows.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    ),
  );
}
