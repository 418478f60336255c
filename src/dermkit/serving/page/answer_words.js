// What an answer means, in sentences. Nothing here touches the page, so that every sentence can be tested alone.

import { counted, joined, numberWord, percent, sentence, wholePercent } from "./numbers.js";

/** Return the probability of each class in the order of the model, calibrated where the model can. */
export function classRows(answer) {
  const set = answer.decisions?.prediction_set ?? [];
  return answer.classes.map((one) => ({
    name: one.name,
    malignancy: one.malignancy,
    probability: one.calibrated_probability ?? one.probability,
    isFirst: one.name === mostProbable(answer),
    isInSet: set.includes(one.name),
  }));
}

/** Return the most probable class: after calibration, where the model can, as everything else that is shown. */
export function mostProbable(answer) {
  return answer.decisions?.predicted ?? answer.predicted;
}

export function topProbability(answer) {
  return classRows(answer).find((row) => row.isFirst)?.probability ?? 0;
}

/** Return a class as people say it: its diagnosis, where the model knows one that no other class has. */
export function classWords(model, className) {
  const diagnosis = model?.classes.find((one) => one.name === className)?.diagnosis;
  const isUnique = diagnosis && model.classes.filter((one) => one.diagnosis === diagnosis).length === 1;
  return isUnique ? diagnosis : className;
}

/** Return the name of a class where its words do not say it already, else "". */
export function classCode(model, className) {
  const plain = (text) =>
    text
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, " ")
      .trim();
  return plain(classWords(model, className)) === plain(className) ? "" : className;
}

/** Return the decision as {kind, word, text}; kind: positive, negative, referred, none. */
export function decisionWords(answer, operatingPoint, model) {
  const decisions = answer.decisions;
  if (!decisions || decisions.positive === null) {
    return { kind: "none", word: "No decision", text: `${whyNone(model)} That does not mean negative.` };
  }
  const word = decisions.positive ? "Positive" : "Negative";
  if (decisions.referral === "referred") {
    return {
      kind: "referred",
      word: "Referred to a person",
      text: `The model is less sure than it has to be to answer. At ${operatingPoint} it would be ${word.toLowerCase()}.`,
    };
  }
  return {
    kind: word.toLowerCase(),
    word: `${word} at ${operatingPoint}`,
    text: malignancyText(decisions, model),
  };
}

function whyNone(model) {
  const reason = (model?.why_no_decision || "the model makes none").replace(
    /^no decision was made: | \(--target names one\)/g,
    "",
  );
  return sentence(reason);
}

function malignancyText(decisions, model) {
  const threshold = model?.decision_threshold;
  const sum = `Malignant classes together: ${percent(decisions.malignant_probability)}`;
  return threshold === null || threshold === undefined
    ? `${sum}.`
    : `${sum}; positive from ${percent(threshold)}.`;
}

/** Return what the prediction set says, as {text, note}; null where the model has no sets. */
export function setWords(answer, model) {
  const set = answer.decisions?.prediction_set;
  if (!set) return null;
  return {
    text: setText(
      set.map((name) => classWords(model, name)),
      answer.classes.length,
    ),
    note: setNote(answer, model),
  };
}

function setText(names, nClasses) {
  if (!names.length)
    return "No class fits: each is less probable than it mostly is in images of its class. The image is unlike those that the model knows.";
  if (names.length === nClasses)
    return `The model cannot tell its ${numberWord(nClasses)} classes apart in this image: none of them can be left out.`;
  if (names.length === 1) return sentence(`${names[0]} alone`);
  return `One of these ${numberWord(names.length)}: ${joined(names)}.`;
}

/** Return how far to rely on a set. What is guaranteed is how often such sets are right, and not this one. */
function setNote(answer, model) {
  const facts = model?.prediction_sets;
  if (!facts) return "How often such sets hold the true class is not known.";
  if (answer.distribution?.outside_training_distribution)
    return "Nothing is guaranteed of it: the image lies outside those that the model was tried on.";
  const rate = `Sets made in this way hold the true class in at least ${wholePercent(facts.coverage)} of the images of each class, for images drawn like the model's validation images.`;
  if (facts.broken.length)
    return `${rate} The test images broke that for ${joined(inWords(facts.broken, model), "and")}: do not rely on it.`;
  if (!facts.always_included.length) return rate;
  return `${rate} ${sentence(joined(inWords(facts.always_included, model), "and")).slice(0, -1)} ${facts.always_included.length === 1 ? "is" : "are"} in every set, for too few validation images.`;
}

