// The answer about the selected image, whatever its state: scored, refused, failed or not finished.

import { answerWarnings } from "./answer_words.js";
import { byId, element, icon } from "./dom.js";
import { pictureCard } from "./heat_map.js";
import { problemWords } from "./problem_words.js";
import { refusalWords } from "./refusal_words.js";
import { furtherCards, scoredCards, warningList } from "./scored_cards.js";
import { ANSWERED, FAILED, REFUSED, SENDING } from "./sitting.js";

/** Show an image. actions: `step(n)`, `retry(image)`, `rescore(image, metadata)`, `takeCases(image, cases)`. */
export function showAnswer(image, images, model, actions) {
  const answer = byId("answer");
  answer.hidden = !image;
  if (!image) return;
  const focusId = answer.contains(document.activeElement) ? document.activeElement.id : "";
  answer.replaceChildren(
    head(image, images, actions),
    warningList(answerWarnings(image, model)),
    element(
      "div",
      { class: "answer-grid" },
      element("div", { class: "answer-picture" }, pictureCard(image, model, actions)),
      element("div", { class: "answer-words" }, words(image, model, actions)),
      element(
        "div",
        { class: "answer-more" },
        image.state === ANSWERED ? furtherCards(image, model, actions) : "",
      ),
    ),
  );
  if (focusId) focusAgain(answer, focusId);
}

/** Give the focus back to the control that had it; where that is gone or of no use now, to the answer. */
function focusAgain(answer, id) {
  const control = byId(id);
  (control && !control.disabled ? control : answer).focus();
}

function head(image, images, { step }) {
  const place = images.indexOf(image);
  const stepButton = (by, name, label) =>
    element(
      "button",
      {
        type: "button",
        id: `step-${name}`,
        class: "quiet",
        "aria-label": label,
        disabled: !images[place + by],
        onclick: () => step(by),
      },
      icon(name),
    );
  return element(
    "div",
    { class: "answer-head" },
    element("h2", { title: image.name }, image.name),
    element(
      "div",
      { class: "steps" },
      element("span", { class: "counts" }, `${place + 1} of ${images.length}`),
      stepButton(-1, "previous", "Image before"),
      stepButton(1, "next", "Next image"),
    ),
  );
}

function words(image, model, actions) {
  if (image.state === ANSWERED) return scoredCards(image, model, actions);
  if (image.state === REFUSED) return refusedCard(image);
  if (image.state === FAILED) return failedCard(image, actions);
  return waitingCard(image);
}

function waitingCard(image) {
  const text = image.isHeld
    ? `${problemWords(image.problem.code).title}. ${problemWords(image.problem.code).advice}`
    : image.state === SENDING
      ? `Sending: ${Math.round(100 * image.fraction)} %`
      : image.state === "scoring"
        ? "The model is looking at it …"
        : "Waits for its turn.";
  return element("div", { class: "card waiting" }, element("span", { class: "spinner" }), element("p", {}, text));
}

function refusedCard(image) {
  const { reason = "", detail = "" } = image.answer?.refusal ?? {};
  const [meaning, advice] = refusalWords(reason);
  return element(
    "div",
    { class: "problem" },
    element("h3", {}, "This image was refused"),
    element("p", {}, meaning),
    element("p", {}, advice),
    detail && element("p", { class: "soft" }, `${reason}: ${detail}`),
  );
}

function failedCard(image, { retry }) {
  const { title, advice, again } = problemWords(image.problem.code);
  const facts = [image.problem.detail, image.problem.requestId && `Request ${image.problem.requestId}`]
    .filter(Boolean)
    .join(" · ");
  return element(
    "div",
    { class: "problem" },
    element("h3", {}, title),
    element("p", {}, advice),
    facts && element("p", { class: "soft" }, facts),
    again &&
      element(
        "button",
        { type: "button", id: "retry-image", onclick: () => retry(image) },
        icon("retry"),
        "Try again",
      ),
  );
}
