// The JavaScript client against the real service. Its address and a face are in the environment.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, test } from "node:test";
import { VisionAI } from "../../../client/js/visionai.js";

const face = await readFile(process.env.FACE);
const client = new VisionAI(process.env.SERVICE);
after(() => client.close());

test("a face is recognised from a binary frame", async () => {
  assert.equal((await client.connect()).protocol, 2);
  const found = await client.predict(new Blob([face]));
  assert.equal(found.emotion_name, "happy");
  assert.ok(Math.abs(Object.values(found.probabilities).reduce((a, b) => a + b) - 1) < 1e-3);
  assert.ok(found.timing.total > 0);
  assert.match(found.prediction_id, /^[0-9a-f-]{36}$/);
});

test("many faces with a bad one", async () => {
  const images = [...Array(40).fill(face), Buffer.from("no image"), ...Array(40).fill(face)];
  const found = [];
  for await (const { prediction, error } of client.predictMany(images)) found.push(prediction?.emotion_name ?? error.code);
  assert.deepEqual(found, [...Array(40).fill("happy"), "invalid_image", ...Array(40).fill("happy")]);
});

test("one image is not many, nor is none", async () => {
  for (const one of [face, face.buffer, new Blob([face]), "face.jpg", undefined, null]) {
    await assert.rejects(client.predictMany(one).next(), { name: "TypeError", message: /several images.*predict takes one/ });
  }
});

test("the service describes itself", async () => {
  assert.equal((await client.emotions()).length, 7);
  assert.equal((await client.modelInfo()).status, "loaded");
  assert.equal((await client.health()).status, "healthy");
  const [{ version_tag }] = await client.models();
  assert.equal((await client.predict(face, { priority: "high" })).model_version_tag, version_tag);
  assert.ok((await client.ping()) > 0);
});

test("a stream answers every frame once", async () => {
  const camera = new VisionAI(process.env.SERVICE);
  try {
    assert.equal((await camera.configure({ stream: true })).stream, true);
    const outcomes = await Promise.allSettled(Array.from({ length: 60 }, () => camera.predict(face)));
    const codes = new Set(outcomes.map(({ reason }) => reason?.code));
    codes.delete(undefined);
    codes.delete("superseded");
    assert.deepEqual([...codes], []);
    assert.equal(outcomes.at(-1).value?.emotion_name, "happy"); // the newest frame wins
  } finally {
    camera.close();
  }
});
