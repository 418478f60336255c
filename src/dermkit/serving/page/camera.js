// The camera: a photograph becomes an image like any other. What the browser refuses is said in plain words.

import { byId } from "./dom.js";
import { counted } from "./numbers.js";

const REFUSALS = {
  NotAllowedError:
    "The browser did not allow the camera. Allow it in the settings of this site (beside the address), then open the camera again.",
  SecurityError:
    "The browser did not allow the camera. Allow it in the settings of this site (beside the address), then open the camera again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera is in use by another program. Close that program, then open the camera again.",
  AbortError: "The camera stopped. Open it again.",
};
const NOT_SECURE =
  "The browser gives the camera only to pages over https, or on the machine of the server itself (http://127.0.0.1).";

let stream = null;
let isFront = false;
let nTaken = 0;

/** Call `take` with [{file, name}] of each photograph. */
export function watchCamera(take) {
  const dialog = byId("camera-dialog");
  byId("open-camera").addEventListener("click", () => {
    dialog.showModal();
    byId("camera-count").textContent = "";
    start();
  });
  byId("close-camera").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", stop);
  byId("switch-camera").addEventListener("click", () => {
    isFront = !isFront;
    start();
  });
  byId("take-photograph").addEventListener("click", async () => {
    const file = await photograph();
    nTaken += 1;
    byId("camera-count").textContent = `${counted(nTaken, "photograph")} taken`;
    take([{ file, name: `photograph-${nTaken}.jpg` }]);
  });
}

async function start() {
  stop();
  show("Starting the camera …");
  try {
    if (!navigator.mediaDevices?.getUserMedia) throw new DOMException("", "NotSecure");
    stream = await navigator.mediaDevices.getUserMedia({
      video: {
        facingMode: { ideal: isFront ? "user" : "environment" },
        width: { ideal: 2560 },
        height: { ideal: 1920 },
      },
    });
  } catch (error) {
    show(
      error.name === "NotSecure" ? NOT_SECURE : (REFUSALS[error.name] ?? "The camera could not be started."),
      true,
    );
    return;
  }
  const video = byId("camera-video");
  video.srcObject = stream;
  await video.play();
  video.classList.remove("off");
  byId("take-photograph").disabled = false;
  show("Hold the camera still and near, with one lesion in the middle, sharp and evenly lit.");
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(
    (device) => device.kind === "videoinput",
  );
  byId("switch-camera").hidden = cameras.length < 2;
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("take-photograph").disabled = true;
  byId("camera-video").classList.add("off");
}

function show(text, isSerious = false) {
  byId("camera-message").textContent = text;
  byId("camera-message").classList.toggle("serious", isSerious);
}

function photograph() {
  const video = byId("camera-video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) =>
    canvas.toBlob(
      (blob) => resolve(new File([blob], "photograph.jpg", { type: "image/jpeg" })),
      "image/jpeg",
      0.95,
    ),
  );
}
