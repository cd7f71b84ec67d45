// The JavaScript client against peers that commit faults on request. Addresses are in the environment.
import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { openAsBlob } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as module from "../../../client/js/visionai.js";
import { connect, image } from "./clients.mjs";

const { VisionAI, VisionAIError, ConnectionFailed, RequestRejected, Unavailable, DeadlineExceeded, Unauthorized } = module;
const { PEER, PEER_V1, PEER_SMALL, PEER_CHAT, PEER_LEAVING, NOBODY } = process.env;

test("a first connection to a server that leaves is made again", async () => {
  const client = connect(PEER_LEAVING);
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
});

test("nothing is sent on a connection that is closing, and what is asked for goes out on the next", async () => {
  const sockets = [];
  const states = [];
  class Recorded extends WebSocket {
    constructor(...given) {
      super(...given);
      sockets.push(this);
    }

    send(...given) {
      states.push(this.readyState);
      super.send(...given);
    }
  }
  const client = connect(PEER, { WebSocket: Recorded });
  await client.predict(image("sad"));
  sockets[0].close(); // its event is still to come
  assert.equal((await client.predict(image("fear"))).emotion_name, "fear");
  assert.deepEqual(new Set(states), new Set([WebSocket.OPEN]));
});

for (const [version, url] of [["v1", PEER_V1], ["v2", PEER]]) {
  test(`${version}: a Blob, an ArrayBuffer and a view are images`, async () => {
    const client = connect(url);
    const bytes = image("sad");
    const padded = new Uint8Array([0, ...bytes, 0]).subarray(1, bytes.length + 1);
    for (const source of [new Blob([bytes]), bytes.buffer, padded, Buffer.from(bytes)]) {
      assert.equal((await client.predict(source)).emotion_name, "sad");
    }
  });

  test(`${version}: every reply finds its request`, async () => {
    const client = connect(url);
    const emotions = Array.from({ length: 30 }, (_, n) => ["happy", "sad", "fear"][n % 3]);
    const found = await Promise.all(emotions.map((emotion) => client.predict(image(emotion))));
    assert.deepEqual(found.map(({ emotion_name }) => emotion_name), emotions);
  });

  test(`${version}: a lost connection is restored and its requests are sent again`, async () => {
    const client = connect(url);
    const events = [];
    for (const type of ["open", "close", "reconnecting"]) client.addEventListener(type, () => events.push(type));
    const drop = { first: [{ drop: true }] };
    const found = await Promise.all(["sad", "fear"].map((emotion) => client.predict(image(emotion, drop))));
    assert.deepEqual(found.map(({ emotion_name }) => emotion_name), ["sad", "fear"]);
    assert.deepEqual(events.slice(0, 4), ["open", "close", "reconnecting", "open"]);
    assert.equal(client.state, "open");
  });

  test(`${version}: an error is raised and the connection lives on`, async () => {
    const client = connect(url);
    let opened = 0;
    client.addEventListener("open", () => opened++);
    await assert.rejects(client.predict(image("sad", { first: [{ error: "invalid_image" }] })), {
      message: "as asked: invalid_image",
    });
    assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
    assert.equal(opened, 1);
  });
}

test("the server describes itself", async () => {
  const client = connect(PEER);
  assert.equal((await client.connect()).protocol, 2);
  assert.equal((await client.emotions())[3].name, "happy");
  assert.equal((await client.modelInfo()).num_classes, 7);
  assert.equal((await client.health()).status, "healthy");
  assert.equal((await client.stats({ windowS: 60 })).window_s, 60);
  const page = await client.history({ limit: 3 });
  assert.equal(page.predictions.length, 3);
  assert.equal((await client.history({ limit: 3, cursor: page.next })).next, null);
  assert.deepEqual((await client.models()).map(({ version_tag, active }) => [version_tag, active]), [["peer-1", true]]);
  const milliseconds = await client.ping();
  assert.ok(milliseconds > 0 && milliseconds < 30_000);
  assert.equal((await client.request("ping")).type, "pong");
});

test("pages of history can be read from a cursor of null to one of null", async () => {
  const client = connect(PEER);
  const rows = [];
  let cursor = null;
  do {
    const page = await client.history({ limit: 2, cursor });
    rows.push(...page.predictions);
    cursor = page.next;
  } while (cursor !== null);
  assert.equal(rows.length, 5);
  const types = await readFile(new URL("../../../client/js/visionai.d.ts", import.meta.url), "utf8");
  assert.match(types, /^  history\(.*cursor\?: string \| null }/m);
});

test("a request's id is the client's own", async () => {
  const client = connect(PEER);
  assert.equal((await client.request("ping", { id: "mine", command: "health" })).type, "pong");
  assert.equal(client.state, "open");
});

