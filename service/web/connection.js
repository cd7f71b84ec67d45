/** The page's one connection: opened, watched, and opened again for as long as the page lives. */

import { Unauthorized, VisionAI } from "../visionai.js";

const address = () => {
  const url = new URL("ws", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = url.hash = "";
  return url.href;
};

/**
 * Keeps a client connected. Fires "state" whenever `state` changes:
 * connecting, ready, reconnecting (it was lost), gone (a try to reach the server failed), refused (it wants a token).
 * Fires "free" whenever `free` changes.
 */
export class Link extends EventTarget {
  client;
  state = "connecting";
  version = "";
  wrongToken = false; // with "refused": there was a token, and it is not accepted
  #withToken = false;
  #retry = null;
  #mode = Promise.resolve();
  #streaming = false;
  #photos = 0; // works of `forPhotos`

  /** Connect, with a token if there is one, which spaces alone are not. A connection of before is given up. */
  start(typed = "") {
    const token = typed.trim() || undefined;
    clearTimeout(this.#retry);
    this.client?.close();
    this.#withToken = token !== undefined;
    this.#streaming = false;
    const client = new VisionAI(address(), { token, timeoutMs: 15_000, keepaliveMs: 3_000, retry: { maxDelayMs: 2_000 } });
    this.client = client;
    const ifCurrent = (act) => (event) => this.client === client && act(event);
    client.addEventListener("open", ifCurrent(({ detail }) => {
      this.version = detail.version;
      // The client connects all the same, for `health`; any other request would be refused.
      if (detail.authentication === "required" && !this.#withToken) return this.refuse();
      this.#become("ready");
    }));
    client.addEventListener("close", ifCurrent(() => {
      if (this.state === "refused") return;
      this.#become("reconnecting");
      this.#connect(client);
    }));
    client.addEventListener("reconnecting", ifCurrent(() => {
      if (this.state !== "ready") return;
      // A server that says it is leaving is left at once; its connection closes later, and nobody is told.
      this.#become("reconnecting");
      this.#connect(client);
    }));
    this.#become("connecting");
    this.#connect(client);
  }

  /**
   * Make the connection one for a camera (the newest frame wins, and a frame without a face is an error), or for
   * photos. Resolves when the server has agreed, for which it has `timeoutMs` or the client's own time; the client
   * repeats it on every new connection. A camera asks for it only while it is `free`.
   */
  stream(on, timeoutMs) {
    const change = async () => {
      if (on === this.#streaming) return;
      this.#streaming = null; // not known: where the answer does not come, the server may have done it all the same
      await this.client.configure({ stream: on, detect: on ? "always" : "auto" }, { timeoutMs });
      this.#streaming = on;
    };
    const changed = this.#mode.then(change);
    this.#mode = changed.catch(() => {}); // one that failed does not keep the next from trying
    return changed;
  }

  /** Whether a camera may have the connection: not while there are photos to work on. */
  get free() {
    return this.#photos === 0;
  }

  /** What `work` gives; the connection is not free until then. */
  async forPhotos(work) {
    if (this.#photos++ === 0) this.dispatchEvent(new Event("free"));
    try {
      return await work();
    } finally {
      if (--this.#photos === 0) this.dispatchEvent(new Event("free"));
    }
  }

  /** The server refused a request for want of a token. */
  refuse() {
    this.wrongToken = this.#withToken;
    this.#become("refused");
    this.client.close(); // it would only be refused again, until `start` brings a token
  }

  /** What a request's failure means to the person at the page: while a token is wanted, that is why. */
  explain(error) {
    if (error.code === "unauthorized" && this.state !== "refused") this.refuse();
    if (this.state !== "refused") return error;
    return { code: this.wrongToken ? "unauthorized" : "token_needed" };
  }

  async #connect(client) {
    try {
      await client.connect();
    } catch (error) {
      if (this.client !== client || this.state === "refused") return;
      if (error instanceof Unauthorized) return this.refuse();
      this.#become("gone");
      this.#retry = setTimeout(() => this.#connect(client), 1_000);
    }
  }

  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}