function inWords(names, model) {
  return names.map((name) => classWords(model, name));
}

/** Return what has to be read before the answer, the gravest first: [{isSerious, title, text}]. */
export function answerWarnings(image, model) {
  const { answer } = image;
  if (!answer || answer.refusal) return [];
  return [...distributionWarnings(answer), ...guaranteeWarnings(answer, model), ...imageWarnings(answer)];
}

function* distributionWarnings(answer) {
  const outside = answer.distribution;
  if (!outside?.outside_training_distribution) return;
  const p = outside.p_value < 0.001 ? "below 0.001" : outside.p_value.toFixed(3);
  yield {
    isSerious: true,
    title: "Unlike the training images",
    text: `The image lies farther from the training images than almost all validation images (p ${p.startsWith("below") ? p : `= ${p}`}). It may be no skin lesion, or of another camera or disease. Do not rely on the answer.`,
  };
}

function* guaranteeWarnings(answer, model) {
  if (!answer.decisions?.is_point_broken) return;
  const text =
    model?.evaluation?.broken_guarantees?.join(" ") ||
    "The test images broke the guarantee of this operating point.";
  yield { isSerious: true, title: "A guarantee was broken", text };
}

function* imageWarnings(answer) {
  if (answer.training_split)
    yield {
      isSerious: false,
      title: "The model has seen this image",
      text: `It was among the images of its ${answer.training_split} split, so the answer says nothing about new images.`,
    };
  if (answer.blurred)
    yield {
      isSerious: false,
      title: "The image is blurred",
      text: "Fine structures are lost. Take it again, sharp and near, if you can.",
    };
  for (const note of answer.notes)
    yield { isSerious: false, title: "How the image was read", text: sentence(note) };
  if (
    answer.decisions &&
    answer.decisions.prediction_set.length &&
    !answer.decisions.prediction_set.includes(answer.decisions.predicted)
  ) {
    yield {
      isSerious: false,
      title: "The most probable class is not in the set",
      text: "Each class has a bound of its own, and this one missed its bound. Rely on neither.",
    };
  }
}

/** Return the operating point in use as /v1/model describes it, or null. */
export function pointInUse(model) {
  return model?.operating_points.find((point) => point.name === model.operating_point) ?? null;
}

/** Return what the operating point costs in plain words: of 100 such lesions, how many it gets wrong; "" if not known. */
export function costWords(point) {
  const { test_sensitivity: sensitivity, test_specificity: specificity } = point ?? {};
  const parts = [];
  if (isKnown(sensitivity))
    parts.push(`Of 100 malignant lesions like the tested ones it misses ${aboutMissed(sensitivity)}`);
  if (isKnown(specificity)) parts.push(`of 100 others it calls ${aboutMissed(specificity)} positive`);
  const text = parts.join("; ");
  return sentence(text);
}

function isKnown(rate) {
  return rate !== null && rate !== undefined && rate.value !== null;
}

function aboutMissed({ value, ci95 }) {
  const missed = (rate) => Math.round(100 * (1 - rate));
  return ci95 ? `about ${missed(value)} (${missed(ci95[1])} to ${missed(ci95[0])})` : `about ${missed(value)}`;
}

/** Return one line for the list of the sitting and for people who hear the page. */
export function shortWords(image, model) {
  const { answer } = image;
  const decision = decisionWords(answer, image.operatingPoint, model);
  return `${classWords(model, mostProbable(answer))}, ${percent(topProbability(answer))}. ${decision.word}.`;
}

/** Return how many images of a sitting came out how. */
export function countWords(images) {
  const count = (test) => images.filter(test).length;
  const positive = count((image) => image.answer?.decisions?.positive === true);
  const outside = count((image) => image.answer?.distribution?.outside_training_distribution);
  const refused = count((image) => image.state === "refused" || image.state === "failed");
  return [
    counted(images.length, "image"),
    positive && `${positive} positive`,
    outside && `${outside} unlike training`,
    refused && `${refused} not scored`,
  ]
    .filter(Boolean)
    .join(" · ");
}
