// The API of the server that this page came from: one request each, as a promise.

let key = "";

/** A problem that the server answered with, or one of this page's own. code: of problem_words.js. */
export class Problem extends Error {
  constructor(code, { detail = "", requestId = "", retryAfter = 0, images = [] } = {}) {
    super(code);
    Object.assign(this, { code, detail, requestId, retryAfter, images });
  }
}

/** Use an API key from now on; it is kept in this variable and nowhere else. */
export function useKey(text) {
  key = text;
}

export function readModel() {
  return send("GET", "/v1/model");
}

/** Ask for the answer about one image. metadata: age, sex and site, as far as they are known. */
export async function predict(file, metadata, options) {
  const form = new FormData();
  form.append("images", file, "image");
  if (Object.keys(metadata).length) form.append("metadata", JSON.stringify([metadata]));
  return send("POST", "/v1/predict", form, options);
}

/** Ask for the heat map of one image for one class. */
export async function explain(file, className, metadata, options) {
  const form = new FormData();
  form.append("image", file, "image");
  form.append("class_name", className);
  if (Object.keys(metadata).length) form.append("metadata", JSON.stringify([metadata]));
  return send("POST", "/v1/explain", form, options);
}

/** Say whether the server answers at all. */
export async function isAlive() {
  try {
    return (await fetch("/health", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

// XMLHttpRequest, since fetch does not say how much of an image was sent.
function send(method, path, body = null, { signal, onProgress } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.upload.addEventListener(
      "progress",
      (event) => event.lengthComputable && onProgress?.(event.loaded / event.total),
    );
    request.addEventListener("load", () => settle(request, resolve, reject));
    request.addEventListener("error", () => reject(new Problem("server_away")));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    if (signal?.aborted) reject(new DOMException("cancelled", "AbortError"));
    else request.send(body);
  });
}

function settle(request, resolve, reject) {
  let answer;
  try {
    answer = JSON.parse(request.responseText);
  } catch {
    reject(new Problem("answer_unreadable", { detail: `status ${request.status}` }));
    return;
  }
  if (request.status === 200) resolve(answer);
  else reject(problemOf(request, answer));
}

function problemOf(request, answer) {
  return new Problem(String(answer.code ?? "answer_unreadable"), {
    detail: answer.detail === answer.title ? "" : String(answer.detail ?? ""),
    requestId: String(answer.request_id ?? ""),
    retryAfter: Number(request.getResponseHeader("Retry-After")) || 0,
    images: answer.images ?? [],
  });
}
