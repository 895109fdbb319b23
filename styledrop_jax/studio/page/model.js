// What the page reckons, without the page: tested by itself.

export const ORDERS = {
  drawn: "as drawn, by prompt",
  score: "the run's own score",
  clip_style: "style",
  clip_content: "content",
  clip_text: "text",
  clip_leakage: "least leakage",
};

// The images that are shown, in their order. `wanted`: {order, prompt, show, words}.
export function arranged(images, marks, wanted) {
  const words = wanted.words.trim().toLowerCase();
  const found = images.filter((image) => {
    if (wanted.prompt && image.prompt !== wanted.prompt) return false;
    if (words && !image.prompt.toLowerCase().includes(words)) return false;
    const mark = markOf(marks, image.number);
    if (wanted.show === "open") return mark === "";
    return wanted.show === "all" || mark === wanted.show;
  });
  if (wanted.order === "drawn") return found;
  const sign = wanted.order === "clip_leakage" ? -1 : 1;
  const value = (image) => {
    const score = wanted.order === "score" ? image.score : image.scores[wanted.order];
    return score === undefined ? -Infinity : sign * score;
  };
  return found.sort((a, b) => value(b) - value(a) || a.number - b.number);
}

export function markOf(marks, number) {
  if (marks.kept.has(number)) return "keep";
  return marks.dropped.has(number) ? "drop" : "";
}

export function setMark(marks, number, mark) {
  marks.kept.delete(number);
  marks.dropped.delete(number);
  if (mark === "keep") marks.kept.add(number);
  if (mark === "drop") marks.dropped.add(number);
}

export function asMarks({ kept, dropped }) {
  return { kept: new Set(kept), dropped: new Set(dropped) };
}

// The changes that lead from some marks to others: {number: "keep", "drop" or ""}.
export function between(before, after) {
  const changes = {};
  const numbers = [before.kept, before.dropped, after.kept, after.dropped];
  for (const number of new Set(numbers.flatMap((some) => [...some]))) {
    const mark = markOf(after, number);
    if (mark !== markOf(before, number)) changes[number] = mark;
  }
  return changes;
}

// Where a key leads among `count` images in rows of `columns`; null if it is no key of moving.
export function moved(key, place, count, columns) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const pages = { PageUp: -3 * columns, PageDown: 3 * columns };
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  const step = steps[key] ?? pages[key];
  if (step === undefined) return null;
  const to = place + step;
  if (key in pages) return Math.min(count - 1, Math.max(0, to));
  return to >= 0 && to < count ? to : place;
}

// Seconds that the stage at work may still take, from how it went since the page looked.
export class Clock {
  seen = null;

  left(stage, now) {
    if (!stage || !stage.total) return null;
    if (!this.seen || this.seen.name !== stage.name || stage.done < this.seen.done) {
      this.seen = { name: stage.name, done: stage.done, at: now };
    }
    const made = stage.done - this.seen.done;
    if (made <= 0) return null;
    return ((now - this.seen.at) / made) * (stage.total - stage.done);
  }
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function since(then, now) {
  const passed = now - then;
  return passed < 60 ? "just now" : `${duration(passed)} ago`;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let value = bytes;
  for (const unit of units) {
    if (value < 1000 || unit === "GB") return `${value.toFixed(unit === "B" ? 0 : 1)} ${unit}`;
    value /= 1000;
  }
  return "";
}

// A name for a new run that is not taken: "a house" → "a-house", "a-house-2".
export function freeName(words, taken) {
  const plain = words.normalize("NFC").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  const stem = plain.slice(0, 40) || "mine";
  let name = stem;
  for (let count = 2; taken.includes(name); count++) name = `${stem}-${count}`;
  return name;
}

// Images of one prompt and seed stand side by side, in the order of their strengths.
export function sideBySide(results) {
  const groups = new Map();
  for (const result of results) {
    const key = JSON.stringify([result.file.split("/")[0], result.prompt, result.seed]);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(result);
  }
  const strength = (one) => [one.round ?? 0, one.lambda_a ?? 0, one.lambda_b ?? 0, one.strength ?? 0];
  for (const group of groups.values()) {
    group.sort((a, b) => {
      const [first, second] = [strength(a), strength(b)];
      const place = first.findIndex((value, i) => value !== second[i]);
      return place < 0 ? a.made - b.made : first[place] - second[place];
    });
  }
  return [...groups.values()];
}

// A line through the points of a curve, in a box of `width` by `height`.
export function path(points, width, height) {
  if (!points.length) return "";
  const steps = points.map(([step]) => step);
  const values = points.map(([, value]) => value);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const across = (step) => ((step - first) / (last - first || 1)) * width;
  const down = (value) => height - ((value - low) / (high - low || 1)) * height;
  const parts = points.map(([s, v]) => `${across(s).toFixed(1)},${down(v).toFixed(1)}`);
  return `M${parts.join("L")}`;
}

// Whether a run has a second round, to choose for: StyleDrop on the shipped Muse stops after one.
export function choosable(method, base) {
  return method === "debug" || (method === "styledrop" && base !== "emoji128-muse");
}
