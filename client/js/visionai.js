/**
 * Client of a VisionAI server, for browsers and Node 22 or newer (anything with a global WebSocket).
 *
 *     import { VisionAI } from "./visionai.js";
 *     const client = new VisionAI("ws://127.0.0.1:8000/ws");
 *     const { emotion_name, confidence } = await client.predict(file);   // a Blob, ArrayBuffer or typed array
 *     client.close();
 *
 * One connection, kept and restored. Any number of requests may be in flight on it; each reply finds its
 * request. When the connection is lost, the next request restores it, and requests without an answer are sent
 * again; so an image whose reply was lost may be stored twice. Requests that the server refuses for load are
 * sent again when it says so. All of it ends with the request's timeout. Results are the server's own replies,
 * typed in visionai.d.ts.
 */

/** Base of all errors. Branch on the class or on `code`; `message` is for people and may change. */
export class VisionAIError extends Error {
  name = "VisionAIError"; // in letters, here and below: bundlers shorten the names of classes
  constructor(message, code = "error", retryAfterMs = undefined) {
    super(message);
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}
/** The server cannot be reached or understood: cannot_connect, connection_lost, protocol_violation. */
export class ConnectionFailed extends VisionAIError {
  name = "ConnectionFailed";
}
/** The same request would fail again: invalid_request, unknown_command, invalid_image, no_face, and so on. */
export class RequestRejected extends VisionAIError {
  name = "RequestRejected";
}
/** The same request may succeed later: overloaded, rate_limited, shutting_down. */
export class Unavailable extends VisionAIError {
  name = "Unavailable";
}
/** No token was given, or the server does not accept it: unauthorized. */
export class Unauthorized extends VisionAIError {
  name = "Unauthorized";
}
/** No answer in time, whether the server or this client noticed: deadline_exceeded. */
export class DeadlineExceeded extends VisionAIError {
  name = "DeadlineExceeded";
}
/** A newer camera frame overtook this one: superseded. */
export class Superseded extends VisionAIError {
  name = "Superseded";
}

const ERRORS = {
  invalid_request: RequestRejected,
  invalid_json: RequestRejected,
  unknown_command: RequestRejected,
  invalid_base64: RequestRejected,
  invalid_image: RequestRejected,
  image_too_large: RequestRejected,
  no_face: RequestRejected,
  overloaded: Unavailable,
  rate_limited: Unavailable,
  shutting_down: Unavailable,
  unauthorized: Unauthorized,
  deadline_exceeded: DeadlineExceeded,
  superseded: Superseded,
};

const errorOf = ({ code = "error", message = "the server gave no reason", retry_after_ms }) =>
  new (ERRORS[code] ?? VisionAIError)(message, code, retry_after_ms);

const violation = (message) => new ConnectionFailed(message, "protocol_violation");
const lost = (message) => new ConnectionFailed(message, "connection_lost");

const SLOWEST_LINE = 32; // bytes in a millisecond, 256 kbit/s; one that is slower is taken for a server that is silent

/** Whose answer depends on the user; other commands would take the token for an unknown field. */
const USERS_OWN = new Set(["predict", "history", "stats"]);

const CLOSING = 2; // a WebSocket's readyState, where it has one

const encoder = new TextEncoder();

const LONGEST_TIMER = 2 ** 31 - 1; // milliseconds, 25 days: a longer one, as of Infinity, would fire at once

const ignore = () => {}; // in Node's package ws an error that nobody listens to ends the process

/** One WebSocket: opened, welcomed, then requests out and replies back. Ends with the first fault. */
class Connection {
  ended = false;
  retired = false;
  token; // the one that it has
  welcome; // what the server said of itself
  #socket;
  #nextId = 1;
  #unanswered = new Map(); // id -> {resolve, reject, size}, oldest first; resolve is null once nobody waits
  #onEnd;
  #heardOf = Date.now();
  #heartbeat;

  constructor(socket, welcome, token, keepaliveMs, onEnd) {
    this.token = token;
    this.#socket = socket;
    this.welcome = welcome;
    this.#onEnd = onEnd;
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onerror = ignore; // a close event follows
    socket.onclose = ({ code, reason }) => this.#end(code, reason);
    this.#heartbeat = setInterval(() => this.#beat(keepaliveMs), keepaliveMs);
  }

