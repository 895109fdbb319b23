// A new run: pictures are dropped, words are proposed, one button starts it.
import { fill, h, labelled, say, select, sharpen } from "./dom.js";
import { choosable, duration, freeName } from "./model.js";
import { get, post, trying, upload } from "./net.js";

const MOST = 20;

export async function show(page) {
  const [{ methods, bases }, runs] = await Promise.all([get("/api/methods"), get("/api/runs")]);
  if (page.over) return;
  new Form(page, methods, bases, runs.map((run) => run.name)).draw();
}

class Form {
  constructor(page, methods, bases, taken) {
    Object.assign(this, { page, methods, bases, taken });
    this.pictures = [];
    this.method = "styledrop";
    this.base = "emoji128";
    this.counting = 0;
  }

  draw() {
    const file = h("input", { type: "file", accept: "image/*", multiple: true, class: "hidden" });
    file.addEventListener("change", () => this.take([...file.files]));
    const choose = h("button", { type: "button", class: "primary", onclick: () => file.click() });
    choose.append("Choose pictures");
    this.drop = h("div", { class: "drop" }, h("p", {}, "Drop one picture, or up to 20"), choose, file);
    this.list = h("ul", { class: "given" });
    this.descriptor = h("input", { list: "found", autocomplete: "off" });
    this.descriptor.placeholder = "in watercolor painting style";
    this.found = h("datalist", { id: "found" });
    this.proposed = h("div", { class: "row chips" });
    this.name = h("input", { maxlength: "60", autocomplete: "off" });
    this.identifier = h("input", { value: "sks" });
    this.noun = h("input", { placeholder: "dog" });
    this.subject = h(
      "div",
      { class: "pairs" },
      labelled("A rare word for it", this.identifier),
      labelled("What kind of thing it is", this.noun),
    );
    this.subject.hidden = true;
    this.choose = h("input", { type: "checkbox", checked: true });
    this.chooses = h("label", { class: "check" }, this.choose, "I choose between the rounds");
    this.cost = h("p", { class: "cost", "aria-live": "polite" });
    this.start = h("button", { type: "submit", class: "primary large", disabled: true }, "Start");
    const method = select(Object.entries(this.methods), this.method, (value) => this.take_method(value));
    const base = select(Object.entries(this.bases), this.base, (value) => {
      this.base = value;
      this.chooses.hidden = !choosable(this.method, this.base);
      this.count();
    });
    const form = h(
      "form",
      { class: "new", onsubmit: (event) => this.begin(event) },
      this.drop,
      this.list,
      labelled("How it is drawn", this.descriptor, "The same words are added to every prompt."),
      this.found,
      this.proposed,
      labelled("Method", method),
      labelled("Base model", base),
      this.subject,
      this.chooses,
      labelled("Name", this.name),
      this.cost,
      h("div", { class: "row" }, this.start),
    );
    this.dropping(form);
    fill(this.page.view, h("div", { class: "heading" }, h("h1", {}, "New run")), form);
  }

