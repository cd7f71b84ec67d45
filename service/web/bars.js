/** One face's emotions as bars, and lists of faces. Elements are kept and changed: nothing flickers, focus stays. */

import { faceTitle } from "./drawing.js";
import { colourOf, inOrder } from "./emotions.js";
import { emotionName, percent } from "./i18n.js";

/** An element with a class, text and children. */
export function element(tag, { className = "", text } = {}, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

/** A square in an emotion's colour. */
export function swatch(emotion) {
  const square = element("span", { className: "swatch" });
  square.style.setProperty("--emotion", colourOf(emotion));
  return square;
}

/** A bar that is full at a share of 1. The number stands beside it: it is not read out. */
export function bar(emotion, share) {
  const made = element("span", { className: "bar" });
  made.setAttribute("aria-hidden", "true");
  made.style.setProperty("--emotion", colourOf(emotion));
  made.style.setProperty("--share", share);
  return made;
}

/** The probabilities of one face as rows: name, bar, percentage. */
class Bars {
  element = element("div", { className: "bars" });
  #rows = new Map();

  show(probabilities) {
    const names = inOrder(Object.keys(probabilities));
    const best = names.reduce((a, b) => (probabilities[b] > probabilities[a] ? b : a));
    for (const name of names) {
      const share = probabilities[name];
      const { label, number, strip } = this.#rows.get(name) ?? this.#add(name);
      label.textContent = emotionName(name);
      number.textContent = percent(share);
      strip.style.setProperty("--share", share);
      for (const part of [label, number]) part.classList.toggle("lesser", name !== best);
    }
  }

  #add(name) {
    const row = {
      label: element("span"),
      strip: bar(name, 0),
      number: element("span", { className: "number" }),
    };
    this.element.append(row.label, row.strip, row.number);
    this.#rows.set(name, row);
    return row;
  }
}

/** One face: its emotion as a heading, its bars below. */
class FaceCard {
  element = element("li");
  #square = element("span", { className: "swatch" });
  #emotion = element("span");
  #title = element("span", { className: "number" });
  #bars = new Bars();

  constructor() {
    const heading = element("h3", { className: "face-name" }, this.#square, this.#emotion, this.#title);
    this.element.append(heading, this.#bars.element);
  }

  /** `alone`: there is no other face that it must be told apart from. */
  show(face, index, alone) {
    this.#square.style.setProperty("--emotion", colourOf(face.emotion_name));
    this.#emotion.textContent = `${emotionName(face.emotion_name)} ${percent(face.confidence)}`;
    this.#title.textContent = alone ? "" : faceTitle(face, index);
    this.#bars.show(face.probabilities ?? { [face.emotion_name]: face.confidence });
  }
}

/** A list of faces in an element; a face keeps its card through a stream where it has an id. */
export class FaceList {
  #list;
  #cards = new Map();

  constructor(list) {
    this.#list = list;
  }

  show(faces) {
    const keys = faces.map((face, index) => face.face_id ?? `at ${index}`);
    for (const [key, card] of this.#cards) {
      if (keys.includes(key)) continue;
      card.element.remove();
      this.#cards.delete(key);
    }
    for (const [index, face] of faces.entries()) {
      let card = this.#cards.get(keys[index]);
      if (!card) {
        card = new FaceCard();
        this.#cards.set(keys[index], card);
        this.#list.append(card.element);
      }
      card.show(face, index, faces.length === 1);
    }
  }
}
