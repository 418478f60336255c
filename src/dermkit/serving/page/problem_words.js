// Every problem of the API in plain words, and what to do. A test compares these codes with those of the server.

const AGAIN = true;

/** Problem code -> what happened, what to do, and whether trying again can help. */
export const PROBLEM_WORDS = {
  bad_request: {
    title: "The server did not understand the request",
    advice: "Reload the page. If it happens again, a proxy between you and the server may change requests.",
    again: AGAIN,
  },
  key_missing: {
    title: "The server asks for an API key",
    advice: "Enter the key that whoever runs this server gave you.",
    again: AGAIN,
  },
  key_not_valid: {
    title: "The server does not take this API key",
    advice: "It may be mistyped, revoked or expired. Enter another, or ask whoever runs this server.",
    again: AGAIN,
  },
  scope_missing: {
    title: "This API key is not for that",
    advice: "Ask whoever runs this server for a key that allows predictions and heat maps.",
    again: AGAIN,
  },
  origin_not_allowed: {
    title: "The server takes requests from its own page alone",
    advice: "Open the page at the address that the server printed when it started.",
  },
  not_found: {
    title: "The server has nothing at this address",
    advice: "Page and server may be of different versions: reload the page.",
  },
  method_not_allowed: {
    title: "The server has other uses for this address",
    advice: "Page and server may be of different versions: reload the page.",
  },
  too_slow: {
    title: "The image arrived too slowly",
    advice: "The connection is slow. Try again, or save the image smaller.",
    again: AGAIN,
  },
  too_large: {
    title: "The image is larger than this server takes",
    advice: "Save it smaller, for example as JPEG, and add it again.",
  },
  too_many_images: {
    title: "The request held more images than this server takes",
    advice: "Page and server may be of different versions: reload the page.",
  },
  wrong_type: {
    title: "The server did not take the form of the request",
    advice: "Page and server may be of different versions: reload the page.",
  },
  host_not_allowed: {
    title: "The server is not known by this name",
    advice:
      "Open the page at the address that the server printed, or let whoever runs it add this name with --allow-host.",
  },
  field_not_valid: {
    title: "A value was not accepted",
    advice: "Correct the value that is named below.",
    again: AGAIN,
  },
  image_refused: { title: "The image was refused", advice: "See the reason below." },
  too_many_attempts: {
    title: "Too many wrong API keys were tried",
    advice: "Wait a minute, then enter the key again.",
    again: AGAIN,
  },
  headers_too_large: {
    title: "The browser sent too much with the request",
    advice: "Delete the cookies of this address, or open the page in a private window.",
  },
  fault: {
    title: "The server made an error",
    advice: "Try again. If it happens again, give whoever runs the server the request number below.",
    again: AGAIN,
  },
  not_supported: { title: "This model cannot do that", advice: "The reason is below." },
  queue_full: {
    title: "The server is busy",
    advice: "As many images wait as may wait. This page tries again by itself.",
    again: AGAIN,
  },
  not_ready: { title: "The model is not loaded yet", advice: "This page tries again by itself.", again: AGAIN },
  stopping: {
    title: "The server is stopping",
    advice: "This page tries again by itself, in case it is started anew.",
    again: AGAIN,
  },
  not_logged: {
    title: "The prediction could not be logged, so the server did not give it",
    advice: "Tell whoever runs the server. This page tries again by itself.",
    again: AGAIN,
  },
  log_away: {
    title: "The server cannot reach its prediction log",
    advice: "Try again later, and tell whoever runs the server.",
    again: AGAIN,
  },
  // What no server says: these are of this page.
  server_away: {
    title: "The server does not answer",
    advice: "Is it still running? This page looks for it every few seconds.",
    again: AGAIN,
  },
  connection_closed: {
    title: "The server closed the connection before it answered",
    advice: "Try again. If only this image does it, save it anew or smaller.",
    again: AGAIN,
  },
  file_gone: {
    title: "The file cannot be read any more",
    advice: "It was moved, changed or deleted since you chose it. Add it again.",
  },
  answer_unreadable: {
    title: "The answer could not be read",
    advice: "Something between you and the server may have changed it. Try again.",
    again: AGAIN,
  },
};

/** Codes after which the page waits and tries again without being asked. */
export const TRIED_AGAIN = ["queue_full", "not_ready", "stopping", "not_logged", "too_slow"];

/** Codes that a key would mend. */
export const ASKS_FOR_KEY = ["key_missing", "key_not_valid", "scope_missing", "too_many_attempts"];

/** Return the words of a code; one that this page does not know says so. */
export function problemWords(code) {
  return (
    PROBLEM_WORDS[code] ?? {
      title: `The server answered with a problem that this page does not know (${code})`,
      advice: "Page and server may be of different versions: reload the page.",
      again: AGAIN,
    }
  );
}
