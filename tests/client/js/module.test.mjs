// The module without a server: addresses, WebSocket classes, names in a bundle, and types.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import * as module from "../../../client/js/visionai.js";
import { connect } from "./clients.mjs";

const { VisionAI } = module;
const read = (name) => readFile(new URL(`../../../client/js/${name}`, import.meta.url), "utf8");

test("an address that is none is named", () => {
  for (const url of ["/ws", "localhost", "localhost:8000", "http://x", "ws://", "ws://x/#", "ws://x/ws#tab", ""]) {
    assert.throws(() => connect(url), { name: "TypeError", message: new RegExp(`^${url} is not a WebSocket address`) });
  }
});

test("an address that the WebSocket class refuses is one that cannot be connected to", async () => {
  // As browsers do with a ws: address in a page of https.
  let tried = 0;
  class Refusing {
    constructor() {
      tried++;
      throw new DOMException("An insecure WebSocket connection may not be initiated", "SecurityError");
    }
  }
  const client = connect("ws://127.0.0.1:9/ws", { WebSocket: Refusing });
  const message = "cannot connect to ws://127.0.0.1:9/ws: An insecure WebSocket connection may not be initiated";
  await assert.rejects(client.connect(), { name: "ConnectionFailed", code: "cannot_connect", message });
  assert.equal(tried, 1); // nobody has greeted there yet: the address may be wrong
  await assert.rejects(client.predict(new Uint8Array()), { code: "cannot_connect" });
});

test("a WebSocket class whose errors must be listened to is none the worse for it", async () => {
  // As the package ws has it: closing before it is open is an error, and so is what breaks the protocol.
  class Strict {
    static last;
    constructor() {
      Strict.last = this;
    }
    close() {
      this.fail();
    }
    fail() {
      assert.equal(typeof this.onerror, "function");
      this.onerror({});
    }
  }
  const late = connect("ws://127.0.0.1:9/ws", { WebSocket: Strict, connectTimeoutMs: 10 });
  await assert.rejects(late.connect(), { code: "cannot_connect", message: /no answer within 10 ms/ });
  const open = connect("ws://127.0.0.1:9/ws", { WebSocket: Strict });
  const connected = open.connect();
  await new Promise(setImmediate);
  Strict.last.onmessage({ data: '{"type": "welcome", "commands": {}}' });
  await connected;
  Strict.last.fail();
  Strict.last.onclose({ code: 1006, reason: "" });
  assert.equal(open.state, "closed");
});

for (const [what, asked] of [["is being configured", true], ["has just greeted", false]]) {
  test(`closing ends a connection that ${what}`, async () => {
    let socket;
    let open = true;
    class Slow {
      constructor() {
        socket = this;
      }
      send() {}
      close() {
        open = false;
      }
    }
    const client = connect("ws://127.0.0.1:9/ws", { WebSocket: Slow });
    const told = assert.rejects(client.connect(), { code: "connection_lost", message: "the client is closed" });
    await new Promise(setImmediate);
    socket.onmessage({ data: '{"type": "welcome", "protocol": 2, "commands": {"configure": ""}}' });
    if (asked) await new Promise(setImmediate);
    assert.ok(open);
    client.close();
    await new Promise(setImmediate);
    assert.ok(!open);
    await told;
  });
}

test("errors keep their names where a bundler shortens those of classes", async () => {
  let code = await read("visionai.js");
  const names = Object.keys(module).filter((name) => module[name].prototype instanceof Error);
  names.forEach((name, at) => (code = code.replaceAll(new RegExp(`(?<!")\\b${name}\\b(?!")`, "g"), `e${at}`)));
  const shortened = await import(`data:text/javascript,${encodeURIComponent(code)}`);
  assert.ok(names.length > 5);
  names.forEach((name, at) => assert.equal(new shortened[`e${at}`]("why").name, name));
});

test("the types declare what the module exports", async () => {
  const types = await read("visionai.d.ts");
  const classes = [...types.matchAll(/^export class (\w+)/gm)].map(([, name]) => name);
  assert.deepEqual(classes.sort(), Object.keys(module).sort());
  const body = types.slice(types.indexOf("export class VisionAI extends EventTarget"));
  const members = [...body.matchAll(/^  (?:get )?(\w+)[(<]/gm)].map(([, name]) => name);
  const declared = members.filter((name) => !(name in EventTarget.prototype) || name === "constructor");
  assert.deepEqual(declared.sort(), Object.getOwnPropertyNames(VisionAI.prototype).sort());
});

test("the types declare what a client fires", async () => {
  const [, events] = (await read("visionai.d.ts")).match(/^export interface VisionAIEvents {\n([^}]*)}/m);
  const declared = [...events.matchAll(/^  (\w+): (\w+)/gm)].map(([, name, type]) => `${type} ${name}`);
  const fired = [...(await read("visionai.js")).matchAll(/new (\w*Event)\("(\w+)"/g)].map(([, type, name]) => `${type} ${name}`);
  assert.deepEqual(declared.sort(), [...new Set(fired)].sort());
});

test("the types declare what a client needs of a WebSocket", async () => {
  const [, socket] = (await read("visionai.d.ts")).match(/^export interface Socket {\n([^}]*)}/m);
  const declared = [...socket.matchAll(/^  (?:readonly )?(\w+)\??[(:]/gm)].map(([, name]) => name);
  const used = [...(await read("visionai.js")).matchAll(/\bsocket\.(\w+)/g)].map(([, name]) => name);
  assert.deepEqual(declared.sort(), [...new Set(used)].sort());
});

test("the types name nothing that only browsers' own types have", async () => {
  const types = (await read("visionai.d.ts")).replaceAll(/\/\*\*.*?\*\/|"[^"\n]*"/gs, "");
  const declared = [...types.matchAll(/^export (?:class|interface|type) (\w+)/gm)].map(([, name]) => name);
  const language = ["ArrayBuffer", "ArrayBufferView", "AsyncGenerator", "AsyncIterable", "Error", "Iterable", "Promise", "Record", "TypeError"];
  const platform = ["AbortSignal", "Blob", "CustomEvent", "DOMException", "Event", "EventTarget"]; // Node's types have them
  const known = new Set([...declared, ...language, ...platform, "Name", "Image"]); // these two are type parameters
  const named = [...types.matchAll(/\b[A-Z]\w+(?!\w|\??:)/g)].map(([name]) => name);
  assert.deepEqual(named.filter((name) => !known.has(name)), []);
});
