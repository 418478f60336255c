// Age, sex and site of the lesion, for a model that takes them beside the image.

import { element } from "./dom.js";

/** Return the fields of a model with what is known of an image; `rescore` asks for the answer with new values. */
export function metadataCard(image, model, { rescore }) {
  const inputs = model.metadata_fields.map((name) =>
    element("input", {
      type: name === "age" ? "number" : "text",
      name,
      id: `metadata-${name}`,
      min: "0",
      max: "120",
      autocomplete: "off",
      placeholder: "unknown",
      value: String(image.metadata[name] ?? ""),
    }),
  );
  const form = element(
    "form",
    { class: "metadata" },
    inputs.map((input) => element("label", { for: input.id }, input.name, input)),
    element("button", { type: "submit", class: "small" }, "Score again"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const known = inputs.filter((input) => input.value.trim());
    rescore(
      image,
      Object.fromEntries(
        known.map((input) => [input.name, input.type === "number" ? Number(input.value) : input.value.trim()]),
      ),
    );
  });
  return element(
    "div",
    { class: "card" },
    element("h3", {}, "About the lesion"),
    element(
      "p",
      { class: "hint" },
      "This model takes these beside the image. What is left empty is unknown to it.",
    ),
    form,
  );
}
