// Choosing between rounds: every image of a round beside the reference.
import { address, fill, h, labelled, picture, say, select, sharpen } from "./dom.js";
import { ORDERS, arranged, asMarks, between, markOf, moved, setMark } from "./model.js";
import { get, post, trying } from "./net.js";
import { link } from "./runs.js";

const KEYS = "Arrows move, space keeps, X drops, U undoes, Enter looks closer.";
const WORDS = { keep: "kept", drop: "dropped", "": "" };

export async function show(page, run, round) {
  const [data, about] = await Promise.all([
    get("/api/round", { run, round }),
    get("/api/run", { run }),
  ]);
  if (page.over) return;
  const table = new Table(page, run, data, about.references);
  table.draw();
  const marks = (found) => table.merge(found);
  page.events(run, { marks });
}

class Table {
  constructor(page, run, data, references) {
    Object.assign(this, { page, run, data, references });
    this.marks = asMarks(data.marks);
    this.saved = asMarks(data.marks);
    this.history = [];
    this.saving = 0;
    this.cells = new Map();
    this.byNumber = new Map(data.images.map((image) => [image.number, image]));
    this.wanted = { order: "drawn", prompt: "", show: "all", words: "" };
    this.shown = data.images;
    this.at = data.images[0]?.number ?? 0;
    this.reference = 0;
  }

  // ------------------------------------------------------------ drawing

  draw() {
    const { data } = this;
    this.grid = h("ul", { class: "pool", "aria-label": `Images of round ${data.round}` });
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.grid.addEventListener("click", (event) => this.click(event));
    this.grid.addEventListener("focusin", (event) => this.focused(event));
    this.easel = h("section", { class: "easel", "aria-label": "Reference and image" });
    this.count = h("p", { class: "count", "aria-live": "polite" });
    this.closer = this.dialog();
    const side = h("aside", { class: "side" }, this.easel, this.actions(), this.count);
    const heading = h(
      "div",
      { class: "heading" },
      h("h1", {}, h("a", { href: link(this.run) }, this.run), ` · round ${data.round}`),
      data.open ? h("p", {}, KEYS) : h("p", {}, "This round is chosen; here is what was taken."),
    );
    const body = h("div", { class: "choosing" }, side, h("div", {}, this.tools(), this.grid));
    fill(this.page.view, heading, body, this.closer);
    for (const image of data.images) this.cells.set(image.number, this.cell(image));
    this.arrange();
    this.look(this.at);
    this.tell();
  }

  cell(image) {
    const { run, data } = this;
    const small = picture(run, image.file, { side: 160, version: data.version });
    const button = h("button", { type: "button", tabindex: "-1", class: "cell" }, small);
    button.append(h("span", { class: "words" }, image.prompt));
    button.dataset.number = image.number;
    const cell = h("li", {}, button);
    this.paint(cell, image);
    return cell;
  }

  paint(cell, image) {
    const mark = markOf(this.marks, image.number);
    const button = cell.firstChild;
    if (button.dataset.mark === mark) return;
    button.dataset.mark = mark;
    button.setAttribute("aria-pressed", String(mark === "keep"));
    const state = WORDS[mark] ? `, ${WORDS[mark]}` : "";
    button.setAttribute("aria-label", `${image.prompt}, image ${image.number}${state}`);
  }

  tools() {
    const change = (name) => (value) => {
      this.wanted[name] = value;
      this.arrange();
    };
    const prompts = [...new Set(this.data.images.map((image) => image.prompt))];
    const options = [["", `all ${prompts.length} prompts`], ...prompts.map((p) => [p, p])];
    const shows = [
      ["all", "all images"],
      ["open", "not yet judged"],
      ["keep", "kept"],
      ["drop", "dropped"],
    ];
    const words = h("input", {
      type: "search",
      placeholder: "words of a prompt",
      oninput: (event) => change("words")(event.target.value),
    });
    const sizes = h("input", { type: "range", min: "72", max: "320", value: "128" });
    sizes.addEventListener("input", () => {
      this.grid.style.setProperty("--cell", `${sizes.value}px`);
    });
    const tools = h(
      "div",
      { class: "tools" },
      labelled("Order", select(Object.entries(ORDERS), "drawn", change("order"))),
      labelled("Prompt", select(options, "", change("prompt"))),
      labelled("Show", select(shows, "all", change("show"))),
      labelled("Search", words),
      labelled("Size", sizes),
    );
    const open = matchMedia("(min-width: 60rem)").matches;
    return h("details", { open }, h("summary", {}, "Sort, filter, size"), tools);
  }

