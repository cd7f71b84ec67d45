/** The emotions' order and colours. Colours are Paul Tol's "bright" scheme, which colour-blind people can tell apart. */

const COLOURS = {
  happy: "#ccbb44",
  surprise: "#66ccee",
  neutral: "#bbbbbb",
  sad: "#4477aa",
  fear: "#aa3377",
  disgust: "#228833",
  angry: "#ee6677",
};

/** For labels of another model. */
const OTHERS = ["#ee7733", "#0077bb", "#009988", "#cc3311", "#33bbee"];

const ORDER = Object.keys(COLOURS);

export function colourOf(emotion) {
  if (emotion in COLOURS) return COLOURS[emotion];
  let sum = 0;
  for (const letter of emotion) sum += letter.codePointAt(0);
  return OTHERS[sum % OTHERS.length];
}

/** Emotion names in the order in which the page always shows them. */
export function inOrder(names) {
  const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}