test("requests are in flight together and answered out of order", async () => {
  const client = connect(PEER);
  const order = [];
  // The gate of this peer is never opened: these two are answered while the third waits.
  const late = client.predict(image("angry", { gated: true }), { timeoutMs: 500 }).catch(({ code }) => order.push(code));
  await Promise.all(["happy", "sad"].map(async (emotion) => order.push((await client.predict(image(emotion))).emotion_name)));
  await late;
  assert.deepEqual(order.sort(), ["deadline_exceeded", "happy", "sad"]);
  assert.equal(client.state, "open");
});

test("errors have the class and the code that they mean", async () => {
  const client = connect(PEER, { retry: { attempts: 1 } });
  const expected = {
    invalid_image: RequestRejected,
    no_face: RequestRejected,
    overloaded: Unavailable,
    rate_limited: Unavailable,
    unauthorized: Unauthorized,
    deadline_exceeded: DeadlineExceeded,
    superseded: module.Superseded,
    internal: VisionAIError,
    from_the_future: VisionAIError,
  };
  for (const [code, type] of Object.entries(expected)) {
    const error = await client.predict(image("sad", { first: [{ error: code, retry_after_ms: 7 }] })).catch((e) => e);
    assert.equal(error.constructor, type, code);
    assert.deepEqual([error.code, error.retryAfterMs, error.name], [code, 7, type.name]);
  }
});

test("a refusal for load is tried again when the server says", async () => {
  const client = connect(PEER);
  const started = Date.now();
  const found = await client.predict(image("fear", { first: [{ error: "overloaded", retry_after_ms: 120 }] }));
  assert.equal(found.emotion_name, "fear");
  assert.ok(Date.now() - started >= 118); // timers may fire a millisecond early
});

test("a pause beyond the timeout is not waited for", async () => {
  const client = connect(PEER);
  const script = { first: [{ error: "rate_limited", retry_after_ms: 600_000 }] };
  await assert.rejects(client.predict(image("sad", script)), { code: "rate_limited", retryAfterMs: 600_000 });
});

test("no limit is one that can be given", async () => {
  const client = connect(PEER, { timeoutMs: Infinity, connectTimeoutMs: Infinity, keepaliveMs: Infinity });
  assert.equal((await client.predict(image("sad", { first: [{ error: "overloaded" }] }))).emotion_name, "sad");
});

test("giving up says that the connection was lost", async () => {
  const client = connect(PEER);
  const script = { first: Array(5).fill({ drop: true }) };
  await assert.rejects(client.predict(image("sad", script)), { code: "connection_lost", name: "ConnectionFailed" });
});

test("a server that shuts down is left for a new connection", async () => {
  const client = connect(PEER);
  assert.equal((await client.predict(image("sad", { first: [{ error: "shutting_down" }] }))).emotion_name, "sad");
});

test("who asks for something when told of a reconnection joins it", async () => {
  const client = connect(PEER);
  let opened = 0;
  let found;
  client.addEventListener("open", () => opened++);
  client.addEventListener("reconnecting", () => (found ??= client.emotions()));
  await client.predict(image("sad", { first: [{ error: "shutting_down" }] }));
  assert.equal((await found).length, 7);
  assert.equal(opened, 2);
});

test("a policy that closes the connection is not taken for one about tokens", async () => {
  const script = { first: [{ close: 1008 }] };
  assert.equal((await connect(PEER).predict(image("sad", script))).emotion_name, "sad");
  const once = connect(PEER, { retry: { attempts: 1 } });
  await assert.rejects(once.predict(image("sad", script)), { code: "connection_lost", message: /as asked/ });
});

test("an image above the message limit fails alone", async () => {
  const client = connect(PEER_SMALL);
  const [small, large] = await Promise.allSettled([
    client.predict(image("sad")),
    client.predict(image("happy", { padding: "x".repeat(8192) })),
  ]);
  assert.equal(small.value?.emotion_name, "sad");
  assert.equal(large.reason?.code, "image_too_large");
});

test("nonsense from the server ends the connection, and a new one works", async () => {
  const client = connect(PEER);
  for (const garbage of ["not JSON", "[1]", '{"type":"prediction"}', '{"id":999,"type":"prediction"}']) {
    const outcomes = await Promise.allSettled([
      client.predict(image("sad", { gated: true })),
      client.predict(image("sad", { first: [{ garbage }] })),
    ]);
    assert.deepEqual(outcomes.map(({ reason }) => reason?.code), ["protocol_violation", "protocol_violation"]);
  }
  assert.equal((await client.predict(image("happy"))).emotion_name, "happy");
});

