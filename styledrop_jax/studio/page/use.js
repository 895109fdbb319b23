// Using a finished run: draw, mix, stylize, edit, export; what was made, and the line that makes it.
import { Brush } from "./brush.js";
import { address, fill, h, labelled, picture, say, select } from "./dom.js";
import { sideBySide, size } from "./model.js";
import { get, post, trying, upload } from "./net.js";
import { item } from "./queue.js";
import { link } from "./runs.js";

const COMMANDS = {
  sample: "Draw",
  mix: "Mix with a subject",
  stylize: "Turn a picture into the style",
  edit: "Edit a part of a picture",
  export: "Download",
};
const FORMATS = {
  styledrop: "the run's own file",
  diffusers: "diffusers",
  peft: "PEFT",
  kohya: "kohya's tools, ComfyUI",
  a1111: "A1111",
  pipeline: "a whole diffusers pipeline",
  single_file: "a whole single file",
};

export async function show(page, run) {
  const [about, runs] = await Promise.all([get("/api/run", { run }), get("/api/runs")]);
  if (page.over) return;
  const others = runs.filter((other) => other.name !== run && other.state === "finished");
  new Use(page, run, about, others.map((other) => other.name)).draw();
}

class Use {
  constructor(page, run, about, others) {
    Object.assign(this, { page, run, about, others });
    this.command = "sample";
    this.values = { prompts: "a cat\na red car", num: 4, seed: 0, gamma: 0.6, strength: 0.7 };
    this.values.lambda_a = about.sampling.lambda_a ?? 1;
    this.values.lambda_b = about.sampling.lambda_b ?? 1;
    this.values.format = "styledrop";
    this.values.subject = others[0] ?? "";
    this.values.round = "";
    this.own = false; // whether the strengths are the page's, not the run's
    this.image = "";
  }

