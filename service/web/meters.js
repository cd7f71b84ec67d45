/** Figures over the last seconds: a median, and a rate. */

/** Keeps the values of the last `spanMs`. Times are milliseconds of `performance.now()`. */
export class Meter {
  #entries = [];
  #spanMs;

  constructor(spanMs = 2_000) {
    this.#spanMs = spanMs;
  }

  add(value, now) {
    this.#entries.push({ value, now });
    this.#forget(now);
  }

  /** The median of the values; null where there is none. */
  median(now) {
    this.#forget(now);
    if (!this.#entries.length) return null;
    const values = this.#entries.map(({ value }) => value).sort((a, b) => a - b);
    const middle = values.length >> 1;
    return values.length % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  }

  /** Values per second. */
  rate(now) {
    this.#forget(now);
    return (this.#entries.length * 1_000) / this.#spanMs;
  }

  #forget(now) {
    while (this.#entries.length && this.#entries[0].now <= now - this.#spanMs) this.#entries.shift();
  }
}
