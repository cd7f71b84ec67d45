/** Photos: chosen, dropped or pasted; each with its faces or what went wrong. */

import { element, FaceList } from "./bars.js";
import { contain, drawFaces } from "./drawing.js";
import { emotionName, errorText, languages, milliseconds, percent, t } from "./i18n.js";

const AT_ONCE = 4;
const TIMEOUT_MS = 120_000; // several large photos share a phone's slow line
const MAX_SHOWN = 60;
const MAX_CARDS = 4;
const LONGEST_SIDE = 1_024; // of what is kept to be drawn: a phone's photo is 50 MB as pixels

const $ = (id) => document.getElementById(id);

/** What a file shows, no larger than it is drawn; `width` and `height` are the photo's own. Null where it is no image. */
async function preview(file) {
  let whole;
  try {
    whole = await createImageBitmap(file);
    const { width, height } = whole;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const image = await createImageBitmap(whole, { resizeWidth, resizeHeight, resizeQuality: "medium" });
    return { image, width, height };
  } catch {
    return null; // the server says what is wrong with it
  } finally {
    whole?.close();
  }
}

/** One photo on the page: its image, and its outcome, in whichever language the page has. */
class Photo {
  element = element("li", { className: "card photo" });
  #file;
  #canvas = element("canvas");
  #heading = element("span", { className: "muted" });
  #outcome = element("div");
  #preview = null; // what is drawn below the boxes
  #options = { detect: "always" };
  #settled = null; // {prediction} or {error}
  #ask;
  #announce;

