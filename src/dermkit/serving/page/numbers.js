// Numbers and short texts as people read them.

/** Return a fraction as percent: "72.4 %", and never "0 %" or "100 %" of what is not. */
export function percent(fraction) {
  if (fraction > 0 && fraction < 0.0005) return "< 0.1 %";
  if (fraction < 1 && fraction > 0.9995) return "> 99.9 %";
  return `${(100 * fraction).toFixed(1)} %`;
}

/** Return a fraction as whole percent, for targets that are whole. */
export function wholePercent(fraction) {
  return `${+(100 * fraction).toFixed(1)} %`;
}

/** Return a count with its noun: "1 image", "12 images". */
export function counted(n, noun, plural = `${noun}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? noun : plural}`;
}

/** Return bytes as people say them. */
export function bytes(n) {
  return n < 1e6 ? `${Math.max(1, Math.round(n / 1024))} KB` : `${(n / 2 ** 20).toFixed(1)} MB`;
}

/** Return small numbers as words, as sentences have them. */
export function numberWord(n) {
  return ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"][n] ?? String(n);
}

/** Return words joined as in a sentence: "a", "a or b", "a, b or c". */
export function joined(words, last = "or") {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

/** Return a text as a sentence: it begins with a capital and ends with a stop. */
export function sentence(text) {
  return text ? `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.` : "";
}
