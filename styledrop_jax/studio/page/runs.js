// All runs, and what each waits for.
import { fill, h, picture } from "./dom.js";
import { since } from "./model.js";
import { get, post, trying } from "./net.js";

export async function show(page) {
  const list = h("ul", { class: "cards" });
  const heading = h("div", { class: "heading" }, h("h1", {}, "Runs"));
  heading.append(h("a", { class: "button primary", href: "#/new" }, "New run"));
  fill(page.view, heading, list);
  let drawn = "";
  const draw = (runs) => {
    const text = JSON.stringify(runs);
    if (text === drawn) return;
    drawn = text;
    if (!runs.length) {
      fill(list, h("li", { class: "empty" }, "No runs yet. Drop a picture on “New run”."));
      return;
    }
    fill(list, runs.map(card));
  };
  draw(await get("/api/runs"));
  if (!page.over) page.events("", { runs: draw });
}

export function link(name, rest = "") {
  return `#/run/${encodeURIComponent(name)}${rest}`;
}

function card(run) {
  if (run.new) return h("li", { class: "card" }, h("h2", {}, run.name), badge(run));
  const pictures = [];
  if (run.reference) {
    const image = picture(run.name, run.reference, { side: 160, alt: "the reference" });
    pictures.push(h("figure", { class: "reference" }, image));
  }
  for (const file of run.best) {
    pictures.push(picture(run.name, file, { side: 160, version: run.changed, alt: "" }));
  }
  const facts = [];
  if (run.style !== null) facts.push(`style ${run.style.toFixed(2)}`);
  if (run.text !== null) facts.push(`text ${run.text.toFixed(2)}`);
  facts.push(`${run.method} on ${run.base}`, since(run.changed, Date.now() / 1000));
  return h(
    "li",
    { class: run.waits ? "card waits" : "card" },
    h("a", { class: "strip", href: link(run.name), tabindex: "-1", "aria-hidden": "true" }, pictures),
    h("h2", {}, h("a", { href: link(run.name) }, run.name)),
    badge(run),
    run.doing.map((line) => h("p", { class: "facts" }, line)),
    run.failed ? h("p", { class: "wrong" }, run.failed) : null,
    h("p", { class: "facts" }, facts.join(" · ")),
    buttons(run),
  );
}

function badge(run) {
  const kinds = { finished: "done", running: "busy", waits: "waits", damaged: "bad", failed: "bad" };
  const kind = kinds[run.state.split(/[\s,:]/)[0]] ?? "quiet";
  return h("p", { class: `badge ${kind}` }, run.state);
}

function buttons(run) {
  const found = [];
  if (run.waits) {
    const href = link(run.name, `/choose/${run.waits}`);
    found.push(h("a", { class: "button primary", href }, "Choose"));
  } else if (run.state.startsWith("stopped") && !run.job) {
    const go = (event) => trying(() => post("/api/continue", { run: run.name }), event.target);
    found.push(h("button", { onclick: go }, "Continue"));
  } else if (run.state === "finished") {
    found.push(h("a", { class: "button", href: link(run.name, "/use") }, "Use"));
  }
  if (run.job) {
    const stop = (event) => trying(() => post("/api/stop", { job: run.job }), event.target);
    found.push(h("button", { class: "plain", onclick: stop }, "Stop"));
  }
  return h("div", { class: "row" }, found);
}
