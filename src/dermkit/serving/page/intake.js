// The ways in: drop, paste, files, a folder. Each ends in a list of files with names.

import { byId } from "./dom.js";
import { counted } from "./numbers.js";

const IMAGE_SUFFIX = /\.(jpe?g|png|webp|bmp|tiff?|heic|heif|avif|gif|dcm|dicom)$/i;

/** Call `take` with [{file, name}] of whatever people drop, paste or choose, and with what is to be said of it. */
export function watchIntake(take) {
  watchButtons(take);
  watchDrops(take);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) {
      event.preventDefault();
      take(files.map((file) => ({ file, name: file.name || "pasted image" })));
    }
  });
}

function watchButtons(take) {
  byId("choose-images").addEventListener("click", () => byId("image-files").click());
  byId("choose-folder").addEventListener("click", () => byId("image-folder").click());
  byId("image-files").addEventListener("change", (event) => {
    take([...event.target.files].map((file) => ({ file, name: file.name })));
    event.target.value = "";
  });
  byId("image-folder").addEventListener("change", (event) => {
    takeFolder(
      [...event.target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })),
      take,
    );
    event.target.value = "";
  });
}

function watchDrops(take) {
  const veil = byId("drop-veil");
  let depth = 0; // dragenter and dragleave come for every element on the way
  const show = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    veil.hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => holdsFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => holdsFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault(); // else the browser would leave this page for the image
    show(0);
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
    if (entries.some((entry) => entry.isDirectory))
      takeFolder((await Promise.all(entries.map(filesOf))).flat(), take);
    else take(files);
  });
}

function holdsFiles(event) {
  return [...(event.dataTransfer?.types ?? [])].includes("Files");
}

/** Take the images of a folder; whatever else lies in it, and hidden files, are left out and counted. */
function takeFolder(files, take) {
  const images = files.filter(
    ({ name }) => IMAGE_SUFFIX.test(name) && !name.split("/").some((part) => part.startsWith(".")),
  );
  const n = files.length - images.length;
  const leftOut = n ? `; ${counted(n, "other file")} left out` : "";
  take(
    images,
    images.length
      ? `${counted(images.length, "image")} of the folder${leftOut}.`
      : `There are no images in this folder${leftOut}.`,
  );
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: entry.fullPath.replace(/^\//, "") }];
  }
  return (await Promise.all((await childrenOf(entry)).map(filesOf))).flat();
}

async function childrenOf(directory) {
  const reader = directory.createReader();
  const children = [];
  for (;;) {
    // a reader gives a hundred at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return children;
    children.push(...some);
  }
}
