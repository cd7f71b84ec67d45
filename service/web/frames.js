/** A video's frames as JPEG files, one at a time, as fast as somebody takes them. */

const LONGEST_SIDE = 640; // a face that matters is large enough in it, and it is small on the wire
const QUALITY = 0.8;
// One frame in the server's hands, and one on its way: the server never waits for the network.
const MAX_IN_FLIGHT = 2;

const nextFrame = (video, callback) =>
  video.requestVideoFrameCallback ? video.requestVideoFrameCallback(callback) : requestAnimationFrame(callback);

/**
 * Calls `send(blob, {width, height})` for the newest frame whenever fewer than two are unanswered; a frame that comes
 * while two are is dropped. `send` resolves once its frame is answered, and never rejects.
 */
export class FrameLoop {
  #video;
  #send;
  #canvas = document.createElement("canvas");
  #inFlight = 0;
  #run = 0; // a callback of an earlier run does nothing

  constructor(video, send) {
    this.#video = video;
    this.#send = send;
  }

  start() {
    const run = ++this.#run;
    const step = () => {
      if (run !== this.#run) return;
      nextFrame(this.#video, step);
      if (this.#inFlight < MAX_IN_FLIGHT && this.#video.videoWidth > 0) this.#pass(run);
    };
    nextFrame(this.#video, step);
  }

  stop() {
    this.#run++;
  }

  async #pass(run) {
    this.#inFlight++;
    try {
      const { videoWidth, videoHeight } = this.#video;
      const scale = Math.min(1, LONGEST_SIDE / Math.max(videoWidth, videoHeight));
      const size = { width: Math.round(videoWidth * scale), height: Math.round(videoHeight * scale) };
      Object.assign(this.#canvas, size);
      this.#canvas.getContext("2d", { alpha: false }).drawImage(this.#video, 0, 0, size.width, size.height);
      const blob = await new Promise((resolve) => this.#canvas.toBlob(resolve, "image/jpeg", QUALITY));
      if (blob !== null && run === this.#run) await this.#send(blob, size);
    } finally {
      this.#inFlight--;
    }
  }
}
