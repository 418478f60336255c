// The server behind the page: read its model at the start, say when it is away, look for it, say when it is another model.

import { isAlive, Problem, readModel } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { ASKS_FOR_KEY, problemWords } from "./problem_words.js";

const FIRST_LOOK = 1000; // milliseconds, doubled from look to look
const LONGEST_LOOK = 10000;

/** Says "model" with what the model is, and "key" when the server asks for a key. */
export class Connection extends EventTarget {
  model = null;
  #isLooking = false;

  /** Read the model; where that fails, say why and look again. */
  async open() {
    try {
      this.#take(await readModel());
    } catch (error) {
      const problem =
        error instanceof Problem ? error : new Problem("answer_unreadable", { detail: String(error) });
      if (ASKS_FOR_KEY.includes(problem.code)) this.dispatchEvent(new CustomEvent("key", { detail: problem }));
      else if (["server_away", "not_ready", "stopping", "queue_full"].includes(problem.code)) this.look(problem);
      else show(problem, true);
    }
  }

  /** Look for the server until it answers. */
  async look(problem) {
    show(problem, problem.code === "server_away");
    if (this.#isLooking) return;
    this.#isLooking = true;
    for (let wait = FIRST_LOOK; ; wait = Math.min(LONGEST_LOOK, 2 * wait)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (await isAlive()) break;
    }
    this.#isLooking = false;
    this.open();
  }

  #take(model) {
    const isOther = this.model && this.model.model.model_key !== model.model.model_key;
    this.model = model;
    hide();
    if (isOther) say("The server was started with another model. Answers above are of the model before.");
    this.dispatchEvent(new CustomEvent("model", { detail: model }));
  }
}

function show(problem, isSerious) {
  const { title, advice } = problemWords(problem.code);
  say(`${title}. ${advice}${problem.detail ? ` (${problem.detail})` : ""}`, isSerious);
}

/** Show a sentence across the page until it is hidden. */
function say(text, isSerious = false) {
  const strip = byId("connection");
  strip.replaceChildren(element("span", {}, text));
  strip.classList.toggle("serious", isSerious);
  strip.hidden = false;
}

function hide() {
  if (!byId("connection").hidden) announce("The server answers again.");
  byId("connection").hidden = true;
}
