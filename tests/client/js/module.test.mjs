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
