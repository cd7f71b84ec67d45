// When the JavaScript client takes a server for a silent one. Addresses are in the environment.
import assert from "node:assert/strict";
import { createConnection, createServer } from "node:net";
import { test } from "node:test";
import { connect, image } from "./clients.mjs";

const { PEER, PEER_V1, PEER_LARGE } = process.env;

test("a server that falls silent is noticed", async () => {
  // Nothing but a script that is never answered, on a peer that knows no ping.
  const client = connect(PEER_V1, { keepaliveMs: 50, retry: { attempts: 1 } });
  await assert.rejects(client.predict(image("sad", { gated: true })), {
    code: "connection_lost",
    message: /silent for \d+ ms/,
  });
});

test("a server that was asked nothing for a while was not silent", async (context) => {
  const beats = [];
  context.mock.method(globalThis, "setInterval", (beat) => beats.push(beat));
  const client = connect(PEER_V1, { keepaliveMs: 1_000, retry: { attempts: 1 } });
  await client.predict(image("sad"));
  context.mock.restoreAll();
  const later = Date.now() + 60_000;
  context.mock.method(Date, "now", () => later);
  const found = client.predict(image("fear"));
  await new Promise(setImmediate); // it is sent
  beats.forEach((beat) => beat());
  assert.equal((await found).emotion_name, "fear");
});

/** The address of a line to PEER_LARGE that stops taking bytes in the middle of a large image, once, for `pauseMs`. */
async function interruptedLine(context, pauseMs) {
  const { hostname, port } = new URL(PEER_LARGE);
  let interrupted = false;
  const line = createServer((near) => {
    const far = createConnection(port, hostname);
    for (const end of [near, far]) end.on("error", () => {});
    far.pipe(near);
    near.on("close", () => far.destroy());
    context.after(() => near.destroy());
    near.on("data", (bytes) => {
      far.write(bytes);
      if (interrupted || near.bytesRead < 100_000) return;
      interrupted = true;
      near.pause();
      if (pauseMs < Infinity) setTimeout(() => near.resume(), pauseMs);
    });
  });
  await new Promise((listening) => line.listen(0, "127.0.0.1", listening));
  context.after(() => line.close());
  return `ws://127.0.0.1:${line.address().port}/ws`;
}

const LARGE = { padding: "x".repeat(16_000_000) }; // more than the system takes into its buffers

test("an image that is long on its way is not silence", async (context) => {
  // Five times as long as an answer may take.
  const client = connect(await interruptedLine(context, 5_000), { keepaliveMs: 500, timeoutMs: 60_000 });
  let opened = 0;
  client.addEventListener("open", () => opened++);
  assert.equal((await client.predict(image("sad", LARGE))).emotion_name, "sad");
  assert.equal(opened, 1);
});

test("an image that nobody waits for any more keeps no dead connection", async (context) => {
  const client = connect(await interruptedLine(context, Infinity), { keepaliveMs: 100 });
  const closed = new Promise((resolve) => client.addEventListener("close", resolve));
  await assert.rejects(client.predict(image("sad", LARGE), { timeoutMs: 1_000 }), { code: "deadline_exceeded" });
  await closed;
});

test("a slow answer on a live connection is waited for", async () => {
  // The peer answers pings while the request waits: silence is not the same as work.
  const client = connect(PEER, { keepaliveMs: 500 });
  await assert.rejects(client.predict(image("sad", { gated: true }), { timeoutMs: 3000 }), { code: "deadline_exceeded" });
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
});

test("a keepalive of nothing is refused: it would take every server for a silent one", () => {
  for (const keepaliveMs of [0, -1]) assert.throws(() => connect(PEER, { keepaliveMs }), RangeError);
});

test("time limits may be fractions, as of seconds that were multiplied", async () => {
  const client = connect(PEER, { timeoutMs: 60.0001 * 1000, connectTimeoutMs: 60.0001 * 1000, keepaliveMs: 60.0001 * 1000 });
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
});
