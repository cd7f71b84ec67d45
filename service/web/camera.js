/** The camera: asking for it, choosing among several, and what went wrong. */

/** Why there is no picture. `code` is one of camera_refused, camera_missing, camera_busy, camera_insecure, camera_ended. */
export class CameraError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

const CODES = {
  NotAllowedError: "camera_refused",
  SecurityError: "camera_refused",
  NotFoundError: "camera_missing",
  OverconstrainedError: "camera_missing",
  NotReadableError: "camera_busy",
  AbortError: "camera_busy",
};

function letGo(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** Shows a camera in a video element. Fires "ended" when the device goes away by itself. */
export class Camera extends EventTarget {
  #video;
  #stream = null;
  #asked = 0; // a camera that comes after a later start, or a stop, is let go again

  constructor(video) {
    super();
    this.#video = video;
  }

  get running() {
    return this.#stream !== null;
  }

  /** The id of the camera that runs. */
  get deviceId() {
    return this.#stream?.getVideoTracks()[0].getSettings().deviceId;
  }

  /** Whether people expect to see themselves as in a mirror: all but a phone's back camera. */
  get mirrored() {
    return this.#stream?.getVideoTracks()[0].getSettings().facingMode !== "environment";
  }

  /**
   * Start a camera, the one named or the browser's choice; a camera that runs is stopped first. The cameras that there
   * are, whose names are known only after one was allowed; null where `start` or `stop` was called again before that.
   */
  async start(deviceId) {
    if (!navigator.mediaDevices) throw new CameraError("camera_insecure", "not a secure context");
    this.stop();
    const asked = this.#asked;
    const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30, max: 30 } };
    const choice = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { ...size, ...choice }, audio: false });
    } catch (error) {
      if (asked !== this.#asked) return null;
      throw new CameraError(CODES[error.name] ?? "camera_busy", error.message);
    }
    if (asked !== this.#asked) {
      letGo(stream);
      return null;
    }
    this.#stream = stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.#stream !== stream) return;
      this.stop();
      this.dispatchEvent(new Event("ended"));
    });
    this.#video.srcObject = stream;
    try {
      await this.play();
      const devices = await navigator.mediaDevices.enumerateDevices();
      if (asked === this.#asked) return devices.filter(({ kind }) => kind === "videoinput");
    } catch (error) {
      if (asked === this.#asked) throw error;
    }
    return null;
  }

  /** Let the picture go on. */
  async play() {
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "AbortError") throw error; // it was paused again, or stopped, before it did
    }
  }

  pause() {
    this.#video.pause();
  }

  stop() {
    this.#asked++;
    if (this.#stream) letGo(this.#stream);
    this.#stream = null;
    this.#video.srcObject = null;
  }
}
