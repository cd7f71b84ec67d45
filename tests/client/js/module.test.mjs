// The module as programs take it: its names, also out of a bundler, and its types.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import * as module from "../../../client/js/visionai.js";

const { VisionAI } = module;
const read = (name) => readFile(new URL(`../../../client/js/${name}`, import.meta.url), "utf8");

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
  const declared = [...socket.matchAll(/^  (?:readonly )?(\w+)[(:]/gm)].map(([, name]) => name);
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
