/** The live view: camera, frames to the server, boxes and bars back. */

import { Announcer } from "./announcer.js";
import { FaceList } from "./bars.js";
import { Camera, CameraError } from "./camera.js";
import { drawFaces, prepare } from "./drawing.js";
import { FrameLoop } from "./frames.js";
import { decimal, emotionName, languages, milliseconds, percent, t } from "./i18n.js";
import { Meter } from "./meters.js";
import { Timeline } from "./timeline.js";

const MAX_CARDS = 6;
const REST_MS = 1_000; // after a fault, and where the server is overloaded and does not say for how long

const $ = (id) => document.getElementById(id);

const holdsKeyboard = (part) => part.contains(document.activeElement);

export class Live {
  #link;
  #session;
  #fail; // shows an error
  #over; // takes back the errors that it is given a test for
  #camera = new Camera($("video"));
  #loop = new FrameLoop($("video"), (blob, size) => this.#send(blob, size));
  #faces = new FaceList($("faces"));
  #timeline;
  #announcer = new Announcer($("announcer"));
  #roundTrip = new Meter();
  #serverTime = new Meter();
  #shown = false; // its tab is the one that is looked at
  #paused = false;
  #running = false;
  #restUntil = 0; // no frames before
  #busy = false; // the rest is because the server is
  #newest = 0; // when the frame was sent whose answer is shown, or when what was shown was taken away
  #seen = null; // what is shown of it: {faces, size}