  /** `ask(file, options)` gets its prediction, `announce(text)` tells of it. */
  constructor(file, ask, announce) {
    this.#file = file;
    this.#ask = ask;
    this.#announce = announce;
    this.#canvas.setAttribute("role", "img");
    this.#outcome.tabIndex = -1;
    const title = element("p", { className: "title" }, element("strong", { className: "name", text: this.name }), this.#heading);
    const caption = element("figcaption", {}, title, this.#outcome);
    this.element.append(element("figure", {}, this.#canvas, caption));
    this.render();
  }

  get name() {
    return this.#file.name || t("photos");
  }

  /** Have it looked at; as before, where nothing else is said. */
  async predict(options = this.#options) {
    this.#options = options;
    this.#settled = null;
    this.render();
    this.#preview ??= await preview(this.#file);
    this.render();
    const sent = performance.now();
    try {
      const prediction = await this.#ask(this.#file, options);
      this.#settled = { prediction, took: performance.now() - sent };
    } catch (error) {
      this.#settled = { error };
    }
    this.render();
    this.#announce(this.summary());
  }

  /** Whether it was not looked at for want of a token, or of the server. */
  get refused() {
    return ["unauthorized", "token_needed", "cannot_connect"].includes(this.#settled?.error?.code);
  }

  /** Whether it was looked at; what was refused will be. */
  get done() {
    return this.#settled !== null && !this.refused;
  }

  /** Show it as it is, and in the page's language and width of now. */
  render() {
    const { prediction, error, took } = this.#settled ?? {};
    this.#heading.textContent = took === undefined ? "" : milliseconds(took);
    this.draw();
    if (error) this.#outcome.replaceChildren(...this.#problem(error));
    else if (prediction) this.#outcome.replaceChildren(...this.#result(prediction));
    else this.#outcome.replaceChildren(element("p", { className: "muted", text: t("working") }));
    this.#canvas.setAttribute("aria-label", this.summary());
  }

  /** The outcome in one sentence. */
  summary() {
    const { prediction, error } = this.#settled ?? {};
    if (error) return `${this.name}: ${errorText(error)}`;
    if (!prediction) return `${this.name}: ${t("working")}`;
    const { emotion_name: emotion, confidence } = prediction;
    return t("photoDone", { name: this.name, emotion: emotionName(emotion), share: percent(confidence) });
  }

  #result(prediction) {
    const faces = prediction.faces?.length ? prediction.faces : [prediction];
    const found = prediction.faces?.length ?? 0;
    const line = found === 0 ? t("tookWhole") : found === 1 ? t("faceFound") : t("facesFound", { number: found });
    const list = element("ul", { className: "faces" });
    new FaceList(list).show(faces.slice(0, MAX_CARDS));
    const more = faces.length - MAX_CARDS;
    const parts = [element("p", { className: "muted", text: line }), list];
    if (more > 0) parts.push(element("p", { className: "muted", text: t("moreFaces", { number: more }) }));
    return parts;
  }

  #problem(error) {
    const parts = [element("p", { className: "problem", text: errorText(error) })];
    if (error.code === "no_face") {
      const button = element("button", { text: t("wholeImage") });
      button.addEventListener("click", () => {
        this.#outcome.focus(); // the button goes: the keyboard stays at this photo
        this.predict({ detect: "never" });
      });
      parts.push(button);
    }
    return parts;
  }

  /** Draw it in the page's width of now, where it is seen. */
  draw() {
    const canvas = this.#canvas;
    canvas.hidden = this.#preview === null;
    if (!this.#preview || canvas.clientWidth === 0) return;
    const { image, width, height } = this.#preview;
    canvas.style.aspectRatio = `${width} / ${height}`;
    drawFaces(canvas, this.#settled?.prediction?.faces ?? [], { width, height });
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "destination-over";
    const { scale, left, top } = contain({ width, height }, { width: canvas.clientWidth, height: canvas.clientHeight });
    context.drawImage(image, left, top, width * scale, height * scale);
    context.globalCompositeOperation = "source-over";
  }
}

export class Photos {
  #link;
  #session;
  #announce;
  #fail; // shows an error
  #over; // takes back the errors that it is given a test for
  #photos = []; // latest first
  #waiting = [];
  #working = 0;

  /** `reveal` brings its tab to the front. */
  constructor(link, session, announcer, reveal, fail, over) {
    this.#link = link;
    this.#session = session;
    this.#fail = fail;
    this.#over = over;
    this.#announce = (text) => announcer.say(text);
    const add = (files) => {
      if (!files.length) return;
      if ($("photos").hidden) reveal();
      this.#add(files);
    };
    $("files").addEventListener("change", ({ target }) => {
      add([...target.files]);
      target.value = ""; // so that the same file can be chosen again
    });
    document.addEventListener("paste", ({ clipboardData }) => add([...clipboardData.files]));
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", ({ relatedTarget }) => {
      if (relatedTarget === null) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      add([...event.dataTransfer.files]);
    });
    link.addEventListener("state", () => {
      if (link.state !== "ready") return;
      const refused = this.#photos.filter((photo) => photo.refused && !this.#waiting.includes(photo));
      this.#enqueue(refused.reverse());
    });
    languages.addEventListener("change", () => this.show(true));
    let width = 0;
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width === width) return; // it is only longer: photos are as they were
      width = contentRect.width;
      for (const photo of this.#photos) photo.draw(); // and no more: one of its buttons may have the keyboard
    }).observe($("gallery"));
  }

  show(shown) {
    if (shown && !$("photos").hidden) for (const photo of this.#photos) photo.render();
  }

  /** Add what there is room for beside the photos that still wait or are looked at: none goes before it was. */
  #add(files) {
    const room = MAX_SHOWN - this.#photos.filter(({ done }) => !done).length;
    const leftOut = files[room];
    if (leftOut) this.#fail({ code: "too_many_photos", most: MAX_SHOWN, name: leftOut.name });
    else this.#over(({ code }) => code === "too_many_photos");
    const ask = (file, options) => this.#predict(file, options);
    const added = files.slice(0, room).map((file) => new Photo(file, ask, this.#announce));
    for (const photo of added) {
      this.#photos.unshift(photo);
      $("gallery").prepend(photo.element);
    }
    while (this.#photos.length > MAX_SHOWN) {
      const oldest = this.#photos.findLastIndex(({ done }) => done);
      this.#photos.splice(oldest, 1)[0].element.remove();
    }
    this.#enqueue(added);
  }

  #enqueue(photos) {
    this.#waiting.push(...photos);
    while (this.#working < AT_ONCE && this.#waiting.length) this.#work();
  }

  async #work() {
    this.#working++;
    await this.#link.forPhotos(async () => {
      while (this.#waiting.length) {
        await this.#waiting.shift().predict();
      }
    });
    this.#working--;
  }

  async #predict(file, options) {
    try {
      const prediction = await this.#link.forPhotos(async () => {
        await this.#link.stream(false, TIMEOUT_MS);
        return this.#link.client.predict(file, { ...options, timeoutMs: TIMEOUT_MS });
      });
      this.#session.add(prediction.faces ?? [], performance.now() / 1_000);
      return prediction;
    } catch (error) {
      // The browser's own, in its own language: of a folder that was dropped, or a file that is gone since.
      throw error instanceof DOMException ? { code: "unreadable" } : this.#link.explain(error);
    }
  }
}
