// Tokens that take the place of others while a client is in use. Addresses are in the environment.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, image } from "./clients.mjs";

const { PEER_REQUIRED, PEER_OPTIONAL } = process.env;

let number = 0;
/** A client that has a token, as its option or by `configure`. */
async function withToken(how, options = {}) {
  const token = `old-${number++}`;
  const client = connect(PEER_REQUIRED, how === "option" ? { token, ...options } : options);
  if (how === "configure") await client.configure({ token });
  return { client, token };
}

/** What brings the token itself, and what goes by the connection's. */
async function askEverything(client) {
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
  await client.history();
  await client.stats();
  assert.equal((await client.emotions()).length, 7);
}

const cut = (client) => client.predict(image("sad", { first: [{ drop: true }] }));

for (const how of ["option", "configure"]) {
  test(`${how}: a token outlives its connection`, async () => {
    const { client } = await withToken(how);
    await cut(client);
    await askEverything(client);
  });

  test(`${how}: a token takes the place of one that has expired`, async () => {
    const { client, token } = await withToken(how);
    const expire = { first: [{ expire: token, error: "unauthorized" }] };
    await assert.rejects(client.predict(image("sad", expire)), { code: "unauthorized" });
    await client.configure({ token: " fresh\n", detect: "always" });
    await askEverything(client);
    await cut(client);
    await askEverything(client);
    assert.equal((await client.configure()).detect, "always");
  });

  test(`${how}: a token opens the connection that the expired one cannot`, async () => {
    const { client, token } = await withToken(how);
    await assert.rejects(client.predict(image("sad", { first: [{ expire: token, drop: true }] })), { code: "unauthorized" });
    await client.configure({ token: "fresh" });
    await askEverything(client);
  });

  test(`${how}: a token is not refused for an attempt that was made with the old one`, async () => {
    const { client, token } = await withToken(how);
    await assert.rejects(client.predict(image("sad", { first: [{ expire: token, drop: true }] })), { code: "unauthorized" });
    let renewed;
    client.addEventListener("reconnecting", () => setImmediate(() => (renewed ??= client.configure({ token: "fresh" }))));
    assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
    await renewed;
    await askEverything(client);
  });

  test(`${how}: a token that is refused takes no place`, async () => {
    const { client } = await withToken(how, { retry: { attempts: 1 } });
    await client.connect();
    await assert.rejects(client.configure({ token: "wrong" }), { code: "unauthorized" });
    await askEverything(client);
    await assert.rejects(cut(client), { code: "connection_lost" });
    await assert.rejects(client.configure({ token: "wrong" }), { code: "unauthorized" });
    await askEverything(client);
  });
}

test("a connection that was opened for a refused request is left", async () => {
  const client = connect(PEER_OPTIONAL, { retry: { attempts: 1 } });
  await assert.rejects(cut(client), { code: "connection_lost" });
  let opened = 0;
  client.addEventListener("open", () => opened++);
  await assert.rejects(client.configure({ token: "fresh", colour: "red" }), { code: "invalid_request" });
  await client.predict(image("sad"));
  assert.equal(opened, 2);
});

for (const moment of ["handshake", "answer"]) {
  test(`${moment}: a token that was given up is nobody's`, async () => {
    const abort = new AbortController();
    class Abandoned extends WebSocket {
      constructor(url) {
        super(url);
        if (moment === "handshake") queueMicrotask(() => abort.abort());
      }
      send(data) {
        super.send(data);
        if (moment === "answer" && String(data).includes("fresh")) abort.abort();
      }
    }
    const client = connect(PEER_OPTIONAL, { WebSocket: Abandoned });
    if (moment === "answer") await client.connect();
    await assert.rejects(client.configure({ token: "fresh" }, { signal: abort.signal }), { name: "AbortError" });
    await client.predict(image("sad")); // the peer tells whose it was
  });
}

/** A class of sockets, of which those in `open` are. */
function counted() {
  const open = new Set();
  class Counted extends WebSocket {
    constructor(url) {
      super(url);
      open.add(this);
      this.addEventListener("close", () => open.delete(this));
    }
  }
  const onlyOne = async () => {
    while (open.size !== 1) await new Promise(setImmediate);
  };
  return { Counted, onlyOne };
}

test("connections that are left are closed", async () => {
  const { Counted, onlyOne } = counted();
  const client = connect(PEER_OPTIONAL, { retry: { attempts: 1 }, WebSocket: Counted });
  for (let round = 0; round < 3; round++) {
    await assert.rejects(cut(client), { code: "connection_lost" });
    await assert.rejects(client.configure({ token: "fresh", colour: "red" }), { code: "invalid_request" });
  }
  await client.connect();
  await onlyOne();
});

test("a connection that is left answers what is in flight on it", async () => {
  const { Counted, onlyOne } = counted();
  const abort = new AbortController();
  const givenUp = () =>
    assert.rejects(client.configure({ token: "fresh" }, { signal: abort.signal }), { name: "AbortError" });
  let left;
  class Left extends Counted {
    send(data) {
      super.send(data);
      if (typeof data !== "string") left ??= givenUp();
      else if (data.includes("fresh")) abort.abort();
    }
  }
  const client = connect(PEER_REQUIRED, { token: "own", retry: { attempts: 1 }, WebSocket: Left });
  await client.connect();
  assert.equal((await client.predict(image("sad"))).emotion_name, "sad");
  await left;
  await client.connect();
  await onlyOne();
});