test("an aborted request leaves the others alone", async () => {
  for (const url of [PEER, PEER_V1]) {
    const client = connect(url);
    await client.connect();
    const abort = new AbortController();
    const aborted = client.predict(image("angry"), { signal: abort.signal });
    const other = client.predict(image("sad"));
    abort.abort(new Error("changed my mind"));
    await assert.rejects(aborted, { message: "changed my mind" });
    assert.equal((await other).emotion_name, "sad");
  }
});

test("a configuration outlives its connection", async () => {
  const client = connect(PEER);
  assert.equal((await client.configure({ detect: "always" })).detect, "always");
  await client.predict(image("sad", { first: [{ drop: true }] }));
  await assert.rejects(client.configure({ colour: "red" }), { code: "invalid_request" });
});

test("what null means to the server is what is configured again, and undefined is as if it was not there", async () => {
  const client = connect(PEER);
  await client.configure({ detect: "always", max_faces: 2, stream: false, deadline_ms: 9000, smoothing_ms: 300 });
  const before = await client.configure({ detect: null, max_faces: null, stream: undefined, smoothing_ms: null });
  await client.predict(image("sad", { first: [{ drop: true }] }));
  const after = await client.configure();
  const want = { detect: "always", max_faces: 2, ordered: false, stream: false, smoothing_ms: null, deadline_ms: 9000 };
  assert.deepEqual([before, after], [want, want]);
});

test("a configured deadline is not loosened by a longer timeout", async () => {
  const frames = [];
  class Recorded extends WebSocket {
    send(frame) {
      if (typeof frame !== "string") frames.push(JSON.parse(new TextDecoder().decode(frame).split("\n")[0]).deadline_ms);
      super.send(frame);
    }
  }
  const client = connect(PEER, { WebSocket: Recorded, timeoutMs: 70_000 });
  await client.configure({ deadline_ms: 25_000 });
  await client.predict(image("sad"));
  await client.predict(image("sad"), { timeoutMs: Infinity });
  await client.configure({ deadline_ms: 65_000 });
  await client.predict(image("sad"), { timeoutMs: 30_000 });
  await client.configure({ deadline_ms: null });
  await client.predict(image("sad"));
  const [first, endless, shorter, without] = frames;
  assert.deepEqual([first, endless], [25_000, 25_000]);
  assert.ok(shorter <= 30_000);
  assert.ok(without > 65_000 && without <= 70_000);
});

test("a frame of a stream is not sent again", async () => {
  const client = connect(PEER);
  await client.configure({ stream: true });
  await assert.rejects(client.predict(image("sad", { first: [{ drop: true }] })), { code: "connection_lost" });
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
});

test("many images come out in order with their errors", async () => {
  const client = connect(PEER);
  const images = [image("angry"), image("sad", { first: [{ error: "no_face" }] }), "no image", image("happy")];
  const found = [];
  for await (const { index, prediction, error } of client.predictMany(images, { concurrency: 2 })) {
    found.push([index, prediction?.emotion_name ?? error.code ?? error.name]);
  }
  assert.deepEqual(found, [[0, "angry"], [1, "no_face"], [2, "TypeError"], [3, "happy"]]);
});

test("what is no image is told what to do with it", async () => {
  const client = connect(PEER);
  for (const thing of ["face.jpg", Promise.resolve(image("sad")), new Response(image("sad")), {}, null]) {
    const message = new RegExp(`not ${thing?.constructor.name ?? thing}: canvas.toBlob.*, blob\\(\\) of what fetch`);
    await assert.rejects(client.predict(thing), { name: "TypeError", message });
  }
});

test("a file that cannot be read any more fails alone", async (context) => {
  const folder = await mkdtemp(join(tmpdir(), "visionai-"));
  context.after(() => rm(folder, { recursive: true }));
  const file = join(folder, "changed.jpg");
  await writeFile(file, image("sad"));
  const changed = await openAsBlob(file);
  await writeFile(file, image("sad", { padding: "longer" }));
  const found = [];
  for await (const { prediction, error } of connect(PEER).predictMany([image("angry"), changed, image("happy")])) {
    found.push(prediction?.emotion_name ?? error.name);
  }
  assert.deepEqual(found, ["angry", "NotReadableError", "happy"]);
});

test("many images are drawn only as needed, and stop at what fails all", async () => {
  const client = connect(PEER);
  let taken = 0;
  function* endless() {
    for (;;) {
      taken++;
      yield image("sad");
    }
  }
  let seen = 0;
  for await (const _ of client.predictMany(endless(), { concurrency: 4 })) {
    seen++;
    assert.ok(taken <= seen + 3);
    if (seen === 10) break;
  }
  const refused = [image("sad", { first: [{ error: "unauthorized" }] }), image("sad")];
  await assert.rejects(async () => {
    for await (const _ of client.predictMany(refused)) assert.fail("nothing comes out");
  }, { code: "unauthorized" });
  await assert.rejects(client.predictMany([], { concurrency: 0 }).next(), RangeError);
});

