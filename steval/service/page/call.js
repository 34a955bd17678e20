// Requests to the service: the key, errors with their details, and reports in their frame.

import { at, text } from "/page/dom.js";

export class ServiceError extends Error {
  constructor(status, detail) {
    super(detail.message ?? `the service answered ${status}`);
    this.status = status;
    this.detail = detail;
  }
}

export async function call(path, options = {}) {
  const key = sessionStorage.getItem("steval-key");
  const headers = { ...(options.headers ?? {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let detail = {};
  try {
    detail = (await response.json()).error ?? {};
  } catch {
    detail = { message: `the service answered ${response.status}` };
  }
  if (response.status === 401 && await askForKey()) return call(path, options);
  throw new ServiceError(response.status, detail);
}

export const getJson = async (path, options) => (await call(path, options)).json();

export function askForKey() {
  const dialog = at("key-dialog");
  if (dialog.open) return Promise.resolve(false);
  at("key-button").hidden = false;
  at("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = at("key").value.trim();
      if (dialog.returnValue === "ok" && key) sessionStorage.setItem("steval-key", key);
      resolve(dialog.returnValue === "ok" && key !== "");
    }, { once: true });
  });
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// The message, what is wrong one by one, and whatever `more` offers to do about it.
export function showError(box, error, ...more) {
  const problems = error.detail?.problems ?? [];
  box.replaceChildren(text("strong", error.message), ...problems.map((problem) => text("div", problem)), ...more);
  box.hidden = false;
}

// A report in a frame without an origin of its own: what is in it reaches neither the service nor the key. The frame is
// new each time, and takes one document.
export async function embed(place, path, title) {
  const report = await (await call(path)).text();
  const frame = text("iframe", "", { title, src: "/page/frame.html", sandbox: "allow-scripts allow-downloads" });
  frame.addEventListener("load", () => frame.contentWindow.postMessage(report, "*"), { once: true });
  place.replaceChildren(frame);
  place.hidden = false;
}
