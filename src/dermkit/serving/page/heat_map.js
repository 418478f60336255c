// The picture of an image with its heat map over it: asked for when it is wanted, for any class, with an opacity.

import { Problem } from "./api.js";
import { classWords, mostProbable } from "./answer_words.js";
import { announce, element } from "./dom.js";
import { mapOf } from "./maps.js";
import { percent } from "./numbers.js";
import { problemWords } from "./problem_words.js";
import { ANSWERED } from "./sitting.js";

/** What was chosen last is what the next image begins with. */
let isShown = false;
let opacity = 60;

/** Return the picture of an image. extra: what stands over it, if anything. */
export function pictureFrame(image, ...extra) {
  const url = image.preview;
  if (!url)
    return element(
      "p",
      { class: "picture-empty" },
      image.state === ANSWERED
        ? "This browser cannot show this format. The server read it all the same."
        : "No picture to show.",
    );
  const picture = element("img", { src: url, alt: `The image ${image.name}` });
  picture.addEventListener("error", () =>
    picture.closest(".picture")?.replaceChildren(pictureFrame({ ...image, preview: "" })),
  );
  const frame = element("span", { class: "picture-frame" }, picture, ...extra);
  const [width, height] = [image.answer?.width ?? image.width, image.answer?.height ?? image.height];
  if (width && height) {
    frame.style.aspectRatio = `${width} / ${height}`;
    frame.style.setProperty("--proportion", String(width / height));
  }
  return frame;
}

/** Return the card of the picture, with the controls of its heat map where the model has maps. */
export function pictureCard(image, model, actions) {
  const picture = element("div", { class: "picture" }, pictureFrame(image));
  const card = element("div", { class: "card picture-card" }, picture);
  if (image.answer && !image.answer.refusal) card.append(mapTools(image, model, picture, actions));
  return card;
}

function mapTools(image, model, picture, { takeCases }) {
  if (!model?.explain)
    return element(
      "p",
      { class: "map-notes map-tools" },
      `No heat maps: ${model?.why_no_explain || "this server makes none"}.`,
    );
  const details = element("div", { class: "map-details" });
  const choice = element(
    "select",
    { id: "map-class" },
    image.answer.classes.map(({ name }) => element("option", { value: name }, classWords(model, name))),
  );
  choice.value = image.mapClass || mostProbable(image.answer);
  const toggle = element("button", { type: "button", id: "map-toggle", class: "small", "aria-pressed": "false" });
  const view = { image, picture, details, choice, toggle, takeCases };
  toggle.addEventListener("click", () => {
    isShown = !isShown;
    showMap(view);
  });
  choice.addEventListener("change", () => {
    isShown = true;
    image.mapClass = choice.value;
    showMap(view);
  });
  showMap(view);
  return element(
    "div",
    { class: "map-tools" },
    element("div", { class: "map-row" }, toggle, element("label", { for: "map-class" }, "for the class"), choice),
    details,
  );
}

async function showMap(view) {
  const { image, picture, details, choice, toggle, takeCases } = view;
  toggle.textContent = isShown ? "Hide the heat map" : "Show the heat map";
  toggle.setAttribute("aria-pressed", String(isShown));
  picture.replaceChildren(pictureFrame(image));
  details.replaceChildren();
  if (!isShown) return;
  const className = choice.value;
  if (!image.maps.has(className))
    details.replaceChildren(
      element("p", { class: "map-row" }, element("span", { class: "spinner" }), "Making the heat map …"),
    );
  try {
    const map = await mapOf(image, className, takeCases);
    if (isShown && choice.value === className && details.isConnected) drawMap(view, map);
  } catch (error) {
    if (details.isConnected) details.replaceChildren(mapProblem(error, () => showMap(view)));
  }
}

function drawMap({ image, picture, details }, map) {
  const overlay = element("img", { class: "map", src: map.url, alt: `Heat map: ${map.legend.text}` });
  const setOpacity = (value) => {
    overlay.style.opacity = String(value / 100);
  };
  setOpacity(opacity);
  picture.replaceChildren(pictureFrame(image, overlay));
  const output = element("output", { for: "map-opacity" }, `${opacity} %`);
  const slider = element("input", {
    type: "range",
    id: "map-opacity",
    min: "0",
    max: "100",
    step: "5",
    value: String(opacity),
  });
  slider.addEventListener("input", () => {
    opacity = Number(slider.value);
    output.textContent = `${opacity} %`;
    setOpacity(opacity);
  });
  details.replaceChildren(
    element("div", { class: "opacity" }, element("label", { for: "map-opacity" }, "Opacity"), slider, output),
    legend(map.legend),
    element(
      "div",
      { class: "map-notes" },
      element("p", {}, `P(${map.class_name}) = ${percent(map.probability)} before calibration. ${map.method}.`),
      map.notes.map((note) => element("p", {}, note)),
    ),
  );
  announce(`Heat map shown. ${map.legend.text}.`);
}

function legend({ text, low, high, colours }) {
  const bar = element(
    "div",
    { class: "legend-bar", "aria-hidden": "true" },
    colours.map((colour) => {
      const step = element("span");
      step.style.backgroundColor = colour;
      return step;
    }),
  );
  return element(
    "div",
    { class: "legend" },
    element("p", { class: "map-notes" }, `${text}.`),
    bar,
    element("div", { class: "legend-ends" }, element("span", {}, low), element("span", {}, high)),
  );
}

function mapProblem(error, retry) {
  const problem = error instanceof Problem ? error : new Problem("answer_unreadable");
  const { title, advice, again } = problemWords(problem.code);
  return element(
    "div",
    { class: "warning" },
    element("span"),
    element(
      "div",
      {},
      element("b", {}, "No heat map"),
      `${title}. ${advice} ${problem.detail}`,
      again &&
        element("p", {}, element("button", { type: "button", class: "small", onclick: retry }, "Try again")),
    ),
  );
}
