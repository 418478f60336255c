// The API key, where the server asks for one.

import { useKey } from "./api.js";
import { byId } from "./dom.js";
import { problemWords } from "./problem_words.js";

/** Call `retry` when a key was entered. */
export function watchKey(retry) {
  const dialog = byId("key-dialog");
  byId("open-key").addEventListener("click", () => dialog.showModal());
  byId("close-key").addEventListener("click", () => dialog.close());
  byId("key-form").addEventListener("submit", () => {
    useKey(byId("key-input").value.trim());
    byId("key-input").value = "";
    retry();
  });
}

/** Ask for a key. problem: what the server said of the last one. */
export function askForKey(problem) {
  const { title, advice } = problemWords(problem.code);
  byId("open-key").hidden = false;
  byId("key-message").textContent = `${title}. ${advice}`;
  byId("key-message").classList.toggle("serious", problem.code !== "key_missing");
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key-input").focus();
}
