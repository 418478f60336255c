// The images of this sitting as a list: what came out, what waits, and how far the queue is.

import {
  answerWarnings,
  classWords,
  countWords,
  decisionWords,
  mostProbable,
  topProbability,
} from "./answer_words.js";
import { byId, element, icon } from "./dom.js";
import { counted, percent } from "./numbers.js";
import { problemWords } from "./problem_words.js";
import { refusalWords } from "./refusal_words.js";
import { ANSWERED, FAILED, REFUSED, SENDING } from "./sitting.js";

/** Keeps the list as the sitting is. */
export class ImageList {
  #sitting;
  #rows = new Map();
  model = null;

  constructor(sitting) {
    this.#sitting = sitting;
    sitting.addEventListener("images", () => this.show());
    sitting.addEventListener("change", ({ detail }) => this.#showRow(detail));
    sitting.addEventListener("select", () => this.#showSelection());
    byId("image-list").addEventListener("keydown", (event) => this.#onKey(event));
  }

  show() {
    const { images } = this.#sitting;
    document.body.classList.toggle("has-images", images.length > 0);
    byId("sitting").hidden = images.length === 0;
    for (const image of this.#rows.keys()) if (!images.includes(image)) this.#drop(image);
    for (const image of images) if (!this.#rows.has(image)) this.#append(image);
    this.#showCounts();
  }

  #append(image) {
    const row = element("li", { class: "image-item" });
    this.#rows.set(image, row);
    byId("image-list").append(row);
    this.#showRow(image);
  }

  #drop(image) {
    this.#rows.get(image).remove();
    this.#rows.delete(image);
  }

  #showRow(image) {
    const row = this.#rows.get(image);
    if (!row) return;
    const hadFocus = row.contains(document.activeElement) ? document.activeElement.className : "";
    const isFinished = !this.#sitting.unfinished.includes(image);
    const label = isFinished ? `Remove ${image.name}` : `Cancel ${image.name}`;
    const button = element(
      "button",
      { type: "button", class: "image-button", onclick: () => this.#sitting.select(image) },
      thumbnail(image),
      rowWords(image, this.model),
    );
    row.replaceChildren(
      button,
      element(
        "button",
        {
          type: "button",
          class: "image-remove quiet",
          "aria-label": label,
          title: label,
          onclick: () => this.#sitting.remove(image),
        },
        icon("close"),
      ),
    );
    if (hadFocus)
      row.querySelector(hadFocus.startsWith("image-remove") ? ".image-remove" : ".image-button").focus();
    this.#mark(image);
    this.#showCounts();
  }

  #mark(image) {
    const row = this.#rows.get(image);
    const isSelected = image === this.#sitting.selected;
    row.classList.toggle("selected", isSelected);
    row.firstElementChild.setAttribute("aria-current", String(isSelected));
  }

  #showSelection() {
    for (const image of this.#rows.keys()) this.#mark(image);
    this.#rows.get(this.#sitting.selected)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #showCounts() {
    const { images, unfinished } = this.#sitting;
    const nFinished = images.length - unfinished.length;
    byId("sitting-counts").textContent = countWords(images);
    byId("queue-progress").hidden = unfinished.length === 0;
    byId("queue-text").textContent = `${nFinished} of ${counted(images.length, "image")} done`;
    byId("queue-bar").value = images.length ? nFinished / images.length : 0;
    for (const id of ["export-csv", "export-pdf"]) byId(id).disabled = nFinished === 0;
  }

  #onKey(event) {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const { selected } = this.#sitting;
    if (step) {
      event.preventDefault();
      this.#sitting.step(step);
    } else if (event.key === "Delete" && selected) {
      this.#sitting.remove(selected);
    } else {
      return;
    }
    this.#rows.get(this.#sitting.selected)?.firstElementChild.focus();
  }
}

function thumbnail(image) {
  return image.thumbnail
    ? element("img", { class: "thumbnail", src: image.thumbnail, alt: "" })
    : element("span", { class: "thumbnail" }, icon("image"));
}

function rowWords(image, model) {
  return element(
    "span",
    { class: "image-words" },
    element("span", { class: "image-name", title: image.name }, image.name.split("/").at(-1)),
    stateWords(image, model),
  );
}

function stateWords(image, model) {
  if (image.state === ANSWERED) {
    const { kind, word } = decisionWords(image.answer, image.operatingPoint, model);
    const [warning] = answerWarnings(image, model);
    return [
      element(
        "span",
        { class: "image-class" },
        element("span", {}, classWords(model, mostProbable(image.answer))),
        ` ${percent(topProbability(image.answer))}`,
      ),
      element("span", { class: `image-state ${kind === "none" ? "soft" : kind}` }, word.split(" at ")[0]),
      warning && element("span", { class: "image-state soft" }, icon("warning"), warning.title),
    ];
  }
  if (image.state === REFUSED)
    return [
      element("span", { class: "image-class" }, "Refused"),
      element("span", { class: "image-state soft" }, refusalWords(image.answer?.refusal?.reason)[0]),
    ];
  if (image.state === FAILED)
    return [
      element("span", { class: "image-class" }, "Not scored"),
      element("span", { class: "image-state soft" }, problemWords(image.problem.code).title),
    ];
  if (image.state === SENDING)
    return [
      element(
        "span",
        { class: "image-state soft" },
        element("progress", { max: 1, value: image.fraction, "aria-label": `Sending ${image.name}` }),
      ),
    ];
  return [
    element(
      "span",
      { class: "image-state soft" },
      image.state === "scoring" ? element("span", { class: "spinner" }) : "",
      image.isHeld ? "Tries again soon" : image.state === "scoring" ? "Scoring" : "Waits",
    ),
  ];
}
