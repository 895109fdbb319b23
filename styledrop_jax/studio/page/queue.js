// All commands: what runs, what waits, what has ended and how.
import { fill, h, labelled, select } from "./dom.js";
import { since } from "./model.js";
import { post, trying } from "./net.js";
import { link } from "./runs.js";

const KINDS = { done: "done", failed: "bad", running: "busy", queued: "waits", stopped: "quiet" };
const STATES = [["", "all"], ...Object.keys(KINDS).map((state) => [state, state])];

export async function show(page) {
  const list = h("ul", { class: "jobs" });
  let jobs = [];
  let wanted = "";
  const draw = () => {
    const shown = jobs.filter((job) => !wanted || job.state === wanted);
    const empty = h("li", { class: "empty" }, "No command like that. New ones come from “New run”.");
    fill(list, shown.length ? shown.map(item) : empty);
  };
  const change = (value) => {
    wanted = value;
    draw();
  };
  const tools = h("div", { class: "tools" }, labelled("State", select(STATES, "", change)));
  fill(page.view, h("div", { class: "heading" }, h("h1", {}, "Queue")), tools, list);
  page.events("", {
    jobs: (found) => {
      jobs = found;
      draw();
    },
  });
}

export function item(job) {
  const when = job.ended || job.began || job.made;
  const stop = (event) => trying(() => post("/api/stop", { job: job.id }), event.target);
  const open = job.state === "running" || job.state === "queued";
  const words = job.told ? "Stop at once" : "Stop";
  return h(
    "li",
    { class: "card" },
    h("p", { class: `badge ${KINDS[job.state]}` }, `${job.state} · ${since(when, Date.now() / 1000)}`),
    h("h2", {}, `${job.words[0]}: `, h("a", { href: link(job.run) }, job.run)),
    job.said ? h("p", { class: "wrong" }, job.said) : null,
    h("code", {}, job.line),
    open ? h("div", { class: "row" }, h("button", { onclick: stop }, words)) : null,
  );
}
