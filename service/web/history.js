/** History and statistics of stored predictions: shares, means, counts, over a window of time. */

import { bar, element, swatch } from "./bars.js";
import { drawShares } from "./drawing.js";
import { inOrder } from "./emotions.js";
import { clock, decimal, emotionName, errorText, languages, milliseconds, percent, t } from "./i18n.js";
import { remember, remembered } from "./storage.js";

const PAGE = 20;
// Predictions that are on their way into the database are looked for again, so soon and so often.
const AGAIN_MS = 400;
const AGAIN = 3;
// Parts of each window, by its seconds. Those of an hour and more are whole minutes, which the server has counted.
const BUCKETS = { 600: 60, 3600: 60, 86400: 48, 604800: 56 };

const $ = (id) => document.getElementById(id);

/** In seconds. */
const chosenWindow = () => Number(document.querySelector("#window :checked").value);

/** A timestamp of the wire: UTC where it has no offset. */
const parseTime = (text) => new Date(/Z|[+-]\d\d:\d\d$/.test(text) ? text : `${text}Z`);

/** Shares in each part of the window, from counts; null where nothing was stored. */
export function toShares(buckets) {
  return buckets.map((counts) => {
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    return total ? Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, count / total])) : null;
  });
}

export class History {
  #link;
  #stats = null;
  #asked = 0; // when, in milliseconds
  #latest = [];
  #next = null; // the cursor of the page after
  #extending = null; // the list whose page after is on its way
  #loads = 0; // what an earlier one has asked for comes too late
  #loading; // the latest of them
  #problem = null;
  #shown = false;
  #again = null;

