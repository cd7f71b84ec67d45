/** The choices of the person at the page, kept in the browser. */

/** What was chosen before; null where nothing was, or the browser keeps nothing. */
export function remembered(name) {
  try {
    return localStorage.getItem(`visionai.${name}`);
  } catch {
    return null; // storage is switched off: the page works without
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`visionai.${name}`, value);
  } catch {
    // As above: it lasts until the page is closed.
  }
}
