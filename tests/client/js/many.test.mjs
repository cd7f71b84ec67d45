// Many images whose source waits for them. Addresses are in the environment.
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, image } from "./clients.mjs";

const { PEER } = process.env;
const patience = { timeout: 20_000 }; // what waits for nothing would wait for ever
const emotions = async (outcomes) => {
  const found = [];
  for await (const { index, prediction } of outcomes) found.push([index, prediction.emotion_name]);
  return found;
};

const ignore = () => {};

/** A source that gives one image, and then none; `asked` is resolved once it is waited for. */
function stuck(first = image("sad")) {
  const source = { told: 0, [Symbol.asyncIterator]: () => source };
  source.asked = new Promise((asked) => {
    source.next = () => {
      if (first) {
        const value = first;
        first = null;
        return Promise.resolve({ done: false, value });
      }
      asked();
      return new Promise((_, reject) => (source.fail = reject));
    };
  });
  source.return = () => {
    source.told++;
    return new Promise(ignore); // as of a generator that is asked for an image already
  };
  return source;
}

test("an outcome does not wait for the images after it", patience, async () => {
  let seen;
  async function* answeredFirst() {
    for (const emotion of ["sad", "happy", "fear"]) {
      const answered = new Promise((resolve) => (seen = resolve));
      yield image(emotion);
      await answered;
    }
  }
  const found = [];
  for await (const { index, prediction } of connect(PEER).predictMany(answeredFirst())) {
    found.push([index, prediction.emotion_name]);
    seen();
  }
  assert.deepEqual(found, [[0, "sad"], [1, "happy"], [2, "fear"]]);
});

test("outcomes are in order, whichever is there first, and whatever the source", patience, async () => {
  const script = () => [image("angry", { first: [{ error: "overloaded", retry_after_ms: 50 }] }), image("sad"), image("happy")];
  const want = [[0, "angry"], [1, "sad"], [2, "happy"]];
  async function* slowly() {
    for (const one of script()) {
      await new Promise(setImmediate);
      yield one;
    }
  }
  assert.deepEqual(await emotions(connect(PEER).predictMany(slowly())), want);
  assert.deepEqual(await emotions(connect(PEER).predictMany(script().map((one) => Promise.resolve(one)))), want);
  assert.deepEqual(await emotions(connect(PEER).predictMany([])), []);
});

test("an abort is heard while the source has no image, and the source is told", patience, async () => {
  const source = stuck();
  const abort = new AbortController();
  const outcomes = connect(PEER).predictMany(source, { signal: abort.signal });
  assert.equal((await outcomes.next()).value.prediction.emotion_name, "sad");
  const next = outcomes.next();
  await source.asked;
  abort.abort(new Error("enough"));
  await assert.rejects(next, { message: "enough" });
  assert.equal(source.told, 1);
  source.fail(new Error("nobody waits for this any more")); // unhandled, it would fail this test
  await new Promise(setImmediate);
});

test("what fails all is thrown while the source has no image, and the source is told", patience, async () => {
  const source = stuck(image("sad", { first: [{ error: "unauthorized" }] }));
  await assert.rejects(connect(PEER).predictMany(source).next(), { code: "unauthorized" });
  assert.equal(source.told, 1);
});

test("what a source throws is thrown, and one that is left is ended", patience, async () => {
  async function* failing() {
    yield image("sad", { gated: true });
    throw new Error("the camera is gone");
  }
  await assert.rejects(connect(PEER).predictMany(failing()).next(), { message: "the camera is gone" });
  for (const concurrency of [1, 16]) {
    let ended = false;
    function* left() {
      try {
        for (;;) yield image("sad");
      } finally {
        ended = true;
      }
    }
    for await (const _ of connect(PEER).predictMany(left(), { concurrency })) break;
    assert.ok(ended);
  }
});
