// Which view is shown: the address after # says it.
import { fill, h, say } from "./dom.js";
import * as choose from "./choose.js";
import * as compare from "./compare.js";
import * as create from "./new.js";
import { events } from "./net.js";
import * as queued from "./queue.js";
import * as one from "./run.js";
import * as runs from "./runs.js";
import * as use from "./use.js";

const VIEWS = [
  [/^#?\/?$/, "runs", runs.show],
  [/^#\/new$/, "new", create.show],
  [/^#\/compare(?:\/(.*))?$/, "compare", compare.show],
  [/^#\/queue$/, "queue", queued.show],
  [/^#\/run\/([^/]+)$/, "runs", one.show],
  [/^#\/run\/([^/]+)\/choose\/(\d+)$/, "runs", choose.show],
  [/^#\/run\/([^/]+)\/use$/, "runs", use.show],
];
const view = document.getElementById("view");
let leave = () => {};

async function route() {
  leave();
  leave = () => {};
  for (const [pattern, name, show] of VIEWS) {
    const match = pattern.exec(location.hash);
    if (!match) continue;
    for (const link of document.querySelectorAll("nav [data-route]")) {
      if (link.dataset.route === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const page = { view, over: false, close: [] };
    page.events = (run, handlers) => {
      const jobs = (found) => {
        queue(found);
        handlers.jobs?.(found);
      };
      page.close.push(events(run, { ...handlers, jobs }, connected));
    };
    leave = () => {
      page.over = true;
      page.close.forEach((close) => close());
    };
    fill(view, h("p", { class: "empty" }, "…"));
    try {
      await show(page, ...match.slice(1).map((part) => decodeURIComponent(part ?? "")));
    } catch (error) {
      fill(view, h("div", { class: "empty" }, h("h1", {}, "Not here"), h("p", {}, error.message)));
    }
    if (!page.over) view.focus({ preventScroll: true });
    return;
  }
  location.hash = "#/";
}

// What the machine does for this page: one command at a time.
function queue(jobs) {
  const box = document.getElementById("queue");
  const running = jobs.find((job) => job.state === "running");
  const waiting = jobs.filter((job) => job.state === "queued").length;
  const words = running ? `${running.words[0]}: ${running.run}` : "Queue";
  const more = waiting ? `, ${waiting} more` : "";
  const dot = running ? h("span", { class: "pulse", "aria-hidden": "true" }) : "";
  fill(box, dot, h("a", { href: "#/queue" }, words + more));
}

let lost = false;

function connected(open) {
  if (!open && !lost) say("The studio does not answer; your runs go on. Trying again …", "wrong");
  if (open && lost) say("The studio is back.");
  lost = !open;
}

// The key came in the first address; from now on the cookie stands for it.
if (location.search) history.replaceState(null, "", `/${location.hash}`);
window.addEventListener("hashchange", route);
route();
