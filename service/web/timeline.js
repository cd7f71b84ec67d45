/** The session's emotions, second by second: mean probabilities of all faces seen. */

import { element, swatch } from "./bars.js";
import { drawShares } from "./drawing.js";
import { inOrder } from "./emotions.js";
import { emotionName, percent, t } from "./i18n.js";

const SECONDS = 120;

/** Sums of probabilities per second, for the last two minutes. Times are in seconds. */
export class Session {
  #seconds = new Map(); // second -> {count, sums}

  add(faces, time) {
    const second = Math.floor(time);
    const entry = this.#seconds.get(second) ?? { count: 0, sums: {} };
    for (const { emotion_name, probabilities = { [emotion_name]: 1 } } of faces) {
      entry.count++;
      for (const [name, share] of Object.entries(probabilities)) entry.sums[name] = (entry.sums[name] ?? 0) + share;
    }
    if (entry.count) this.#seconds.set(second, entry);
    for (const old of this.#seconds.keys()) if (old <= second - SECONDS) this.#seconds.delete(old);
  }

  /** Mean shares for each of the last seconds, oldest first; null where no face was seen. */
  columns(time) {
    const last = Math.floor(time);
    return Array.from({ length: SECONDS }, (_, index) => {
      const entry = this.#seconds.get(last - SECONDS + 1 + index);
      return entry ? mean(entry) : null;
    });
  }

  /** Mean shares over the same seconds; null where no face was seen. */
  shares(time) {
    const total = { count: 0, sums: {} };
    for (const [second, { count, sums }] of this.#seconds) {
      if (second <= Math.floor(time) - SECONDS) continue; // only what is added makes the session forget
      total.count += count;
      for (const [name, sum] of Object.entries(sums)) total.sums[name] = (total.sums[name] ?? 0) + sum;
    }
    return total.count ? mean(total) : null;
  }
}

const mean = ({ count, sums }) =>
  Object.fromEntries(Object.entries(sums).map(([name, sum]) => [name, sum / count]));

/** Draws a session: columns, and a legend with the shares. */
export class Timeline {
  #canvas;
  #legend;
  #session;

  constructor(canvas, legend, session) {
    this.#canvas = canvas;
    this.#legend = legend;
    this.#session = session;
  }

  draw(time) {
    const shares = this.#session.shares(time);
    const order = inOrder(Object.keys(shares ?? {}));
    drawShares(this.#canvas, this.#session.columns(time), order);
    const parts = order.map((name) => [name, `${emotionName(name)} ${percent(shares[name])}`]);
    this.#legend.replaceChildren(...parts.map(([name, text]) => element("li", {}, swatch(name), text)));
    const label = shares ? t("sessionShares", { shares: parts.map(([, text]) => text).join(", ") }) : t("sessionEmpty");
    this.#canvas.setAttribute("aria-label", label);
  }
}
