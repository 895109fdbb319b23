// One run: how far it is, what it draws, what it came to.
import { fill, h, picture, svg } from "./dom.js";
import { Clock, duration, path } from "./model.js";
import { get, post, trying } from "./net.js";
import { link } from "./runs.js";

export async function show(page, run) {
  const about = await get("/api/run", { run });
  if (page.over) return;
  const parts = {
    head: h("div", { class: "heading" }),
    words: h("section", { class: "panel verdict" }),
    stages: h("ol", { class: "stages" }),
    newest: h("div", { class: "newest" }),
    curves: h("div", { class: "curves" }),
    warnings: h("section", { class: "panel", "aria-label": "Warnings" }),
    log: h("pre", { tabindex: "0", "aria-label": "Log" }),
  };
  const log = h("details", { class: "panel" }, h("summary", {}, "Log"), parts.log);
  fill(
    page.view,
    parts.head,
    parts.words,
    parts.warnings,
    h("section", { class: "panel", "aria-label": "Progress" }, h("h2", {}, "Progress"), parts.stages),
    h("section", { class: "panel" }, h("h2", {}, "Newest pictures"), parts.newest),
    h("section", { class: "panel" }, h("h2", {}, "Loss"), parts.curves),
    log,
  );
  watch(page, run, about, parts);
}

function watch(page, run, about, parts) {
  const clock = new Clock();
  let looked = "";
  head(parts, run, about);
  // The rest of the page follows when the run begins, ends or waits.
  const again = async (state) => {
    if (state === looked) return;
    const first = looked === "";
    looked = state;
    if (first) return;
    const found = await get("/api/run", { run }).catch(() => null);
    if (found && !page.over) head(parts, run, found);
  };
  let now = "";
  let over = "";
  const told = () => again(`${now}|${over}`);
  page.events(run, {
    jobs: (jobs) => {
      now = jobs.filter((job) => job.run === run).map((job) => job.id + job.state).join();
      told();
    },
    progress: (stages) => {
      over = stages.map((stage) => stage.over).join();
      progress(parts.stages, stages, clock);
      told();
    },
    loss: (found) => curves(parts.curves, found),
    newest: (files) => {
      const images = files.map((file) => newest(run, file));
      fill(parts.newest, images.length ? images : h("p", { class: "empty" }, "None yet."));
    },
    log: (lines) => {
      const warnings = lines.filter((line) => line.startsWith("warning:"));
      fill(parts.warnings, warnings.map((line) => h("p", { class: "wrong" }, line)));
      parts.log.textContent = lines.join("\n") || "No command of this studio has run on it.";
      parts.log.scrollTop = parts.log.scrollHeight;
    },
  });
}

// One drawn while the round trains says after how many steps.
function newest(run, file) {
  const step = /\/preview\/(\d+)_/.exec(file);
  const words = step ? `after ${Number(step[1])} steps` : "";
  const image = picture(run, file, { side: 320, version: file, alt: words });
  return h("figure", {}, image, h("small", {}, words));
}

function head(parts, run, about) {
  const act = (path, body) => (event) => trying(() => post(path, body), event.target);
  const buttons = [];
  if (about.waits) {
    const href = link(run, `/choose/${about.waits}`);
    buttons.push(h("a", { class: "button primary", href }, `Choose in round ${about.waits}`));
  }
  if (about.job) {
    buttons.push(h("button", { onclick: act("/api/stop", { job: about.job }) }, "Stop"));
  } else if (!about.finished && !about.running && !about.waits) {
    const go = act("/api/continue", { run });
    buttons.push(h("button", { class: "primary", onclick: go }, "Continue"));
  }
  if (about.finished) {
    const report = `/report?${new URLSearchParams({ run })}`;
    buttons.push(h("a", { class: "button primary", href: link(run, "/use") }, "Use"));
    buttons.push(h("a", { class: "button", href: report, target: "_blank" }, "Report"));
    const more = act("/api/extend", { run, rounds: 1 });
    if (!about.job) buttons.push(h("button", { onclick: more }, "One more round"));
  }
  for (const number of about.scored.filter((one) => one && one !== about.waits)) {
    const href = link(run, `/choose/${number}`);
    buttons.push(h("a", { class: "button plain", href }, `Round ${number}`));
  }
  const outside = about.running && !about.job;
  fill(
    parts.head,
    h("h1", {}, run),
    h("p", {}, `${about.method} on ${about.base}`),
    outside ? h("p", { class: "badge busy" }, "runs in another program; stop it there") : null,
    h("div", { class: "row" }, buttons),
  );
  fill(parts.words, references(run, about), verdict(about));
}

function references(run, about) {
  return about.references.slice(0, 6).map((given) => {
    const image = picture(run, given.file, { side: 320, alt: given.content });
    const words = h("figcaption", {}, h("strong", {}, given.content), " ", given.descriptor);
    return h("figure", {}, image, words);
  });
}

function verdict(about) {
  if (!about.verdict) return null;
  const { learnt, round, remarks } = about.verdict;
  return h(
    "div",
    {},
    h("h2", {}, learnt),
    h("p", {}, `Round ${round} is taken by everything that uses this run.`),
    h("ul", {}, remarks.map((remark) => h("li", {}, remark))),
  );
}

function progress(list, stages, clock) {
  const at = stages.find((stage) => !stage.over);
  const left = clock.left(at, Date.now() / 1000);
  fill(
    list,
    stages.map((stage) => {
      const share = stage.over ? 1 : stage.done / (stage.total || 1);
      const bar = h("progress", { max: "1", value: share, "aria-label": stage.name });
      const count = stage.total > 1 ? `${stage.done} of ${stage.total}` : stage.over ? "done" : "";
      const rest = stage === at && left !== null ? `, about ${duration(left)} left` : "";
      const kind = stage.over ? "over" : stage === at ? "at" : "";
      return h("li", { class: kind }, h("span", {}, stage.name), bar, h("small", {}, count + rest));
    }),
  );
}

function curves(box, found) {
  const names = Object.keys(found);
  fill(
    box,
    names.length ? null : h("p", { class: "empty" }, "No training yet."),
    names.map((name) => {
      const points = found[name];
      const [step, loss] = points[points.length - 1];
      const words = `${name.replace("_", " ")}: loss ${loss.toFixed(3)} at step ${step}`;
      const line = svg("path", { d: path(points, 300, 80), class: "curve" });
      const box = { viewBox: "-2 -4 304 88", role: "img", "aria-label": words };
      return h("figure", {}, svg("svg", box, line), h("figcaption", {}, words));
    }),
  );
}