  /** Connect and read the welcome. */
  static open(url, { WebSocket, token, timeoutMs, keepaliveMs, onEnd, signal }) {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason);
      // No subprotocol is asked for: browsers refuse servers that do not know it, and the welcome says it all.
      let socket;
      try {
        socket = new WebSocket(url);
      } catch (error) {
        // Browsers refuse a ws: address in a page of https, and may refuse others.
        return reject(new ConnectionFailed(`cannot connect to ${url}: ${error.message}`, "cannot_connect"));
      }
      socket.binaryType = "arraybuffer";
      const settle = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", abandon);
      };
      const fail = (error) => {
        settle();
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.onerror = ignore; // closing what is not open yet is one
        socket.close();
        reject(error);
      };
      const abandon = () => fail(signal.reason);
      signal.addEventListener("abort", abandon, { once: true });
      const timer = setTimeout(
        () => fail(new ConnectionFailed(`${url} gave no answer within ${timeoutMs} ms`, "cannot_connect")),
        timeoutMs,
      );
      socket.onmessage = ({ data }) => {
        try {
          const welcome = parse(data);
          if (welcome.type !== "welcome") throw violation(`its first message is ${welcome.type}, not a welcome`);
          settle();
          resolve(new Connection(socket, welcome, token, keepaliveMs, onEnd));
        } catch (error) {
          fail(violation(`${url} is not a VisionAI server: ${error.message}`));
        }
      };
      // Browsers tell scripts no more than this, on purpose.
      const advice = `cannot connect to ${url}: check that the service runs, host and port, and the token`;
      socket.onerror = () => fail(new ConnectionFailed(advice, "cannot_connect"));
      socket.onclose = ({ code, reason }) => fail(turnedAway(code, reason));
    });
  }

  get bufferedAmount() {
    return this.#socket.bufferedAmount;
  }

  /** Send a request and wait for its reply, until `signal` is aborted. Registers and sends in one step. */
  exchange(command, fields, image, deadlineMs, signal) {
    const { commands, protocol = 1, version = "unknown" } = this.welcome;
    const known = Object.keys(commands ?? {});
    if (known.length && !known.includes(command)) {
      const message = `this server (version ${version}) has no command '${command}'; it has ${known.sort().join(", ")}`;
      return Promise.reject(new RequestRejected(message, "unknown_command"));
    }
    for (const [name, value] of Object.entries(fields)) {
      // JSON has no word for it: the server would be sent null, which is as if the field was not there.
      if (typeof value === "number" && !Number.isFinite(value)) {
        const message = `'${name}' is ${value}: the protocol has finite numbers only`;
        return Promise.reject(new RequestRejected(message, "invalid_request"));
      }
    }
    if (this.ended) return Promise.reject(lost("the connection is closed"));
    if (signal?.aborted) return Promise.reject(signal.reason);
    const id = this.#nextId++;
    const own = USERS_OWN.has(command) && fields.token === undefined ? { token: this.token } : {};
    const frame = encode({ ...fields, ...own, command, id }, image, protocol, deadlineMs);
    return new Promise((resolve, reject) => {
      const size = typeof frame === "string" ? frame.length : frame.byteLength;
      const entry = { resolve, reject, size };
      // It keeps its place until its reply has come, so that a late reply is not taken for the next one's.
      const abandon = () => {
        entry.resolve = null;
        reject(signal.reason);
        if (this.retired) this.retire();
      };
      const settled = (settle) => (value) => {
        signal?.removeEventListener("abort", abandon);
        settle(value);
      };
      entry.resolve = settled(resolve);
      entry.reject = settled(reject);
      signal?.addEventListener("abort", abandon, { once: true });
      // Who is asked nothing says nothing, where it knows no ping: its silence begins with the question.
      if (!this.#unanswered.size && command !== "ping") this.#heardOf = Date.now();
      this.#unanswered.set(id, entry);
      // What is closing takes nothing more, which browsers write to the console; the event that says so is still to come.
      if (!(this.#socket.readyState >= CLOSING)) this.#socket.send(frame);
    });
  }

  /** Close. Requests that still wait fail with connection_lost. */
  close() {
    this.#socket.close(1000);
    this.#finish(() => lost("the client is closed"));
  }

  /** Close as soon as nobody waits for a reply. */
  retire() {
    this.retired = true;
    if (![...this.#unanswered.values()].some(({ resolve }) => resolve)) this.close();
  }

  #receive(data) {
    this.#heardOf = Date.now();
    try {
      const reply = parse(data);
      const entry = this.#take(reply);
      if (!entry.resolve) return;
      if (reply.type === "error") entry.reject(errorOf(reply));
      else entry.resolve(reply);
      if (this.retired) this.retire();
    } catch (error) {
      this.#socket.close(1000);
      this.#finish(() => violation(error.message));
    }
  }

  /** The request that a reply answers: by id, or the oldest where the server knows no ids. */
  #take(reply) {
    let { id } = reply;
    if (id === undefined || id === null) {
      if (this.welcome.protocol >= 2) throw violation(`a reply without the request's id: ${reply.message ?? reply.type}`);
      [id] = this.#unanswered.keys();
    }
    const entry = this.#unanswered.get(id);
    if (!entry) throw violation(`a reply to a request that was not sent (id ${id})`);
    this.#unanswered.delete(id);
    return entry;
  }

  #end(code, reason) {
    if (this.ended) return;
    if (code === 1009 && this.#unanswered.size) {
      // A message was too big, and it is an unanswered one: the largest is. The others are innocent.
      const [id, entry] = [...this.#unanswered].reduce((a, b) => (b[1].size > a[1].size ? b : a));
      this.#unanswered.delete(id);
      const message = "the image is larger than the messages that the server accepts";
      if (entry.resolve) entry.reject(new RequestRejected(message, "image_too_large"));
    }
    this.#finish(() => closeError(code, reason));
  }

  #finish(makeError) {
    if (this.ended) return;
    this.ended = true;
    clearInterval(this.#heartbeat);
    const entries = [...this.#unanswered.values()];
    this.#unanswered.clear();
    this.#onEnd(this);
    for (const entry of entries) if (entry.resolve) entry.reject(makeError());
  }

  /** Scripts cannot send WebSocket pings: the command `ping` finds out whether the peer is still there. */
  #beat(keepaliveMs) {
    const silence = Date.now() - this.#heardOf;
    // An image is answered once all of it has arrived, and no ping overtakes it. How much of it still waits in the
    // system's buffers cannot be seen, so that its size counts for as long as somebody waits for its reply.
    let outgoing = 0;
    for (const { resolve, size } of this.#unanswered.values()) if (resolve) outgoing += size;
    if (silence >= 2 * keepaliveMs + outgoing / SLOWEST_LINE && this.#unanswered.size) {
      // A peer that is gone never answers a close either: do not wait for it.
      this.#socket.onmessage = this.#socket.onclose = null;
      this.#socket.close();
      this.#finish(() => lost(`the server has been silent for ${silence} ms`));
    } else if (silence >= keepaliveMs && this.welcome.commands?.ping !== undefined) {
      this.exchange("ping", {}).catch(() => {}); // if it fails, every request is told
    }
  }
}

function parse(data) {
  const text = typeof data === "string" ? data : new TextDecoder().decode(data);
  let message;
  try {
    message = JSON.parse(text);
  } catch (error) {
    throw violation(`the server sent something that is not JSON: ${error.message}`);
  }
  if (message === null || typeof message !== "object" || Array.isArray(message)) {
    throw violation("the server sent JSON that is not an object");
  }
  return message;
}

/** The frame for a request: JSON, for an image a JSON line and its bytes, for servers of protocol 1 base64. */
function encode(header, image, protocol, deadlineMs) {
  if (image === undefined) return JSON.stringify(header);
  if (protocol < 2) return JSON.stringify({ ...header, image: base64(image) });
  const shorter = Math.min(deadlineMs, header.deadline_ms ?? Infinity);
  const line = encoder.encode(JSON.stringify({ ...header, deadline_ms: shorter }) + "\n");
  const frame = new Uint8Array(line.length + image.length);
  frame.set(line);
  frame.set(image, line.length);
  return frame;
}

function base64(bytes) {
  let binary = "";
  // In pieces: an argument list has a limit.
  for (let at = 0; at < bytes.length; at += 0x8000) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(binary);
}

const closeReason = (code, reason) => reason || `close code ${code}`;

/** Closed in place of a welcome. */
function turnedAway(code, reason) {
  if (code !== 1008) return closeError(code, reason);
  return new Unauthorized(`the server closed the connection: ${closeReason(code, reason)}`, "unauthorized");
}

/**
 * 1008 says little here: it is also that of a message which came in too slowly. Where it is about the token, the next
 * connection is told so.
 */
function closeError(code, reason) {
  const why = closeReason(code, reason);
  if (code === 1013) return new Unavailable(`the server takes no more connections: ${why}`, "overloaded");
  return lost(`the server closed the connection before it answered (${why})`);
}

/** Options without those that are undefined, which are as if they were not there. */
const given = (options) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));

async function bytesOf(image) {
  if (typeof Blob !== "undefined" && image instanceof Blob) return new Uint8Array(await image.arrayBuffer());
  if (image instanceof ArrayBuffer) return new Uint8Array(image);
  if (ArrayBuffer.isView(image)) return new Uint8Array(image.buffer, image.byteOffset, image.byteLength);
  throw new TypeError(
    `an image is a Blob, an ArrayBuffer or a typed array, not ${image?.constructor?.name ?? image}: canvas.toBlob() makes ` +
      "one of what is drawn, blob() of what fetch() gives, and readFile() of a path; await what is a Promise",
  );
}

const sleep = (ms, signal) =>
  new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, Math.min(ms, LONGEST_TIMER));
    signal?.addEventListener("abort", stop, { once: true });
  });

