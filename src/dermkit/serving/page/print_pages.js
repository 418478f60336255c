// The sitting on paper, or as PDF through the browser's print: made when printing begins, and taken away after it.

import { calibrationNote, headline, modelWarnings, warningList } from "./scored_cards.js";
import { rateList } from "./figures.js";
import { answerWarnings, costWords, pointInUse } from "./answer_words.js";
import { classBars } from "./bars.js";
import { byId, element } from "./dom.js";
import { pictureFrame } from "./heat_map.js";
import { counted } from "./numbers.js";
import { problemWords } from "./problem_words.js";
import { refusalWords } from "./refusal_words.js";
import { ANSWERED, REFUSED } from "./sitting.js";

/** Fill the pages before the browser prints, whoever asked it to. */
export function watchPrint(sitting, getModel) {
  byId("export-pdf").addEventListener("click", () => window.print());
  addEventListener("beforeprint", () => byId("print-pages").replaceChildren(...pages(sitting, getModel())));
  addEventListener("afterprint", () => byId("print-pages").replaceChildren());
}

function pages(sitting, model) {
  const finished = sitting.images.filter((image) => !sitting.unfinished.includes(image));
  return [head(finished, model), ...finished.map((image) => imageSection(image, model))];
}

function head(images, model) {
  const point = pointInUse(model);
  return element(
    "div",
    { class: "print-head" },
    element("p", { class: "print-notice" }, "Research use only. Not a medical device."),
    element("h2", {}, `${counted(images.length, "image")}, scored by ${model?.model.name ?? "an unknown model"}`),
    element(
      "p",
      {},
      `${new Date().toLocaleString()} · dermkit ${model?.model.version ?? ""} · model ${model?.model.model_key ?? ""}`,
    ),
    model && modelWarnings(model),
    point ? [rateList(point), element("p", {}, costWords(point))] : element("p", {}, model?.performance ?? ""),
  );
}

function imageSection(image, model) {
  return element(
    "section",
    { class: "print-image" },
    element("h3", {}, image.name),
    image.state === ANSWERED ? scored(image, model) : element("p", {}, reason(image)),
  );
}

function reason(image) {
  return image.state === REFUSED
    ? `Refused. ${refusalWords(image.answer?.refusal?.reason).join(" ")}`
    : `Not scored. ${problemWords(image.problem.code).title}.`;
}

function scored(image, model) {
  const { answer } = image;
  return element(
    "div",
    { class: "print-grid" },
    element(
      "div",
      { class: "print-pictures" },
      element("figure", {}, pictureFrame(image)),
      [...image.maps.values()].map((map) => mapFigure(image, map)),
    ),
    element(
      "div",
      {},
      warningList(answerWarnings(image, model)),
      element("div", { class: "headline" }, headline(image, model)),
      classBars(answer, model),
      element(
        "dl",
        { class: "facts" },
        [
          ["Calibration", calibrationNote(answer)],
          ["Time", image.time.toLocaleString()],
          ["SHA-256 of its pixels", answer.pixel_sha256],
          ["Request", image.requestId],
        ].map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
      ),
    ),
  );
}

function mapFigure(image, map) {
  const overlay = element("img", { class: "map", src: map.url, alt: "" });
  overlay.style.opacity = "0.75";
  return element(
    "figure",
    {},
    pictureFrame(image, overlay),
    element("figcaption", {}, `${map.legend.text}. A map does not show that the answer is right.`),
  );
}