test("a concurrency that is text, as of a page's field, is a limit too", async () => {
  for (const concurrency of ["3", 2.5]) {
    let taken = 0;
    function* some() {
      while (taken < 8) yield image("sad", { taken: ++taken });
    }
    for await (const _ of connect(PEER).predictMany(some(), { concurrency })) break;
    assert.equal(taken, 3);
  }
});

test("a command that an old server lacks says so", async () => {
  await assert.rejects(connect(PEER_V1).history(), {
    code: "unknown_command",
    message: /has no command 'history'; it has emotions, health/,
  });
});

test("a number that JSON has no word for is not sent", async () => {
  await assert.rejects(connect(PEER).stats({ windowS: Infinity }), { code: "invalid_request", message: /window_s/ });
});

test("nobody at the address, or somebody else", async () => {
  await assert.rejects(connect(NOBODY).connect(), { code: "cannot_connect", message: /check that the service runs/ });
  await assert.rejects(connect(PEER_CHAT).connect(), { code: "protocol_violation", message: /is not a VisionAI server/ });
});

test("closing tells requests in flight, and is for good", async () => {
  const client = connect(PEER);
  await client.connect();
  const waiting = client.predict(image("sad", { gated: true }));
  await client.predict(image("happy"));
  client.close();
  await assert.rejects(waiting, { code: "connection_lost", message: "the client is closed" });
  await assert.rejects(client.predict(image("sad")), { message: "the client is closed" });
  assert.equal(client.state, "closed");
});

test("closing ends an attempt to connect, and the pause before the next", async (context) => {
  const mute = createServer((socket) => context.after(() => socket.destroy())); // it never answers
  await new Promise((listening) => mute.listen(0, "127.0.0.1", listening));
  context.after(() => mute.close());
  const waiting = connect(`ws://127.0.0.1:${mute.address().port}/ws`, { connectTimeoutMs: 600_000 });
  const lost = connect(PEER, { retry: { attempts: 5, firstDelayMs: 600_000, maxDelayMs: 600_000 } });
  await lost.connect();
  const pausing = new Promise((resolve) => lost.addEventListener("close", resolve));
  await assert.rejects(lost.predict(image("sad", { first: [{ drop: true }] }), { timeoutMs: 500 }), VisionAIError);
  await pausing;
  lost.url = "ws://127.0.0.1:9/ws";
  for (const client of [waiting, lost]) {
    const connecting = client.connect();
    await new Promise((later) => setTimeout(later, 200));
    assert.equal(client.state, "connecting");
    client.close();
    assert.equal(client.state, "closed");
    await assert.rejects(connecting, { code: "connection_lost", message: "the client is closed" });
  }
});

test("an option that is undefined is as if it was not there", async () => {
  const nothing = { token: undefined, timeoutMs: undefined, connectTimeoutMs: undefined, WebSocket: undefined };
  const client = connect(PEER, { ...nothing, retry: { attempts: undefined, firstDelayMs: 10, maxDelayMs: 20 } });
  assert.equal((await client.predict(image("sad", { first: [{ drop: true }] }))).emotion_name, "sad");
  const always = Array(30).fill({ error: "overloaded", retry_after_ms: 1 });
  await assert.rejects(client.predict(image("sad", { first: always }), { timeoutMs: undefined }), { code: "overloaded" });
});

test("a token is taken without the space around it", async () => {
  assert.equal((await connect(PEER, { token: " secret\n" }).predict(image("sad"))).emotion_name, "sad");
});

test("what is over leaves no timer, and no listener on its caller's signal", async (context) => {
  await connect(PEER).connect(); // with the first connection of all, Node begins a timer of its own, which stays
  const timers = new Set();
  for (const kind of ["Timeout", "Interval"]) {
    const [set, clear] = [globalThis[`set${kind}`], globalThis[`clear${kind}`]];
    context.mock.method(globalThis, `set${kind}`, (act, ...given) => {
      const timer = set(() => (kind === "Interval" || timers.delete(timer), act()), ...given);
      return timers.add(timer) && timer;
    });
    context.mock.method(globalThis, `clear${kind}`, (timer) => (timers.delete(timer), clear(timer)));
  }
  const { signal } = new AbortController();
  const client = connect(PEER);
  await client.predict(image("sad", { first: [{ error: "overloaded" }] }), { signal });
  await assert.rejects(client.predict(image("sad", { gated: true }), { signal, timeoutMs: 100 }), DeadlineExceeded);
  for await (const _ of client.predictMany([image("sad")], { signal })) assert.ok(getEventListeners(signal, "abort").length);
  assert.deepEqual([getEventListeners(signal, "abort").length, timers.size], [0, 1]); // the connection's
  client.close();
  assert.equal(timers.size, 0);
});