  actions() {
    if (!this.data.open) return null;
    const button = (words, work, kind = "") => {
      return h("button", { type: "button", class: kind, onclick: work }, words);
    };
    this.goOn = button("Continue", (event) => this.next(event.target), "primary");
    this.back = button("Undo", () => this.undo());
    return h(
      "div",
      { class: "actions" },
      button("Keep", () => this.mark("keep")),
      button("Drop", () => this.mark("drop")),
      this.back,
      button("CLIP’s choice", (event) => this.start(event.target)),
      this.goOn,
    );
  }

  arrange() {
    this.shown = arranged([...this.data.images], this.marks, this.wanted);
    const cells = this.shown.map((image) => this.cells.get(image.number));
    const empty = h("li", { class: "empty" }, "No image is like that.");
    this.grid.replaceChildren(...(cells.length ? cells : [empty]));
    if (!this.shown.some((image) => image.number === this.at) && this.shown.length) {
      this.look(this.shown[0].number);
    }
  }

  // Shows an image beside the reference; its cell is the one that Tab comes to.
  look(number) {
    this.cells.get(this.at)?.firstChild.setAttribute("tabindex", "-1");
    this.at = number;
    const image = this.byNumber.get(number);
    if (!image) return;
    this.cells.get(number).firstChild.setAttribute("tabindex", "0");
    fill(this.easel, this.pair(image));
    if (this.closer.open) this.close_up(image);
  }

  pair(image) {
    const { run, references } = this;
    const reference = references[this.reference];
    const large = (file) => h("img", { src: address(run, file), alt: "", onload: sharpen });
    const scores = Object.entries(image.scores)
      .filter(([name]) => name in ORDERS)
      .map(([name, value]) => `${ORDERS[name].replace("least ", "")} ${value.toFixed(2)}`);
    const words = h(
      "figcaption",
      {},
      h("strong", {}, image.prompt),
      h("small", {}, scores.join(" · ")),
    );
    const own = h("figure", { class: "own" }, large(image.file), words);
    own.dataset.mark = markOf(this.marks, image.number);
    if (!reference) return [own];
    const caption = [h("strong", {}, "reference"), h("small", {}, reference.descriptor)];
    const others = references.length > 1 ? this.others() : null;
    const given = h("figure", {}, large(reference.file), h("figcaption", {}, caption, others));
    return [given, own];
  }

  // Several references are looked at one after the other.
  others() {
    const turn = () => {
      this.reference = (this.reference + 1) % this.references.length;
      this.look(this.at);
    };
    const words = `${this.reference + 1} of ${this.references.length}: next`;
    return h("button", { type: "button", class: "plain", onclick: turn }, words);
  }

  dialog() {
    this.large = h("div", { class: "pair" });
    this.judged = h("p", { "aria-live": "polite" });
    const close = h("button", { type: "button", onclick: () => this.closer.close() }, "Close");
    const row = h("div", { class: "row" }, this.judged, close);
    const properties = { class: "closer", tabindex: "-1", "aria-label": "A closer look" };
    const dialog = h("dialog", properties, this.large, row);
    dialog.addEventListener("keydown", (event) => this.key(event));
    dialog.addEventListener("close", () => {
      this.look(this.closely); // the browser has gone back to where it was opened
      this.focusCell();
    });
    return dialog;
  }

  close_up(image) {
    this.closely = image.number;
    fill(this.large, this.pair(image));
    fill(this.judged, WORDS[markOf(this.marks, image.number)] || "not judged");
  }

