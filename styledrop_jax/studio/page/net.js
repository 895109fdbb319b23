// Requests to the server that the page came from; there is no other.
import { say } from "./dom.js";

export async function get(path, query = {}) {
  return answered(await fetch(`${path}?${new URLSearchParams(query)}`));
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

export async function upload(file) {
  const headers = { "Content-Type": "application/octet-stream" };
  const query = new URLSearchParams({ name: file.name ?? "" });
  return answered(await fetch(`/api/upload?${query}`, { method: "POST", headers, body: file }));
}

async function answered(response) {
  const found = await response.json().catch(() => ({ error: `answer ${response.status}` }));
  if (!response.ok) throw new Error(found.error ?? `answer ${response.status}`);
  return found;
}

// Runs what a button does; a failure is said, and the button is free again.
export async function trying(work, button = null) {
  if (button) button.disabled = true;
  try {
    return await work();
  } catch (error) {
    say(error.message, "wrong");
    return null;
  } finally {
    if (button) button.disabled = false;
  }
}

// What changes, as it changes. The browser opens it again after a break, and is then told all.
export function events(run, handlers, state) {
  const source = new EventSource(`/api/events?${new URLSearchParams(run ? { run } : {})}`);
  for (const [name, handler] of Object.entries(handlers)) {
    source.addEventListener(name, (event) => handler(JSON.parse(event.data)));
  }
  source.addEventListener("open", () => state(true));
  source.addEventListener("error", () => state(false));
  return () => source.close();
}
