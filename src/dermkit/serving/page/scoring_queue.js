// Sends the images that wait, two at a time, each as a request of its own: so each has its progress and can be cancelled.

import { isAlive, predict, Problem } from "./api.js";
import { ASKS_FOR_KEY, TRIED_AGAIN } from "./problem_words.js";
import { ANSWERED, FAILED, REFUSED, SCORING, SENDING, WAITING } from "./sitting.js";

const AT_ONE_TIME = 2;
const MOST_TRIES = 8;
const LONGEST_WAIT = 15; // seconds

/** Says "away" when the server does not answer and "key" when it asks for a key; it then waits for `resume`. */
export class ScoringQueue extends EventTarget {
  #sitting;
  #requests = new Map();
  #isPaused = false;
  maxImageBytes = Infinity;

  constructor(sitting) {
    super();
    this.#sitting = sitting;
    sitting.addEventListener("images", () => this.#cancelRemoved());
  }

  /** Send what waits, as far as there is room. */
  pump() {
    if (this.#isPaused) return;
    for (const image of this.#sitting.images) {
      if (this.#requests.size >= AT_ONE_TIME) return;
      if (image.state === WAITING && !image.isHeld) this.#score(image);
    }
  }

  pause() {
    this.#isPaused = true;
  }

  resume() {
    this.#isPaused = false;
    this.pump();
  }

  /** Put an image back among those that wait. */
  retry(image) {
    this.#sitting.update(image, { state: WAITING, problem: null, fraction: 0, tries: 0 });
    this.pump();
  }

  /** Take out all that is not finished. */
  cancelAll() {
    this.#sitting.unfinished.forEach((image) => this.#sitting.remove(image));
  }

  #cancelRemoved() {
    for (const [image, controller] of this.#requests) {
      if (!this.#sitting.images.includes(image)) controller.abort();
    }
  }

  async #score(image) {
    if (image.file.size > this.maxImageBytes) {
      this.#sitting.update(image, { state: FAILED, problem: new Problem("too_large") });
      return;
    }
    const controller = new AbortController();
    this.#requests.set(image, controller);
    this.#sitting.update(image, { state: SENDING, fraction: 0, tries: image.tries + 1 });
    try {
      const onProgress = (fraction) =>
        this.#sitting.update(image, { fraction, state: fraction < 1 ? SENDING : SCORING });
      this.#take(image, await predict(image.file, image.metadata, { signal: controller.signal, onProgress }));
    } catch (error) {
      if (error.name !== "AbortError") await this.#handle(image, error);
    } finally {
      this.#requests.delete(image);
      this.pump();
    }
  }

  #take(image, answer) {
    this.#sitting.update(image, {
      state: ANSWERED,
      answer: answer.images[0],
      operatingPoint: answer.operating_point,
      modelKey: answer.model.model_key,
      requestId: answer.request_id,
      problem: null,
      maps: new Map(),
      cases: [],
    });
  }

  async #handle(image, error) {
    if (!this.#sitting.images.includes(image)) return;
    const problem =
      error instanceof Problem
        ? await this.#explainSilence(image, error)
        : new Problem("answer_unreadable", { detail: String(error) });
    if (problem.code === "image_refused") {
      this.#sitting.update(image, {
        state: REFUSED,
        answer: problem.images[0] ?? null,
        requestId: problem.requestId,
        problem,
      });
    } else if (problem.code === "server_away" || ASKS_FOR_KEY.includes(problem.code)) {
      this.pause();
      this.#sitting.update(image, { state: WAITING, fraction: 0, tries: 0 });
      this.dispatchEvent(new CustomEvent(problem.code === "server_away" ? "away" : "key", { detail: problem }));
    } else if (TRIED_AGAIN.includes(problem.code) && image.tries < MOST_TRIES) {
      this.#waitAndTryAgain(image, problem);
    } else {
      this.#sitting.update(image, { state: FAILED, problem, requestId: problem.requestId });
    }
  }

  /** Tell a server that is away from a file that is gone and a connection that was closed: a browser calls all the same. */
  async #explainSilence(image, problem) {
    if (problem.code !== "server_away") return problem;
    try {
      await image.file.slice(0, 1).arrayBuffer();
    } catch {
      return new Problem("file_gone");
    }
    return (await isAlive()) ? new Problem("connection_closed") : problem;
  }

  #waitAndTryAgain(image, problem) {
    const seconds = Math.min(LONGEST_WAIT, problem.retryAfter || 2 ** image.tries);
    this.#sitting.update(image, { state: WAITING, fraction: 0, problem, isHeld: true });
    setTimeout(() => {
      this.#sitting.update(image, { isHeld: false });
      this.pump();
    }, 1000 * seconds);
  }
}
