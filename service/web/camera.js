/** The camera: asking for it, choosing among several, and what went wrong. */

/** Why there is no picture. `code` is one of camera_refused, camera_missing, camera_busy, camera_insecure. */
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

/** Shows a camera in a video element. Fires "ended" when the device goes away by itself. */
export class Camera extends EventTarget {
  #video;
  #stream = null;

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

  /** Start a camera, the one named or the browser's choice; a camera that runs is stopped first. */
  async start(deviceId) {
    if (!navigator.mediaDevices) throw new CameraError("camera_insecure", "not a secure context");
    this.stop();
    const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30, max: 30 } };
    const choice = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "user" };
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: { ...size, ...choice }, audio: false });
    } catch (error) {
      throw new CameraError(CODES[error.name] ?? "camera_busy", error.message);
    }
    const stream = this.#stream;
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.#stream !== stream) return;
      this.stop();
      this.dispatchEvent(new Event("ended"));
    });
    this.#video.srcObject = stream;
    await this.#video.play();
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** The cameras that there are. Their names are known only after one was allowed. */
  async list() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    return devices.filter(({ kind }) => kind === "videoinput");
  }
}
