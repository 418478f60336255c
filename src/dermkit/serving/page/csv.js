// The sitting as CSV, with the columns of decisions.csv as far as they are known. No cell is a formula to a spreadsheet.

import { mostProbable } from "./answer_words.js";

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const FORMULA = /^'*(\s*[=+\-@]|[\t\r])/; // some spreadsheets take spaces before it away

/** Return the table of the images that were finished, as text. */
export function csvText(images, model) {
  const classNames = model?.classes.map((one) => one.name) ?? [];
  const head = [
    "image",
    "time",
    "state",
    "predicted",
    "confidence",
    "referral",
    "outside_training_distribution",
    "positive",
    "operating_point",
    "malignant_probability",
    "prediction_set",
    "set_size",
    ...classNames.map((name) => `p_${name}`),
    "blurred",
    "training_split",
    "notes",
    "refused",
    "pixel_sha256",
    "model_key",
    "request_id",
    "notice",
  ];
  return (
    [head, ...images.map((image) => row(image, classNames))]
      .map((cells) => cells.map(cell).join(","))
      .join("\r\n") + "\r\n"
  );
}

function row(image, classNames) {
  const answer = image.answer?.refusal ? null : image.answer;
  const decisions = answer?.decisions;
  const probabilities = new Map(
    answer?.classes.map((one) => [one.name, one.calibrated_probability ?? one.probability]) ?? [],
  );
  return [
    image.name,
    image.time.toISOString(),
    image.state,
    answer ? mostProbable(answer) : "",
    decisions?.confidence ?? "",
    decisions?.referral ?? "",
    yesNo(answer?.distribution?.outside_training_distribution),
    yesNo(decisions?.positive),
    image.operatingPoint,
    decisions?.malignant_probability ?? "",
    decisions?.prediction_set.join("; ") ?? "",
    decisions?.prediction_set.length ?? "",
    ...classNames.map((name) => probabilities.get(name) ?? ""),
    yesNo(answer?.blurred),
    answer?.training_split ?? "",
    answer?.notes.join("; ") ?? "",
    image.answer?.refusal?.reason ?? (image.state === "failed" ? image.problem.code : ""),
    answer?.pixel_sha256 ?? "",
    image.modelKey,
    image.requestId,
    "Research use only. Not a medical device.",
  ];
}

function yesNo(value) {
  return value === null || value === undefined ? "" : value ? "yes" : "no";
}

/** Return a value as a cell: quoted where it has to be, and with an apostrophe before what would be computed. */
export function cell(value) {
  const text = String(value);
  const defused = typeof value === "string" && FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(defused) ? `"${defused.replaceAll('"', '""')}"` : defused;
}

/** Let the browser save a text as a file. */
export function saveText(text, name) {
  const url = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv;charset=utf-8" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