  tell() {
    const kept = this.marks.kept.size;
    const { suggested, open } = this.data;
    const dots = [];
    for (let place = 0; place < Math.max(suggested, Math.min(kept, 30)); place++) {
      dots.push(h("i", { class: place < kept ? "full" : "" }));
    }
    const more = kept > suggested ? ": more are seldom better" : "";
    const words = open ? `${kept} kept; about ${suggested} are enough${more}` : `${kept} taken`;
    fill(this.count, h("span", { class: "dots", "aria-hidden": "true" }, dots), words);
    if (!open) return;
    this.goOn.disabled = kept === 0;
    fill(this.goOn, kept ? `Continue with ${kept}` : "Continue");
    this.back.disabled = !this.history.length;
  }

  // ------------------------------------------------------------ hands

  click(event) {
    const button = event.target.closest("button.cell");
    if (!button) return;
    const number = Number(button.dataset.number);
    this.look(number);
    this.mark("keep");
  }

  focused(event) {
    const button = event.target.closest("button.cell");
    if (button && Number(button.dataset.number) !== this.at) {
      this.look(Number(button.dataset.number));
    }
  }

  key(event) {
    if (event.metaKey || event.altKey) return;
    const place = this.shown.findIndex((image) => image.number === this.at);
    const to = event.ctrlKey ? null : moved(event.key, place, this.shown.length, this.columns());
    const letter = event.key.toLowerCase();
    if (to !== null) {
      this.look(this.shown[to].number);
      if (!this.closer.open) this.focusCell();
    } else if (letter === "u" || (letter === "z" && event.ctrlKey)) this.undo();
    else if (event.ctrlKey) return;
    else if (event.key === " ") this.mark("keep");
    else if (letter === "x" || event.key === "Delete" || event.key === "Backspace") this.mark("drop");
    else if (event.key === "Enter") this.closer.open ? this.closer.close() : this.open();
    else return;
    event.preventDefault();
  }

  columns() {
    return getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
  }

  focusCell() {
    const button = this.cells.get(this.at)?.firstChild;
    button?.focus({ preventScroll: true });
    button?.scrollIntoView({ block: "nearest" });
  }

  open() {
    this.close_up(this.byNumber.get(this.at));
    this.closer.showModal();
    this.closer.focus(); // not its button: space keeps
  }

  // ------------------------------------------------------------ marks

  // The same mark again takes it back.
  mark(what) {
    if (!this.data.open) return;
    const before = markOf(this.marks, this.at);
    this.change({ [this.at]: before === what ? "" : what });
  }

  change(changes, remembered = true) {
    const before = {};
    for (const [number, mark] of Object.entries(changes)) {
      before[number] = markOf(this.marks, Number(number));
      setMark(this.marks, Number(number), mark);
    }
    if (remembered) this.history.push(before);
    this.repaint(Object.keys(changes));
    return this.save(changes);
  }

  undo() {
    const before = this.history.pop();
    if (before) this.change(before, false);
  }

  async save(changes) {
    const { run, data } = this;
    this.saving++;
    const found = await trying(() => post("/api/mark", { run, round: data.round, changes }));
    this.saving--;
    if (found) this.saved = asMarks(found);
    if (!this.saving) this.merge(this.saved);
  }

  async start(button) {
    const { run, data } = this;
    const found = await trying(() => post("/api/start", { run, round: data.round }), button);
    if (!found) return;
    this.history.push(between(asMarks(found), this.marks));
    this.merge(found);
    say("CLIP’s ten best, each of another prompt. Take away what does not belong.");
  }

  // The marks as the run has them: another page may have made some.
  merge(found) {
    if (this.saving || !found) return;
    const next = asMarks({ kept: [...found.kept], dropped: [...found.dropped] });
    const changes = between(this.marks, next);
    this.marks = next;
    this.repaint(Object.keys(changes));
    // Marks may come after the filter that asks for them.
    if (this.wanted.show !== "all" && Object.keys(changes).length) this.arrange();
  }

  repaint(numbers) {
    for (const number of numbers.map(Number)) {
      const image = this.byNumber.get(number);
      if (image) this.paint(this.cells.get(number), image);
    }
    if (numbers.map(Number).includes(this.at)) this.look(this.at);
    this.tell();
  }

  async next(button) {
    const done = await trying(() => post("/api/continue", { run: this.run }), button);
    if (done) location.hash = link(this.run);
  }
}
