/** What screen readers are told: what lasts, and not more than once in a while. */

const LASTS_MS = 1_500;
const PAUSE_MS = 6_000;

/** Speaks through a live region. A camera's emotions change many times a second; `settle` lets most of it pass. */
export class Announcer {
  #region;
  #spoken = null; // a key; that of no face is a text too, the empty one
  #candidate = null;
  #since = 0;
  #spokenAt = -Infinity;

  constructor(region) {
    this.#region = region;
  }

  /** Say it now. */
  say(text) {
    this.#region.textContent = text;
  }

  /** Begin anew, with nothing said. */
  reset() {
    this.#spoken = this.#candidate = null;
    this.#spokenAt = -Infinity;
    this.say(""); // the same text again is news only to a region without it
  }

  /** Say it once it has been the same for a while, if it is new and nothing was said just before. */
  settle(key, text, now) {
    if (key !== this.#candidate) {
      this.#candidate = key;
      this.#since = now;
    }
    const lasts = now - this.#since >= LASTS_MS;
    if (!lasts || key === this.#spoken || now - this.#spokenAt < PAUSE_MS) return;
    this.#spoken = key;
    this.#spokenAt = now;
    this.say(text);
  }
}