  constructor(link, session, fail, over) {
    this.#link = link;
    this.#session = session;
    this.#fail = fail;
    this.#over = over;
    this.#timeline = new Timeline($("timeline"), $("session-legend"), session);
    $("start").addEventListener("click", () => this.#start());
    $("stop").addEventListener("click", () => this.#stop());
    $("pause").addEventListener("click", () => this.#pause(!this.#paused));
    $("cameras").addEventListener("change", ({ target }) => this.#start(target.value));
    this.#camera.addEventListener("ended", () => {
      this.#stop();
      this.#fail(new CameraError("camera_ended", "the device went away"));
    });
    $("video").addEventListener("resize", () => this.#shape()); // as of a phone that is turned
    for (const event of ["state", "free"]) link.addEventListener(event, () => this.#update());
    document.addEventListener("visibilitychange", () => this.#update());
    languages.addEventListener("change", () => this.#translate());
    setInterval(() => this.#tick(), 500);
  }

  /** Its tab was chosen, or left. */
  show(shown) {
    this.#shown = shown;
    this.#update();
    if (shown) this.#draw();
  }

  async #start(deviceId) {
    $("start").disabled = true;
    this.#camera.stop();
    this.#pause(false); // from here on: who pauses before the browser has given the camera means that one
    try {
      const cameras = await this.#camera.start(deviceId);
      if (cameras === null) return; // stopped meanwhile, or another one chosen, which is being asked for
      this.#announcer.reset();
      this.#over((problem) => problem instanceof CameraError);
      this.#offer(cameras);
      this.#pause(this.#paused);
    } catch (error) {
      this.#camera.stop();
      this.#fail(error);
    }
    // Disabled for a while, the start button lost the keyboard; or it has it still, or the controls, and they go.
    const lost = document.activeElement === document.body || holdsKeyboard($("stage")) || holdsKeyboard($("controls"));
    this.#layOut();
    if (!this.#camera.running && lost) $("start").focus();
    else if (!deviceId && lost) $("pause").focus();
    this.#update();
  }

  #stop() {
    const held = holdsKeyboard($("controls")); // looked at before they go, and the keyboard with them
    this.#camera.stop();
    this.#layOut();
    this.#update();
    if (held) $("start").focus();
  }

  #pause(paused) {
    this.#paused = paused;
    if (paused) this.#camera.pause();
    else if (this.#camera.running) this.#camera.play();
    this.#translate();
    this.#update();
  }

  #layOut() {
    const { running, mirrored } = this.#camera;
    $("start").disabled = false;
    $("stage-empty").hidden = running;
    $("controls").hidden = !running;
    $("stage").classList.toggle("mirrored", running && mirrored);
    this.#shape();
    if (!running) this.#clear();
  }

  #shape() {
    const { videoWidth, videoHeight } = $("video");
    $("stage").style.aspectRatio = this.#camera.running && videoWidth ? `${videoWidth} / ${videoHeight}` : "";
  }

  #offer(cameras) {
    const options = cameras.map(({ deviceId, label }, index) => {
      const name = label || t("cameraNumber", { number: index + 1 });
      return new Option(name, deviceId, false, deviceId === this.#camera.deviceId);
    });
    $("cameras").replaceChildren(...options);
    $("cameras").parentElement.hidden = cameras.length < 2;
  }

  /** Frames are sent only while somebody looks, the server is there, and it is not asked too much. */
  async #update() {
    const wanted = () =>
      this.#camera.running &&
      this.#shown &&
      !this.#paused &&
      !document.hidden &&
      this.#link.state === "ready" &&
      this.#link.free &&
      performance.now() >= this.#restUntil;
    if (!wanted()) {
      this.#loop.stop();
      // The picture goes on without what was found in it, unless it is paused, too.
      if (!this.#paused) this.#clear();
      this.#running = false;
    } else if (!this.#running) {
      this.#running = true;
      try {
        await this.#link.stream(true);
        this.#running = wanted(); // it may have been given up meanwhile, and wanted again, and the other have failed
        if (this.#running) this.#loop.start();
      } catch (error) {
        this.#running = false;
        this.#failed(error);
      }
    }
    this.#hint();
  }

  async #send(blob, size) {
    const sent = performance.now();
    try {
      const prediction = await this.#link.client.predict(blob);
      const now = performance.now();
      this.#roundTrip.add(now - sent, now);
      if (prediction.timing) this.#serverTime.add(prediction.timing.total, now);
      this.#answered(prediction.faces ?? [], size, sent);
    } catch (error) {
      if (error.code === "no_face") {
        const now = performance.now();
        this.#roundTrip.add(now - sent, now);
        this.#answered([], size, sent);
      } else {
        this.#failed(error);
      }
    }
  }

  #answered(faces, size, sent) {
    this.#session.add(faces, performance.now() / 1_000);
    // A newer frame's answer is shown, or nobody looks, or it is of a camera that was stopped.
    if (sent < this.#newest || !this.#running) return;
    this.#newest = sent;
    this.#seen = { faces, size };
    this.#drawFaces();
    $("faces-empty").hidden = faces.length > 0;
    $("face-count").textContent = decimal(faces.length);
    this.#hint(faces.length ? "" : t("noFaceInView"));
    const [first] = faces;
    if (first) {
      const seen = t("seen", { emotion: emotionName(first.emotion_name), share: percent(first.confidence) });
      this.#announcer.settle(first.emotion_name, seen, sent);
    } else {
      this.#announcer.settle("", t("noFaceInView"), sent);
    }
  }

  #failed(error) {
    switch (error.code) {
      case "superseded": // a newer frame is on its way
      case "connection_lost": // the state of the connection says it
      case "cannot_connect":
        return;
      case "overloaded":
      case "rate_limited":
      case "shutting_down":
        this.#rest(error.retryAfterMs ?? REST_MS, true);
        return;
      case "deadline_exceeded": // the next frame may be in time; a connection that did not become a camera's has none
        this.#rest(REST_MS, false);
        return;
      case "unauthorized":
        this.#link.refuse();
        return;
      default:
        this.#fail(error);
        this.#rest(REST_MS, false); // the next frame may well meet the same fault
    }
  }

  /** Send nothing for a while, which is no shorter for another frame that fails. */
  #rest(pause, busy) {
    const until = performance.now() + pause;
    if (until > this.#restUntil) [this.#restUntil, this.#busy] = [until, busy];
    setTimeout(() => this.#update(), pause + 1);
    this.#update();
  }

  #hint(text = "") {
    if (this.#camera.running && this.#paused) text = t("paused");
    else if (this.#camera.running && this.#busy && performance.now() < this.#restUntil) text = t("busy");
    else if (this.#camera.running && !this.#link.free) text = t("photosFirst");
    $("hint").textContent = text;
    $("hint").hidden = text === "";
  }

  #tick() {
    if (!this.#shown || document.hidden) return;
    const now = performance.now();
    const time = (meter) => {
      const median = meter.median(now);
      return median === null ? "–" : milliseconds(median);
    };
    $("round-trip").textContent = time(this.#roundTrip);
    $("server-time").textContent = time(this.#serverTime);
    const rate = this.#roundTrip.rate(now);
    $("rate").textContent = rate ? t("perSecond", { number: decimal(rate, rate < 10 ? 1 : 0) }) : "–";
    if (this.#running) this.#timeline.draw(now / 1_000);
  }

  /** Draw again what has words in it, for another language, or after another tab. */
  #draw() {
    if (this.#seen) this.#drawFaces();
    this.#timeline.draw(performance.now() / 1_000);
  }

  #drawFaces() {
    const { faces, size } = this.#seen;
    drawFaces($("boxes"), faces, size, { mirrored: this.#camera.mirrored });
    this.#faces.show(faces.slice(0, MAX_CARDS));
  }

  #clear() {
    this.#seen = null;
    this.#newest = performance.now();
    prepare($("boxes"));
    this.#faces.show([]);
    $("faces-empty").hidden = false;
    $("face-count").textContent = "–";
    this.#hint();
  }

  #translate() {
    $("pause").textContent = t(this.#paused ? "resume" : "pause");
    this.#hint();
    if (this.#shown) this.#draw();
  }
}
