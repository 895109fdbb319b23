// Elements of the page. Whatever comes from a run is set as text or as an attribute, never as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, String(value));
    }
  }
  fill(element, ...children);
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren();
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

let silence = 0;

// One line at the foot of the page, read out by screen readers.
export function say(text, kind = "note") {
  const box = document.getElementById("said");
  clearTimeout(silence);
  fill(box, h("p", { class: kind }, text));
  silence = setTimeout(() => fill(box), kind === "wrong" ? 12000 : 5000);
}

// A label above an input, with a word of help under it.
export function labelled(words, input, help = "") {
  const hint = help ? h("small", {}, help) : null;
  return h("label", { class: "field" }, h("span", {}, words), input, hint);
}

export function select(options, value, onchange) {
  const element = h("select", { onchange: (event) => onchange(event.target.value) });
  for (const [key, words] of options) {
    element.append(h("option", { value: key, selected: String(key) === String(value) }, words));
  }
  return element;
}

// A picture of a run: small ones are made by the server and kept by the browser.
export function picture(run, file, { side = 320, version = "", alt = "", lazy = true } = {}) {
  return h("img", {
    src: address(run, file, { side, version }),
    alt,
    loading: lazy ? "lazy" : "eager",
    decoding: "async",
    draggable: "false",
    onload: sharpen,
  });
}

export function address(run, file, { side = 0, version = "" } = {}) {
  const query = new URLSearchParams({ run, file });
  if (version) query.set("v", version);
  if (side) query.set("side", side);
  return `/${side ? "thumb" : "image"}?${query}`;
}

// Pictures of few pixels are shown with hard edges, as they are.
export function sharpen(event) {
  event.target.classList.toggle("pixels", event.target.naturalWidth <= 128);
}
