/** Boxes with labels over an image, on a canvas. */

import { colourOf } from "./emotions.js";
import { emotionName, percent, t } from "./i18n.js";

/** A face's heading where faces are told apart: the id that follows it through a stream, or its place. */
export const faceTitle = (face, index) => t("face", { number: face.face_id ?? index + 1 });

/** Fit the canvas to its box on the screen, in device pixels; its context, scaled to CSS pixels, and its size. */
export function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  const pixels = { width: Math.round(width * ratio), height: Math.round(height * ratio) };
  if (canvas.width !== pixels.width || canvas.height !== pixels.height) Object.assign(canvas, pixels);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Where an image of a size lies in a box that contains it whole (CSS `object-fit: contain`). */
export function contain(size, box) {
  const scale = Math.min(box.width / size.width, box.height / size.height);
  return { scale, left: (box.width - size.width * scale) / 2, top: (box.height - size.height * scale) / 2 };
}

/**
 * Draw faces over the image that they were found in.
 * `size` is the image's, in pixels; the canvas covers the element that shows it with `object-fit: contain`.
 */
export function drawFaces(canvas, faces, size, { mirrored = false } = {}) {
  const { context, width, height } = prepare(canvas);
  const { scale, left, top } = contain(size, { width, height });
  const labels = [];
  for (const [index, face] of faces.entries()) {
    const [x, y, w, h] = face.box;
    const from = mirrored ? size.width - x - w : x;
    const box = [left + from * scale, top + y * scale, w * scale, h * scale];
    drawBox(context, box, colourOf(face.emotion_name));
    labels.push([box, face, index]);
  }
  // Above all boxes, so that a neighbour's frame never runs through a word.
  for (const [box, face, index] of labels) {
    const name = faces.length > 1 ? `${face.face_id ?? index + 1} · ` : "";
    drawLabel(context, box, `${name}${emotionName(face.emotion_name)} ${percent(face.confidence)}`, face, width);
  }
}

function drawBox(context, [x, y, w, h], colour) {
  const radius = Math.min(14, w / 6, h / 6);
  context.beginPath();
  context.roundRect(x, y, w, h, radius);
  context.lineJoin = "round";
  context.strokeStyle = "rgb(0 0 0 / 55%)"; // so that the colour shows on a bright image
  context.lineWidth = 5;
  context.stroke();
  context.strokeStyle = colour;
  context.lineWidth = 3;
  context.stroke();
}

function drawLabel(context, [x, y], text, face, width) {
  const high = 26;
  context.font = `600 14px ${getComputedStyle(document.body).fontFamily}`;
  const wide = Math.min(context.measureText(text).width + 34, width - 8);
  const left = Math.max(4, Math.min(x, width - wide - 4));
  const top = Math.max(4, y - high - 6);
  context.beginPath();
  context.roundRect(left, top, wide, high, 8);
  context.fillStyle = "rgb(9 13 13 / 82%)";
  context.fill();
  context.beginPath();
  context.roundRect(left + 8, top + 8, 10, 10, 3);
  context.fillStyle = colourOf(face.emotion_name);
  context.fill();
  context.fillStyle = "#ffffff";
  context.textBaseline = "middle";
  context.fillText(text, left + 25, top + high / 2 + 0.5, wide - 34); // narrower letters, where it has too many
}

/**
 * Stacked columns of shares, oldest first: each is {emotion: share} with a sum of 1, or null for a gap.
 * `order` is the order of the emotions, from the bottom.
 */
export function drawShares(canvas, columns, order) {
  const { context, width, height } = prepare(canvas);
  const step = width / columns.length;
  const gap = step > 5 ? 1 : 0;
  for (const [index, shares] of columns.entries()) {
    if (!shares) continue;
    let bottom = height;
    for (const emotion of order) {
      const high = (shares[emotion] ?? 0) * height;
      context.fillStyle = colourOf(emotion);
      // Half a pixel over the next column, where there is no gap: no hairlines between them.
      context.fillRect(index * step, bottom - high, step - gap + (gap ? 0 : 0.5), high);
      bottom -= high;
    }
  }
}
