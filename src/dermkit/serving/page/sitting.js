// The images of this sitting and their answers. They live in the memory of the page, and end with it.

/** What can be true of an image; the first three are not finished. */
export const WAITING = "waiting";
export const SENDING = "sending";
export const SCORING = "scoring";
export const ANSWERED = "answered";
export const REFUSED = "refused";
export const FAILED = "failed";

const UNFINISHED = [WAITING, SENDING, SCORING];

/** Says "images" when some were added or removed, "change" of one image, "finish" when it is done with, and "select". */
export class Sitting extends EventTarget {
  images = [];
  selected = null;
  isSaved = true;

  /** Add files as images that wait; returns them. */
  add(files) {
    const added = files.map(newImage);
    this.images.push(...added);
    this.#say("images");
    if (!this.selected && added.length) this.select(added[0]);
    return added;
  }

  /** Change what is known of an image, and tell whoever shows it. */
  update(image, changes) {
    Object.assign(image, changes);
    if (changes.state === ANSWERED) this.isSaved = false;
    this.#say("change", image);
    if (changes.state && !UNFINISHED.includes(changes.state)) this.#say("finish", image);
  }

  select(image) {
    this.selected = image;
    this.#say("select", image);
  }

  /** Select the image that lies `step` places on, if there is one. */
  step(step) {
    const next = this.images[this.images.indexOf(this.selected) + step];
    if (next) this.select(next);
  }

  remove(image) {
    const place = this.images.indexOf(image);
    if (place < 0) return;
    this.images.splice(place, 1);
    forget(image);
    this.#say("images");
    if (this.selected === image) this.select(this.images[place] ?? this.images[place - 1] ?? null);
  }

  clear() {
    this.images.splice(0).forEach(forget);
    this.isSaved = true;
    this.#say("images");
    this.select(null);
  }

  get unfinished() {
    return this.images.filter((image) => UNFINISHED.includes(image.state));
  }

  #say(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function forget(image) {
  for (const url of [image.thumbnail, image.preview, ...[...image.maps.values()].map((map) => map.url)]) {
    if (url) URL.revokeObjectURL(url);
  }
}

// What is known of an image: its file, where it is on its way, what came back, and what is shown of it.
function newImage({ file, name }) {
  return {
    file,
    name,
    time: new Date(),
    metadata: {},
    state: WAITING,
    fraction: 0,
    tries: 0,
    isHeld: false,
    answer: null,
    problem: null,
    operatingPoint: "",
    modelKey: "",
    requestId: "",
    thumbnail: "",
    preview: "",
    isUnshowable: false,
    width: 0,
    height: 0,
    maps: new Map(),
    mapClass: "",
    cases: [],
  };
}
