// Why an image was refused, in plain words, and what to do. A test compares these codes with those of the server.

/** Reason code -> what is wrong with the image, and what to do. */
export const REFUSAL_WORDS = {
  missing: ["There is no file.", "Add it again."],
  unreadable: ["The file cannot be read.", "Check that it is a file and that you may open it."],
  empty: ["The file is empty.", "Download or copy it again."],
  not_an_image: ["This is not an image.", "If it should be one, download it again."],
  format_not_allowed: ["This format of image is not read.", "Save it as JPEG or PNG."],
  too_large: ["It has too many bytes or pixels.", "Save it smaller."],
  too_small: ["It has too few pixels.", "Use the original, not its thumbnail."],
  truncated: ["The file is cut short.", "Download or copy it again."],
  animated: ["The file holds several pictures.", "Save the one you mean as JPEG or PNG."],
  multi_page: ["The file holds several pages.", "Save the one you mean as JPEG or PNG."],
  undefined_pixels: ["Some of its pixels are not defined.", "Save it anew in an image program."],
  broken: ["The file is damaged.", "Download it again, or open it in an image program and save it anew."],
  out_of_memory: [
    "The server had too little memory for it.",
    "Save it smaller, or try again when the server is less busy.",
  ],
  out_of_time: ["Opening it took the server too long.", "Save it anew in an image program."],
  ended_worker: [
    "Opening it ended the program that reads images, so nobody should rely on this file.",
    "Save it anew in an image program.",
  ],
  not_scored: [
    "The model could not score it.",
    "Try again. If it happens again, save it anew in an image program.",
  ],
};

/** Return [what is wrong, what to do]. */
export function refusalWords(reason) {
  return REFUSAL_WORDS[reason] ?? [`The image was refused (${reason}).`, "Save it anew as JPEG or PNG."];
}
