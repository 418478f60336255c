// The page: its parts are joined here, and nowhere else do they know of each other.

import { shortWords } from "./answer_words.js";
import { showAnswer } from "./answer_view.js";
import { watchCamera } from "./camera.js";
import { Connection } from "./connection.js";
import { csvText, saveText } from "./csv.js";
import { announce, byId } from "./dom.js";
import { ImageList } from "./image_list.js";
import { watchIntake } from "./intake.js";
import { askForKey, watchKey } from "./key_entry.js";
import { watchModelCard } from "./model_card.js";
import { showModelSummary } from "./model_summary.js";
import { problemWords } from "./problem_words.js";
import { refusalWords } from "./refusal_words.js";
import { watchPrint } from "./print_pages.js";
import { ScoringQueue } from "./scoring_queue.js";
import { ANSWERED, REFUSED, Sitting } from "./sitting.js";
import { watchTheme } from "./theme.js";
import { makePictures } from "./thumbnails.js";

const MOST_ANNOUNCED = 2;
const sitting = new Sitting();
const connection = new Connection();
const queue = new ScoringQueue(sitting);
const list = new ImageList(sitting);
const actions = {
  step: (by) => sitting.step(by),
  retry: (image) => queue.retry(image),
  rescore: (image, metadata) => {
    image.metadata = metadata;
    queue.retry(image);
  },
  takeCases: (image, cases) => sitting.update(image, { cases }),
};

queue.pause(); // until the model is known
watchTheme();
watchIntake(take);
watchCamera(take);
watchKey(() => connection.open());
watchModelCard(() => connection.model);
watchPrint(sitting, () => connection.model);

sitting.addEventListener("select", show);
sitting.addEventListener("change", ({ detail: image }) => image === sitting.selected && show());
sitting.addEventListener("finish", ({ detail: image }) => announceImage(image));
sitting.addEventListener("images", show);
connection.addEventListener("model", ({ detail: model }) => {
  queue.maxImageBytes = model.limits.max_image_bytes ?? Infinity;
  list.model = model;
  showModelSummary(model);
  show();
  queue.resume();
});
connection.addEventListener("key", ({ detail: problem }) => askForKey(problem));
queue.addEventListener("away", ({ detail: problem }) => connection.look(problem));
queue.addEventListener("key", ({ detail: problem }) => askForKey(problem));

byId("cancel-all").addEventListener("click", () => queue.cancelAll());
byId("export-csv").addEventListener("click", () => {
  const finished = sitting.images.filter((image) => !sitting.unfinished.includes(image));
  saveText(csvText(finished, connection.model), "dermkit-sitting.csv");
  sitting.isSaved = true;
});
byId("clear-sitting").addEventListener("click", () => byId("clear-dialog").showModal());
byId("clear-dialog").addEventListener("close", () => {
  if (byId("clear-dialog").returnValue === "clear") sitting.clear();
  byId("clear-dialog").returnValue = "";
});
addEventListener("beforeunload", (event) => {
  if (!sitting.isSaved) event.preventDefault();
});

connection.open();

/** Take files from any way in. note: what is to be said of them, "" for nothing. */
function take(files, note = "") {
  byId("intake-note").textContent = note;
  if (!files.length) return;
  const images = sitting.add(files);
  makePictures(images, (image) => sitting.images.includes(image) && sitting.update(image, {}));
  queue.pump();
}

function show() {
  showAnswer(sitting.selected, sitting.images, connection.model, actions);
}

function announceImage(image) {
  if (sitting.unfinished.length > MOST_ANNOUNCED) return; // of many, the list is read; the last are said again
  if (image.state === ANSWERED) announce(`${image.name}: ${shortWords(image, connection.model)}`);
  else if (image.state === REFUSED)
    announce(`${image.name}: refused. ${refusalWords(image.answer?.refusal?.reason).join(" ")}`);
  else announce(`${image.name}: not scored. ${problemWords(image.problem.code).title}.`);
}
