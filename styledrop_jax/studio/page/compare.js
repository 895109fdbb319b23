// Rounds and runs side by side, prompt by prompt.
import { fill, h, labelled, picture, select } from "./dom.js";
import { get, trying } from "./net.js";

export async function show(page) {
  const runs = (await get("/api/runs")).filter((run) => !run.new);
  const rounds = [];
  for (const run of runs) {
    const about = await get("/api/run", { run: run.name }).catch(() => null);
    for (const number of about?.scored ?? []) rounds.push({ run: run.name, number });
  }
  if (page.over) return;
  if (!rounds.length) {
    fill(page.view, h("p", { class: "empty" }, "Nothing to compare: no run has drawn yet."));
    return;
  }
  const own = rounds.filter((one) => one.run === rounds[0].run).length;
  const chosen = [...new Set([0, Math.min(1, own - 1), own - 1])];
  const table = h("div", { class: "compare", tabindex: "0", role: "region" });
  table.setAttribute("aria-label", "Side by side");
  const name = ({ run, number }) => `${run}: ${number ? `round ${number}` : "base model"}`;
  const options = rounds.map((one, place) => [place, name(one)]);
  const columns = h("div", { class: "tools" });
  const draw = async () => {
    const picked = chosen.map((place) => rounds[place]);
    const found = await trying(() => {
      return Promise.all(
        picked.map((one) => get("/api/round", { run: one.run, round: one.number, own: 1 })),
      );
    });
    if (found && !page.over) fill(table, grid(found, picked.map(name)));
  };
  const tools = () => {
    const change = (column) => (value) => {
      chosen[column] = Number(value);
      draw();
    };
    const more = (step) => () => {
      if (step > 0) chosen.push(rounds.length - 1);
      else chosen.pop();
      tools();
      draw();
    };
    const fewer = chosen.length > 1 ? h("button", { onclick: more(-1) }, "One fewer") : null;
    fill(
      columns,
      chosen.map((place, column) => {
        return labelled(`Column ${column + 1}`, select(options, place, change(column)));
      }),
      h("button", { onclick: more(1) }, "One more"),
      fewer,
    );
  };
  fill(page.view, h("div", { class: "heading" }, h("h1", {}, "Compare")), columns, table);
  tools();
  await draw();
  page.events("", {});
}

function grid(found, names) {
  const prompts = [...new Set(found.flatMap((one) => one.images.map((image) => image.prompt)))];
  const head = h("tr", {}, h("th", { scope: "col" }, "prompt"));
  for (const words of names) head.append(h("th", { scope: "col" }, words));
  const rows = prompts.map((prompt) => {
    const row = h("tr", {}, h("th", { scope: "row" }, prompt));
    for (const one of found) {
      const image = one.images.find((candidate) => candidate.prompt === prompt);
      row.append(h("td", {}, image ? cell(one, image) : "–"));
    }
    return row;
  });
  return h("table", {}, h("thead", {}, head), h("tbody", {}, rows));
}

function cell(one, image) {
  const style = image.scores.clip_style;
  const words = style === undefined ? "" : `style ${style.toFixed(2)}`;
  const alt = `${image.prompt}, ${words}`;
  return [picture(one.run, image.file, { side: 320, version: one.version, alt }), h("small", {}, words)];
}
