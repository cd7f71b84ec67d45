/** What screen readers are told: what lasts, and not more than once in a while. */

const LASTS_MS = 1_500;
const PAUSE_MS = 6_000;

/** Speaks through a live region. A camera's emotions change many times a second; `settle` lets most of it pass. */
export class Announcer {
  #region;
  #spoken = "";
  #candidate = "";
  #since = 0;
  #spokenAt = -Infinity;

  constructor(region) {
    this.#region = region;
  }

  /** Say it now. */
  say(text) {
    this.#region.textContent = text;
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