  dropping(form) {
    const over = (event) => {
      event.preventDefault();
      this.drop.classList.add("over");
    };
    form.addEventListener("dragover", over);
    form.addEventListener("dragleave", () => this.drop.classList.remove("over"));
    form.addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.classList.remove("over");
      this.take([...event.dataTransfer.files]);
    });
  }

  async take(files) {
    for (const file of files.slice(0, MOST - this.pictures.length)) {
      const found = await trying(() => upload(file));
      if (!found || this.page.over) continue;
      const given = { upload: found.upload, content: h("input", { placeholder: "a house" }) };
      given.content.value = found.words; // as the file's name says
      this.pictures.push(given);
      this.draw_given();
      const first = this.pictures.length === 1;
      if (first || !found.words) await this.propose(given, first);
      else this.count();
    }
    if (files.length > MOST) say(`The first ${MOST} are taken.`);
  }

  draw_given() {
    fill(
      this.list,
      this.pictures.map((given) => {
        const query = new URLSearchParams({ upload: given.upload, side: 320 });
        const image = h("img", { src: `/thumb?${query}`, alt: "", onload: sharpen });
        const remove = () => {
          this.pictures = this.pictures.filter((other) => other !== given);
          this.draw_given();
          this.count();
        };
        const words = labelled("What it shows", given.content);
        const button = h("button", { type: "button", class: "plain", onclick: remove }, "Remove");
        return h("li", {}, image, words, button);
      }),
    );
    this.start.disabled = !this.pictures.length;
  }

  // The picture's own words, found by CLIP: the first proposal is taken, to be mended.
  async propose(given, first) {
    this.say_cost("Looking at the picture …");
    const body = { upload: given.upload, content: given.content.value };
    const found = await trying(() => post("/api/describe", body));
    if (this.page.over) return;
    if (found) {
      if (!given.content.value) given.content.value = found.content;
      if (first) this.words(found);
    }
    await this.count();
  }

  words(found) {
    fill(this.found, found.descriptors.map((words) => h("option", { value: words })));
    const take = (words) => () => (this.descriptor.value = words);
    const chips = found.descriptors.map((words) => {
      return h("button", { type: "button", class: "chip", onclick: take(words) }, words);
    });
    const more = h("button", { type: "button", class: "plain" }, "Search for a hard prompt");
    more.addEventListener("click", () => this.search(more));
    fill(this.proposed, h("small", {}, "Proposed, take what is true:"), chips, more);
    if (!this.descriptor.value) this.descriptor.value = found.descriptors[0] ?? "";
    if (!this.name.value) this.name.value = freeName(found.content, this.taken);
  }

  // Words of CLIP's vocabulary that fit the picture better still: the last of the descriptors.
  async search(button) {
    const [given] = this.pictures;
    if (!given) return;
    const body = { upload: given.upload, content: given.content.value, hard: true };
    const found = await trying(() => post("/api/describe", body), button);
    if (!found || this.page.over) return;
    const words = found.descriptors.at(-1);
    const take = () => (this.descriptor.value = words);
    button.replaceWith(h("button", { type: "button", class: "chip", onclick: take }, words));
  }

  take_method(value) {
    this.method = value;
    this.subject.hidden = value !== "dreambooth";
    this.chooses.hidden = !choosable(this.method, this.base);
    this.count();
  }

  body() {
    return {
      name: this.name.value.trim(),
      method: this.method,
      base: this.base,
      descriptor: this.descriptor.value,
      identifier: this.identifier.value,
      noun: this.noun.value,
      choose: this.choose.checked && choosable(this.method, this.base),
      pictures: this.pictures.map((given) => {
        return { upload: given.upload, content: given.content.value };
      }),
    };
  }

  say_cost(text) {
    fill(this.cost, text);
  }

  // What it takes, said before it starts; only the last question is answered.
  async count() {
    const own = ++this.counting;
    if (!this.pictures.length) return this.say_cost("");
    this.say_cost("Reckoning what it takes …");
    const body = this.body();
    // The words do not count, so those that are still missing need not be there.
    for (const given of body.pictures) given.content ||= "a thing";
    for (const name of ["descriptor", "identifier", "noun"]) body[name] ||= "thing";
    const found = await post("/api/plan", body).catch((error) => ({ line: error.message }));
    if (own !== this.counting) return;
    const { run, seconds } = found.took ?? {};
    const time = run
      ? `The last one like it, ${run}, took ${duration(seconds)}.`
      : "How long it takes here is known after the first one like it.";
    this.say_cost(`${found.line}. ${this.bases[this.base]}. ${time}`);
  }

  async begin(event) {
    event.preventDefault();
    const done = await trying(() => post("/api/new", this.body()), this.start);
    if (!done) return;
    say(`${done.run} is in the queue.`);
    location.hash = "#/";
  }
}