  constructor(link) {
    this.#link = link;
    const before = remembered("window");
    for (const input of $("window").elements) if (input.value === before) input.checked = true;
    $("window").addEventListener("change", () => {
      remember("window", String(chosenWindow()));
      this.#load();
    });
    $("refresh").addEventListener("click", () => this.#load());
    $("more").addEventListener("click", () => this.#more());
    languages.addEventListener("change", () => this.#render());
    link.addEventListener("state", () => {
      // What is shown is another connection's, whose list may be another. The first answer is on its way already.
      if (link.state === "ready" && this.#shown && (this.#stats || this.#problem)) this.#load();
    });
    new ResizeObserver(() => this.#drawChart()).observe($("over-time"));
  }

  show(shown) {
    this.#shown = shown;
    if (shown) this.#load();
  }

  #load(again) {
    this.#loading = this.#read(again);
  }

  async #read(again = AGAIN) {
    clearTimeout(this.#again);
    const load = ++this.#loads;
    const windowS = chosenWindow();
    try {
      const asked = Date.now();
      const stats = await this.#link.client.stats({ windowS, buckets: BUCKETS[windowS] });
      if (load !== this.#loads) return;
      this.#stats = stats;
      this.#asked = asked;
      const page = await this.#link.client.history({ limit: PAGE });
      if (load !== this.#loads) return;
      this.#latest = page.predictions;
      this.#next = page.next;
      this.#problem = null;
      // What was pending for the statistics may be in the list that was asked for after them.
      const pending = stats.pending || page.pending;
      if (pending && again && this.#shown) this.#again = setTimeout(() => this.#load(again - 1), AGAIN_MS);
    } catch (error) {
      const problem = this.#link.explain(error); // which may ask for a token
      if (load !== this.#loads) return;
      this.#problem = problem;
    }
    this.#render();
  }

  async #more() {
    // Each brings another list, and ends early where another has begun meanwhile.
    for (let loading = null; loading !== this.#loading; ) await (loading = this.#loading);
    const latest = this.#latest;
    if (this.#extending === latest || this.#next === null) return; // it was pressed twice, or that list is all there is
    this.#extending = latest;
    clearTimeout(this.#again); // it would take away again what this brings
    const shown = latest.length;
    try {
      const page = await this.#link.client.history({ limit: PAGE, cursor: this.#next });
      if (latest !== this.#latest) return; // they were asked for anew meanwhile, and this page does not follow them
      latest.push(...page.predictions);
      this.#next = page.next;
    } catch (error) {
      const problem = this.#link.explain(error);
      if (latest !== this.#latest) return;
      this.#problem = problem;
    } finally {
      if (this.#extending === latest) this.#extending = null;
    }
    const pressed = document.activeElement === $("more");
    this.#render();
    // The button goes with the last page: the keyboard goes on at what it has brought.
    if (pressed && $("more").hidden) this.#focusRow(Math.min(shown, this.#latest.length - 1));
  }

  #focusRow(index) {
    const row = $("latest").rows[index];
    if (row === undefined) return;
    row.tabIndex = -1;
    row.focus();
  }

  /** What has the keyboard may go, such as the button for more where a new connection's list is short. */
  #render() {
    const held = $("history-content").contains(document.activeElement);
    this.#fill();
    if (held && document.activeElement.offsetParent === null) $("refresh").focus();
  }

  #fill() {
    const stats = this.#stats;
    const problem = this.#problem && (this.#problem.code === "unknown_command" ? t("historyMissing") : errorText(this.#problem));
    const text = problem ?? (stats?.count === 0 ? t("historyEmpty") : "");
    $("history-empty").textContent = text;
    $("history-empty").hidden = text === "";
    $("history-content").hidden = text !== "" || stats === null;
    if ($("history-content").hidden) return;

    $("stats-count").textContent = decimal(stats.count);
    $("stats-confidence").textContent = stats.mean_confidence === null ? "–" : percent(stats.mean_confidence);
    for (const name of ["p50", "p99"]) {
      const value = stats.latency_ms?.[name];
      $(`stats-${name}`).textContent = value === null || value === undefined ? "–" : milliseconds(value);
    }
    $("shares").replaceChildren(...inOrder(Object.keys(stats.emotions)).map((name) => this.#share(name)));
    $("latest").replaceChildren(...this.#latest.map(latestRow));
    // Of clients without a user the server counts all, and lists to each what its connection has made.
    $("latest-empty").hidden = this.#latest.length > 0;
    $("latest-table").hidden = this.#latest.length === 0;
    $("more").hidden = this.#next === null;
    this.#drawChart();
  }

  #share(name) {
    const { count, mean_confidence: confidence } = this.#stats.emotions[name];
    const share = count / this.#stats.count;
    const heading = element("th", {}, label(name));
    heading.scope = "row";
    return element(
      "tr",
      {},
      heading,
      element("td", {}, element("span", { className: "unseen", text: percent(share) }), bar(name, share)),
      element("td", { text: decimal(count) }),
      element("td", { text: confidence === null ? "–" : percent(confidence) }),
    );
  }

  #drawChart() {
    const canvas = $("over-time");
    if (canvas.clientWidth === 0 || this.#stats === null) return;
    const { emotions, buckets = [], since, window_s: seconds } = this.#stats;
    // The server may begin at a full minute, and has its own clock.
    const from = since === undefined ? this.#asked - seconds * 1_000 : parseTime(since).getTime();
    const to = from + seconds * 1_000;
    drawShares(canvas, toShares(buckets), inOrder(Object.keys(emotions)));
    const withDay = seconds >= 86_400;
    const [start, end] = [clock(new Date(from), withDay), clock(new Date(to), withDay)];
    $("over-time-from").textContent = start;
    $("over-time-to").textContent = end;
    canvas.setAttribute("aria-label", t("overTimeShares", { from: start, to: end }));
  }
}

function label(emotion) {
  return element("span", { className: "label" }, swatch(emotion), emotionName(emotion));
}

function latestRow({ timestamp, emotion_name: emotion, confidence }) {
  return element(
    "tr",
    {},
    element("td", { text: clock(parseTime(timestamp), true) }),
    element("td", {}, ...(emotion === null ? ["–"] : [label(emotion)])),
    element("td", { text: confidence === null ? "–" : percent(confidence) }),
  );
}