/** Images of an iterator, drawn one at a time, and not waited for; `news` is called when one is there, or none comes. */
class Source {
  ended = false;
  #iterator;
  #news;
  #drawing = false;
  #drawn = null; // what was drawn and not taken: {image} or {error}

  constructor(iterator, news) {
    this.#iterator = iterator;
    this.#news = news;
  }

  /** Begin to draw the next image, unless one is being drawn, or waits to be taken. */
  async draw() {
    if (this.ended || this.#drawing || this.#drawn) return;
    this.#drawing = true;
    try {
      const { done, value } = await this.#iterator.next();
      if (done) this.ended = true;
      else this.#drawn = { image: await value };
    } catch (error) {
      this.#drawn = { error };
    }
    this.#drawing = false;
    this.#news();
  }

  /** Give the image that was drawn to `use`. What the iterator has thrown is thrown. */
  take(use) {
    if (!this.#drawn) return;
    const { image, error } = this.#drawn;
    const failed = "error" in this.#drawn;
    this.#drawn = null;
    if (failed) {
      this.ended = true;
      throw error;
    }
    use(image);
  }

  /** End the iterator, where it has not ended itself. A generator that makes an image hears of it after that only. */
  async close() {
    if (this.ended) return;
    this.ended = true;
    const closed = Promise.resolve(this.#iterator.return?.());
    if (this.#drawing) closed.catch(ignore);
    else await closed;
  }
}

/** A client. Fires the events "open" (with the welcome as `detail`), "close" and "reconnecting". */
export class VisionAI extends EventTarget {
  #options;
  #connection = null;
  #others = new Set(); // open connections that are not yet, or no longer, the one for requests
  #opening = null;
  #configuration = {};
  #renewal; // a token that `configure` is bringing
  #wasConnected = false;
  #greeted = false; // it is the right address
  #closing = new AbortController(); // aborted by closing, which is for good
  #asking = new Set(); // aborted by closing

  constructor(url, options = {}) {
    super();
    let protocol;
    try {
      ({ protocol } = new URL(url));
    } catch {
      // A path alone, as pages may give to fetch, is no address either; the browser's own error names none.
    }
    // With a fragment it is none to any WebSocket.
    if ((protocol !== "ws:" && protocol !== "wss:") || String(url).includes("#")) {
      throw new TypeError(`${url} is not a WebSocket address such as ws://127.0.0.1:8000/ws`);
    }
    const { retry, token, ...others } = given(options);
    if (others.keepaliveMs <= 0) throw new RangeError(`keepaliveMs is above 0, or Infinity for never; not ${others.keepaliveMs}`);
    for (const name of ["connectTimeoutMs", "keepaliveMs"]) {
      if (others[name] > LONGEST_TIMER) others[name] = LONGEST_TIMER;
    }
    this.url = url;
    this.#options = {
      token: token?.trim(), // pasted, or read from a file, it may end with white space
      timeoutMs: 30_000,
      connectTimeoutMs: 5_000,
      keepaliveMs: 10_000,
      WebSocket: globalThis.WebSocket,
      ...others,
      retry: { attempts: 10, firstDelayMs: 100, maxDelayMs: 5_000, ...given(retry ?? {}) },
    };
    if (!this.#options.WebSocket) throw new TypeError("there is no WebSocket here: use Node 22 or newer, or a browser");
  }

  /** "open", "connecting" or "closed". */
  get state() {
    if (this.#opening && !this.#closing.signal.aborted) return "connecting";
    return this.#connection ? "open" : "closed";
  }

  /** Bytes that wait to be sent. A camera that sees it grow sends too much. */
  get bufferedAmount() {
    return this.#connection?.bufferedAmount ?? 0;
  }

  /** Connect if there is no connection; what the server says of itself. Until one has greeted, it is tried once. */
  async connect() {
    return (await this.#connected()).welcome;
  }

  /** Close for good. Requests in flight fail with connection_lost. */
  close() {
    const { signal } = this.#closing;
    if (!signal.aborted) this.#closing.abort(lost("the client is closed"));
    for (const abort of this.#asking) abort.abort(signal.reason);
    for (const connection of this.#others) connection.close();
    this.#connection?.close();
  }

  /** The emotion in an image: a Blob, an ArrayBuffer or a typed array with a JPEG, PNG, WebP or BMP file. */
  async predict(image, { detect, maxFaces, priority, timeoutMs, signal } = {}) {
    const bytes = await bytesOf(image);
    // The server's own deadline would be overruled by what is left of the timeout, which always goes along.
    const { deadline_ms } = this.#configuration;
    const fields = { detect, max_faces: maxFaces, priority, deadline_ms };
    // A camera's frame that was lost is stale by the time it could be sent again.
    return this.#ask("predict", fields, bytes, { timeoutMs, signal, resend: !this.#configuration.stream });
  }

  /**
   * The emotions in many images, in their order: {index, image, prediction} or {index, image, error} for each.
   * One that is there waits for no image that is not. At most `concurrency` are in flight. What would fail all of them
   * is thrown instead.
   */
  async *predictMany(images, { concurrency = 16, ...options } = {}) {
    if (!(concurrency >= 1)) throw new RangeError(`concurrency is at least 1, not ${concurrency}`);
    const sequence = images?.[Symbol.asyncIterator] ?? images?.[Symbol.iterator];
    // The bytes of one image are a sequence as well, of numbers.
    if (!sequence || typeof images === "string" || ArrayBuffer.isView(images)) {
      throw new TypeError("predictMany takes several images, as in an array; predict takes one");
    }
    const settle = async (index, image, signal) => {
      let bytes;
      try {
        bytes = await bytesOf(image);
      } catch (error) {
        return { index, image, error }; // not an image, or a file that is gone since
      }
      try {
        return { index, image, prediction: await this.predict(bytes, { ...options, signal }) };
      } catch (error) {
        const ofAll = error instanceof ConnectionFailed || error instanceof Unauthorized;
        if (ofAll || !(error instanceof VisionAIError)) throw error;
        return { index, image, error };
      }
    };
    let wake = ignore;
    const news = () => wake();
    const source = new Source(sequence.call(images), news);
    const flight = [];
    let index = 0;
    const start = (image) => {
      const entry = { abort: new AbortController(), settled: false };
      entry.outcome = settle(index++, image, entry.abort.signal);
      entry.outcome.catch(ignore).then(() => (entry.settled = true)).then(news); // it is thrown when its turn comes
      flight.push(entry);
    };
    const abortAll = () => {
      for (const { abort } of flight) abort.abort(options.signal?.reason);
      wake();
    };
    options.signal?.addEventListener("abort", abortAll, { once: true });
    try {
      for (;;) {
        const woken = new Promise((resolve) => (wake = resolve)); // before it is looked: nothing is missed
        options.signal?.throwIfAborted();
        source.take(start);
        if (flight.length < concurrency) source.draw();
        if (flight[0]?.settled) yield await flight.shift().outcome;
        else if (flight.length || !source.ended) await woken;
        else break;
      }
    } catch (error) {
      await source.close().catch(ignore); // the first error is the one that says why
      throw error;
    } finally {
      options.signal?.removeEventListener("abort", abortAll);
      abortAll();
      await source.close();
    }
  }

  /** The emotions that the server tells apart. */
  async emotions() {
    return (await this.request("emotions")).emotions;
  }

  /** The model that the server runs. */
  async modelInfo() {
    return (await this.request("model_info")).info;
  }

  /** The model versions that the server has. */
  async models() {
    return (await this.request("models")).models;
  }

  /** Milliseconds to the server and back, without an image. */
  async ping() {
    const began = performance.now();
    await this.request("ping");
    return performance.now() - began;
  }

  /** How the server is; well is `status === "healthy"`. */
  health() {
    return this.request("health");
  }

  /** Counts, confidence and latency of the predictions of the last `windowS` seconds. */
  stats({ windowS = 3600, buckets, scope } = {}) {
    return this.request("stats", { window_s: windowS, buckets, scope });
  }

  /** Stored predictions, latest first; `cursor` is the `next` of the page before. */
  history({ limit = 50, cursor } = {}) {
    return this.request("history", { limit, cursor: cursor ?? undefined });
  }

  /**
   * Set defaults of this client's requests, such as detect, max_faces or stream, now and on every new connection.
   * Null turns deadline_ms or smoothing_ms off; what else is null stays as it is. `token` takes the place of the
   * client's, as when that has expired; one that is refused does not.
   */
  async configure(options = {}, { timeoutMs, signal } = {}) {
    const { token, ...others } = options;
    const brought = token?.trim() || undefined;
    const ask = () => this.request("configure", { ...others, token: brought }, { timeoutMs, signal });
    const { configuration } = await (brought ? this.#renewed(brought, ask) : ask());
    for (const [name, value] of Object.entries(given(others))) {
      // Null is to the server as if the option was not there, but where it means none.
      if (value !== null || configuration[name] === null) this.#configuration[name] = value;
    }
    return configuration;
  }

  /** What `ask` gives, which brings a token; it becomes the client's once it is accepted. */
  async #renewed(token, ask) {
    const before = this.#connection;
    // A connection that has to be opened for it would be refused with the old one.
    this.#renewal = token;
    try {
      const reply = await ask();
      this.#options.token = token;
      if (this.#connection) this.#connection.token = token;
      return reply;
    } catch (error) {
      // What was opened for it may have been so with what is not the client's; and where the answer has not come, what
      // was open may have taken it.
      const refused = error instanceof RequestRejected || error instanceof Unauthorized;
      if (this.#options.token !== token && !(refused && this.#connection === before)) this.#leave(this.#connection);
      throw error;
    } finally {
      if (this.#renewal === token) this.#renewal = undefined;
    }
  }

  /** Send any command; its reply as it came. `command` and `id` are no fields. */
  request(command, fields = {}, options = {}) {
    return this.#ask(command, fields, undefined, options);
  }

  async #ask(command, fields, image, { timeoutMs = this.#options.timeoutMs, signal, resend = true } = {}) {
    this.#closing.signal.throwIfAborted();
    signal?.throwIfAborted();
    const abort = new AbortController();
    this.#asking.add(abort);
    const giveUp = () => abort.abort(signal.reason);
    signal?.addEventListener("abort", giveUp, { once: true });
    const late = new DeadlineExceeded(`no answer to '${command}' within ${timeoutMs} ms`, "deadline_exceeded");
    const timer = setTimeout(() => abort.abort(late), Math.min(timeoutMs, LONGEST_TIMER));
    try {
      return await this.#askUntil(Date.now() + timeoutMs, command, fields, image, abort.signal, resend);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", giveUp);
      this.#asking.delete(abort);
    }
  }

  async #askUntil(deadline, command, fields, image, signal, resend) {
    const { attempts } = this.#options.retry;
    for (let attempt = 1; ; attempt++) {
      let connection;
      // What was left until this request's turn has what is not the client's, or will answer nothing new.
      do connection = await unlessAborted(this.#connected(), signal);
      while (connection.retired);
      let pause;
      try {
        return await connection.exchange(command, fields, image, Math.max(1, deadline - Date.now()), signal);
      } catch (error) {
        if (error.code === "shutting_down") this.#leave(connection);
        const again = error.code === "connection_lost" || error instanceof Unavailable;
        pause = this.#delay(attempt - 1, error.retryAfterMs);
        // Where the pause is longer than what is left, the real reason says more than a timeout would.
        if (!again || !resend || signal.aborted || attempt >= attempts || Date.now() + pause >= deadline) throw error;
      }
      await sleep(pause, signal);
    }
  }

  /** Full jitter: uniform below a ceiling that doubles; added to what the server itself asks for. */
  #delay(retry, atLeastMs = 0) {
    const { firstDelayMs, maxDelayMs } = this.#options.retry;
    return atLeastMs + Math.random() * Math.min(maxDelayMs, firstDelayMs * 2 ** retry);
  }

  /** Use a connection no more; it stays open for its requests in flight only. */
  #leave(connection) {
    if (!connection || this.#connection !== connection) return;
    this.#connection = null;
    this.#others.add(connection);
    connection.retire();
  }

  /** The connection, restored if need be. Requests that need it at once share one attempt. */
  #connected() {
    if (this.#closing.signal.aborted) return Promise.reject(this.#closing.signal.reason);
    if (this.#connection) return Promise.resolve(this.#connection);
    // It begins once `#opening` is set: who listens to "reconnecting" may ask for something, and joins it.
    this.#opening ??= Promise.resolve()
      .then(() => this.#open())
      .finally(() => (this.#opening = null));
    return this.#opening;
  }

  async #open() {
    const { attempts } = this.#options.retry;
    for (let attempt = 1; ; attempt++) {
      if (this.#wasConnected) this.dispatchEvent(new Event("reconnecting"));
      const token = this.#token;
      let pause;
      try {
        const connection = await this.#attempt(token);
        if (connection) return connection;
        continue;
      } catch (error) {
        if (error instanceof Unauthorized && token !== this.#token) continue; // another was brought meanwhile
        const again = ["cannot_connect", "connection_lost"].includes(error.code) || error instanceof Unavailable;
        if (!again || attempt >= (this.#greeted ? attempts : 1)) throw error;
        pause = this.#delay(attempt - 1, error.retryAfterMs);
      }
      await sleep(pause, this.#closing.signal);
    }
  }

  /** For a new connection. */
  get #token() {
    return this.#renewal ?? this.#options.token;
  }

  /** A connection with `token`; null where another was brought meanwhile, or this one was given up. */
  async #attempt(token) {
    const { WebSocket, connectTimeoutMs: timeoutMs, keepaliveMs } = this.#options;
    const onEnd = (ended) => this.#ended(ended);
    const { signal: closing } = this.#closing;
    const connection = await Connection.open(this.url, { WebSocket, token, timeoutMs, keepaliveMs, onEnd, signal: closing });
    this.#greeted = true;
    this.#others.add(connection);
    if (closing.aborted) {
      connection.close();
      throw closing.reason;
    }
    const { commands, ...welcome } = connection.welcome;
    // Without a token, where one is required, configuring is refused, as all but `health` is: requests will say so.
    const nameless = welcome.authentication === "required" && !token;
    if (commands?.configure !== undefined && !nameless) {
      // Replies need no order: each finds its request by id. A server that asks for tokens is told in its first
      // message: browsers cannot set headers.
      const options = { ordered: false, ...this.#configuration, token: welcome.authentication ? token : undefined };
      const signal = AbortSignal.timeout(Math.ceil(timeoutMs)); // Node takes whole milliseconds only
      try {
        await connection.exchange("configure", options, undefined, undefined, signal);
      } catch (error) {
        connection.close();
        throw signal.aborted ? lost(`${this.url} gave no answer within ${timeoutMs} ms`) : error;
      }
    }
    if (token !== this.#token) {
      connection.close();
      return null;
    }
    this.#others.delete(connection);
    this.#connection = connection;
    this.#wasConnected = true;
    this.dispatchEvent(new CustomEvent("open", { detail: { commands, ...welcome } }));
    return connection;
  }

  #ended(connection) {
    this.#others.delete(connection);
    if (this.#connection !== connection) return;
    this.#connection = null;
    this.dispatchEvent(new Event("close"));
  }
}

/** What `promise` gives, or the reason of `signal` if it is aborted first. */
function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}