  draw() {
    const tabs = h("div", { class: "tabs", role: "group", "aria-label": "What to do" });
    for (const [command, words] of Object.entries(COMMANDS)) {
      const choose = () => {
        this.command = command;
        for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab === button));
        this.form_of();
      };
      const button = h("button", { type: "button", onclick: choose }, words);
      button.setAttribute("aria-pressed", String(command === this.command));
      tabs.append(button);
    }
    this.form = h("form", { class: "use", onsubmit: (event) => this.go(event) });
    this.results = h("div", { class: "results", "aria-live": "off" });
    this.files = h("ul", { class: "files" });
    this.work = h("ul", { class: "jobs" });
    const title = h("h1", {}, h("a", { href: link(this.run) }, this.run));
    fill(this.page.view, h("div", { class: "heading" }, title), tabs);
    this.page.view.append(this.form, this.work, this.results);
    this.form_of();
    this.refresh();
    let seen = null;
    this.page.events(this.run, {
      jobs: (jobs) => {
        const own = jobs.filter((job) => job.run === this.run);
        const now = own.map((job) => job.id + job.state).join();
        const failed = own.find((job) => job.state === "failed" && job.ended > Date.now() / 1000 - 5);
        if (failed && seen !== null && seen !== now) say(failed.said, "wrong");
        if (seen !== null && seen !== now) this.refresh();
        seen = now;
        fill(this.work, own.filter((job) => ["running", "queued"].includes(job.state)).map(item));
      },
    });
  }

  // ------------------------------------------------------------ the form

  form_of() {
    const { command } = this;
    const parts = [];
    if (command === "export") {
      const formats = select(Object.entries(FORMATS), this.values.format, this.set("format"));
      parts.push(labelled("Format", formats), this.files);
    } else {
      if (command === "mix") parts.push(...this.mixing());
      if (command === "stylize" || command === "edit") parts.push(this.picture_of());
      parts.push(this.prompts());
      if (command !== "mix" && (command === "stylize" || command === "edit")) {
        parts.push(this.slider("Drawn anew", "strength", 0.05, 1, 0.05));
      }
      parts.push(this.strengths(), this.reading());
      parts.push(
        h(
          "div",
          { class: "pairs" },
          labelled("Images of each", this.number("num", 1, 64)),
          labelled("First seed", this.number("seed", 0, 2 ** 31)),
          labelled("Round", this.rounds()),
        ),
      );
    }
    const words = command === "export" ? "Make the file" : "Go";
    parts.push(h("div", { class: "row" }, h("button", { class: "primary", type: "submit" }, words)));
    fill(this.form, parts);
  }

  set(name) {
    return (value) => (this.values[name] = value);
  }

  number(name, min, max) {
    const input = h("input", { type: "number", min, max, value: this.values[name], required: true });
    input.addEventListener("input", () => (this.values[name] = Number(input.value)));
    return input;
  }

  slider(words, name, min, max, step) {
    const value = h("output", {}, String(this.values[name]));
    const input = h("input", { type: "range", min, max, step, value: this.values[name] });
    input.addEventListener("input", () => {
      this.values[name] = Number(input.value);
      value.textContent = input.value;
      if (name.startsWith("lambda")) this.own = true;
    });
    return labelled(words, h("span", { class: "slide" }, input, value));
  }

  strengths() {
    return h(
      "div",
      { class: "pairs" },
      this.slider("Strength of the style (λA)", "lambda_a", 0, 6, 0.25),
      this.slider("Strength of the text (λB)", "lambda_b", 0, 10, 0.25),
      h(
        "small",
        {},
        "Move a slider and press Go: the same seeds are drawn again and stand side by side.",
      ),
    );
  }

  reading() {
    return h(
      "div",
      { class: "pairs" },
      this.check("Read (word:1.3) and BREAK in prompts", "prompt_weights"),
      this.check("Read all of a prompt beyond 77 tokens", "long_prompts"),
    );
  }

  check(words, name) {
    const input = h("input", { type: "checkbox", checked: this.values[name] ?? false });
    input.addEventListener("change", () => (this.values[name] = input.checked));
    return h("label", { class: "check" }, input, words);
  }

  rounds() {
    const options = [["", "the best"], ["0", "base model"]];
    for (const number of this.about.scored.filter((one) => one)) options.push([number, number]);
    return select(options, this.values.round, this.set("round"));
  }

  prompts() {
    const one = this.command === "stylize";
    const input = h("textarea", { rows: one ? 1 : 3, required: true });
    input.value = one ? this.values.prompts.split("\n")[0] : this.values.prompts;
    input.addEventListener("input", () => (this.values.prompts = input.value));
    return labelled(one ? "What it shows" : "Prompts, one a line", input);
  }

  mixing() {
    if (!this.others.length) {
      return [h("p", { class: "empty" }, "Mixing needs another finished run, of the subject.")];
    }
    const options = this.others.map((name) => [name, name]);
    return [
      labelled("Subject", select(options, this.values.subject, this.set("subject"))),
      this.slider("Share of the subject", "gamma", 0, 1, 0.05),
    ];
  }

  picture_of() {
    const box = h("div", { class: "drop" });
    const file = h("input", { type: "file", accept: "image/*" });
    file.addEventListener("change", async () => {
      const found = await trying(() => upload(file.files[0]));
      if (found) this.show_picture(box, file, found.upload);
    });
    fill(box, labelled("Picture", file));
    if (this.image) this.show_picture(box, file, this.image);
    return box;
  }

  show_picture(box, file, name) {
    this.image = name;
    const source = `/image?${new URLSearchParams({ upload: name })}`;
    this.brush = this.command === "edit" ? new Brush(source) : null;
    const shown = this.brush ? this.brush.element() : h("img", { src: source, alt: "" });
    const help = this.brush ? "Paint what is to be drawn anew, a little more than the thing." : "";
    fill(box, labelled("Picture", file, help), shown);
  }

  async go(event) {
    event.preventDefault();
    const button = event.submitter;
    const body = await trying(() => this.body(), button);
    if (!body) return;
    const done = await trying(() => post("/api/use", body), button);
    if (done) say("In the queue; what is made appears below.");
  }

  async body() {
    const { command, values } = this;
    const body = { run: this.run, command };
    if (values.round !== "") body.round = Number(values.round);
    if (command === "export") return { ...body, format: values.format };
    const prompts = values.prompts.split("\n").map((line) => line.trim()).filter((line) => line);
    Object.assign(body, { num: values.num, seed: values.seed });
    if (command === "stylize") body.prompt = prompts[0] ?? "";
    else body.prompts = prompts;
    if (command === "mix") Object.assign(body, { subject: values.subject, gamma: values.gamma });
    for (const name of ["prompt_weights", "long_prompts"]) {
      if (values[name]) body[name] = true;
    }
    if (this.own) Object.assign(body, { lambda_a: [values.lambda_a], lambda_b: [values.lambda_b] });
    if (command !== "stylize" && command !== "edit") return body;
    if (!this.image) throw new Error("picture: none yet; choose one");
    body.image = this.image;
    const mask = command === "edit" && this.brush ? await this.brush.mask() : null;
    if (mask) body.mask = (await upload(mask)).upload;
    else body.strength = values.strength;
    return body;
  }

  // ------------------------------------------------------------ what was made

  async refresh() {
    const found = await trying(() => {
      return Promise.all([get("/api/results", { run: this.run }), get("/api/run", { run: this.run })]);
    });
    if (!found || this.page.over) return;
    const [results, about] = found;
    fill(this.files, about.exports.map((file) => this.file(file)));
    const empty = h("p", { class: "empty" }, "Nothing yet. What you make stays in the run folder.");
    fill(this.results, results.length ? sideBySide(results).map((group) => this.group(group)) : empty);
  }

  file(file) {
    const href = `/download?${new URLSearchParams({ run: this.run, file: file.file })}`;
    const name = file.file.replace("export/", "");
    return h("li", {}, h("a", { href, download: true }, name), ` ${size(file.bytes)}`);
  }

  group(group) {
    const words = h("h3", {}, group[0].prompt, h("small", {}, ` seed ${group[0].seed}`));
    return h("section", { class: "group" }, words, group.map((one) => this.result(one)));
  }

  result(one) {
    const known = [
      ["λA", one.lambda_a],
      ["λB", one.lambda_b],
      ["γ", one.gamma],
      ["strength", one.strength],
      ["round", one.round],
    ];
    const words = known.filter(([, value]) => value !== undefined).map((pair) => pair.join(" "));
    const copy = async () => {
      await navigator.clipboard?.writeText(one.line);
      say(one.line);
    };
    const large = h("a", { href: address(this.run, one.file), target: "_blank" });
    large.append(picture(this.run, one.file, { side: 320, version: one.made, alt: one.prompt }));
    const line = h("button", { type: "button", class: "plain", onclick: copy, title: one.line });
    line.append("Copy the line");
    return h("figure", {}, large, h("figcaption", {}, h("small", {}, words.join(" · ")), line));
  }
}
