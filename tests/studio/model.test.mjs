// What the page reckons, without a page: run by test_model.py with `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import * as model from "./model.mjs";

const IMAGES = [
  { number: 1, prompt: "a cat", score: 0.1, scores: { clip_style: 0.5, clip_leakage: 0.3 } },
  { number: 2, prompt: "a cat", score: 0.9, scores: { clip_style: 0.1, clip_leakage: 0.1 } },
  { number: 3, prompt: "a dog", score: 0.9, scores: { clip_style: 0.7, clip_leakage: 0.2 } },
  { number: 4, prompt: "a dog", score: 0.2, scores: {} },
];
const ALL = { order: "drawn", prompt: "", show: "all", words: "" };
const marks = (kept, dropped = []) => model.asMarks({ kept, dropped });
const numbers = (wanted, of = marks([])) => {
  return model.arranged([...IMAGES], of, { ...ALL, ...wanted }).map((image) => image.number);
};

test("images are sorted by a score, equals in their own order, those without last", () => {
  assert.deepEqual(numbers({}), [1, 2, 3, 4]);
  assert.deepEqual(numbers({ order: "score" }), [2, 3, 4, 1]);
  assert.deepEqual(numbers({ order: "clip_style" }), [3, 1, 2, 4]);
  assert.deepEqual(numbers({ order: "clip_leakage" }).slice(0, 3), [2, 3, 1]);
});

test("images are filtered by prompt, words and marks", () => {
  assert.deepEqual(numbers({ prompt: "a dog" }), [3, 4]);
  assert.deepEqual(numbers({ words: " CAT " }), [1, 2]);
  const of = marks([1, 3], [2]);
  assert.deepEqual(numbers({ show: "keep" }, of), [1, 3]);
  assert.deepEqual(numbers({ show: "drop" }, of), [2]);
  assert.deepEqual(numbers({ show: "open" }, of), [4]);
});

test("a mark takes the place of another, and changes lead from marks to marks", () => {
  const some = marks([1], [2]);
  model.setMark(some, 1, "drop");
  model.setMark(some, 2, "");
  assert.deepEqual([[...some.kept], [...some.dropped]], [[], [1]]);
  const changes = model.between(marks([1, 2], [3]), marks([2, 3], [4]));
  assert.deepEqual(changes, { 1: "", 3: "keep", 4: "drop" });
});

test("keys move within the rows and stop at their ends", () => {
  const at = (key, place) => model.moved(key, place, 10, 4);
  assert.equal(at("ArrowRight", 3), 4);
  assert.equal(at("ArrowLeft", 0), 0);
  assert.equal(at("ArrowDown", 5), 9);
  assert.equal(at("ArrowDown", 7), 7);
  assert.equal(at("ArrowUp", 5), 1);
  assert.equal(at("PageDown", 1), 9);
  assert.equal(at("PageUp", 9), 0);
  assert.equal(at("Home", 7), 0);
  assert.equal(at("End", 0), 9);
  assert.equal(at("a", 0), null);
});

test("the time left follows the pace of the stage at work", () => {
  const clock = new model.Clock();
  const stage = (name, done) => ({ name, done, total: 100 });
  assert.equal(clock.left(stage("training", 20), 0), null);
  assert.equal(clock.left(stage("training", 40), 10), 30);
  assert.equal(clock.left(stage("drawing", 0), 11), null);
  assert.equal(clock.left(undefined, 12), null);
  assert.equal(model.duration(31), "31 s");
  assert.equal(model.duration(600), "10 min");
  assert.equal(model.duration(9000), "2.5 h");
});

test("a new name is plain and free", () => {
  assert.equal(model.freeName("a house / <b>", []), "a-house-b");
  assert.equal(model.freeName("ein Häuschen", ["ein-Häuschen"]), "ein-Häuschen-2");
  assert.equal(model.freeName("…", ["mine"]), "mine-2");
});

test("the same seed stands side by side, the weaker strength first", () => {
  const one = (lambda_a, seed, made) => {
    return { file: `drawn/${made}.png`, prompt: "a cat", seed, lambda_a, lambda_b: 1, made };
  };
  const groups = model.sideBySide([one(2, 0, 3), one(1, 1, 2), one(0.5, 0, 1)]);
  assert.deepEqual(groups.map((group) => group.map((found) => found.made)), [[1, 3], [2]]);
});

test("a curve fills its box, of one point too", () => {
  assert.equal(model.path([[0, 1], [10, 0]], 100, 50), "M0.0,0.0L100.0,50.0");
  assert.equal(model.path([[5, 2]], 100, 50), "M0.0,50.0");
  assert.equal(model.path([], 100, 50), "");
});

test("a person chooses between rounds where there are two", () => {
  assert.ok(model.choosable("styledrop", "emoji128") && model.choosable("debug", "emoji128-muse"));
  assert.ok(!model.choosable("styledrop", "emoji128-muse") && !model.choosable("lora", "emoji128"));
});
