// The three views as tabs, after the ARIA pattern: arrows move between them, and the address may name one.

import { at } from "/page/dom.js";

const NAMES = ["predict", "score", "batches"];
const onShown = {};

export function showView(name, focus = false) {
  for (const one of NAMES) {
    const isShown = one === name;
    const tab = at(`tab-${one}`);
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    at(`view-${one}`).hidden = !isShown;
    if (isShown && focus) tab.focus();
  }
  onShown[name]?.();
}

function onKey(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const now = NAMES.findIndex((name) => at(`tab-${name}`) === event.target);
  const next = event.key === "Home" ? 0 : event.key === "End" ? NAMES.length - 1 : now + (steps[event.key] ?? 0);
  if (next === now || now < 0) return;
  event.preventDefault();
  showView(NAMES.at(next % NAMES.length), true);
}

// Past the form; the address keeps its request.
function skip(event) {
  event.preventDefault();
  const shown = NAMES.find((name) => !at(`view-${name}`).hidden);
  at(`view-${shown}`).querySelector(".results").focus();
}

export function wireViews(actions) {
  at("skip").addEventListener("click", skip);
  Object.assign(onShown, actions);
  for (const name of NAMES) at(`tab-${name}`).addEventListener("click", () => showView(name));
  at("tabs").addEventListener("keydown", onKey);
}
