// A brush for the mask of an edit: white is generated anew, at the picture's own size.
import { h, labelled } from "./dom.js";

const PAINT = "rgb(122 83 220)";

export class Brush {
  constructor(source) {
    this.width = 0.12; // of the picture's shorter side
    this.strokes = [];
    this.image = h("img", { src: source, alt: "the picture to edit" });
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": "Paint what is drawn anew. Arrows move the brush, space paints, U undoes.",
    });
    this.cursor = { x: 0.5, y: 0.5 };
    this.image.addEventListener("load", () => this.fit());
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", () => (this.painting = false));
    this.canvas.addEventListener("pointercancel", () => (this.painting = false));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  element() {
    const width = h("input", { type: "range", min: "2", max: "50", value: "12" });
    width.addEventListener("input", () => (this.width = Number(width.value) / 100));
    const undo = h("button", { type: "button", onclick: () => this.undo() }, "Undo");
    const clear = h("button", { type: "button", onclick: () => this.clear() }, "Clear");
    const tools = h("div", { class: "row" }, labelled("Brush", width), undo, clear);
    return h("div", { class: "brush" }, h("div", { class: "easel" }, this.image, this.canvas), tools);
  }

  fit() {
    this.canvas.width = this.image.naturalWidth;
    this.canvas.height = this.image.naturalHeight;
    this.image.classList.toggle("pixels", this.image.naturalWidth <= 128);
    this.draw();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.painting = true;
    this.strokes.push({ width: this.width, points: [this.point(event)] });
    this.draw();
  }

  move(event) {
    if (!this.painting) return;
    this.strokes[this.strokes.length - 1].points.push(this.point(event));
    this.draw();
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      const held = (value) => Math.min(1, Math.max(0, value));
      this.cursor.x = held(this.cursor.x + step[0] * 0.03);
      this.cursor.y = held(this.cursor.y + step[1] * 0.03);
    } else if (event.key === " ") {
      this.strokes.push({ width: this.width, points: [{ ...this.cursor }] });
    } else if (event.key.toLowerCase() === "u") this.strokes.pop();
    else return;
    event.preventDefault();
    this.draw(true);
  }

  undo() {
    this.strokes.pop();
    this.draw();
  }

  clear() {
    this.strokes = [];
    this.draw();
  }

  paint(context, colour) {
    const { width, height } = this.canvas;
    const shorter = Math.min(width, height);
    context.strokeStyle = colour;
    context.lineCap = "round";
    context.lineJoin = "round";
    for (const stroke of this.strokes) {
      context.lineWidth = stroke.width * shorter;
      context.beginPath();
      const [first, ...rest] = stroke.points;
      context.moveTo(first.x * width, first.y * height);
      for (const point of rest.length ? rest : [first]) {
        context.lineTo(point.x * width, point.y * height);
      }
      context.stroke();
    }
  }

  draw(pointer = false) {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.paint(context, PAINT);
    if (!pointer) return;
    const { width, height } = this.canvas;
    context.strokeStyle = "black";
    context.lineWidth = Math.max(1, width / 200);
    context.beginPath();
    const radius = (this.width * Math.min(width, height)) / 2;
    context.arc(this.cursor.x * width, this.cursor.y * height, radius, 0, 2 * Math.PI);
    context.stroke();
  }

  // The mask as a PNG, white on black; null if nothing is painted.
  async mask() {
    if (!this.strokes.length) return null;
    const canvas = document.createElement("canvas");
    canvas.width = this.canvas.width;
    canvas.height = this.canvas.height;
    const context = canvas.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.paint(context, "white");
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}
