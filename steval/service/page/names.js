// Which perturbations: a combobox with a list box after the ARIA pattern, and a list of those that were added.

import { getJson } from "/page/call.js";
import { at, button, text } from "/page/dom.js";

export const MOST_COMPARED = 12;

const combo = { items: [], active: -1, timer: 0, request: null };
const added = [];
const wiring = { ofModel: () => "", onError: () => {} };

// All that are asked for: those added, then the name in the field.
export function askedNames() {
  const typed = at("perturbation").value.trim();
  return typed && !added.includes(typed) ? [...added, typed] : [...added];
}

export function setNames(names) {
  added.splice(0, added.length, ...names.slice(0, -1));
  at("perturbation").value = names.at(-1) ?? "";
  showAdded();
}

function add() {
  const name = at("perturbation").value.trim();
  if (!name) {
    at("perturbation").focus();
    return;
  }
  if (!added.includes(name)) added.push(name);
  at("perturbation").value = "";
  showAdded();
  at("perturbation").focus();
}

function remove(name) {
  added.splice(added.indexOf(name), 1);
  showAdded();
  at("perturbation").focus();
}

function showAdded() {
  at("added").replaceChildren(...added.map((name) => {
    const item = document.createElement("li");
    item.append(text("span", name), button("×", () => remove(name), { class: "quiet", "aria-label": `Remove ${name}` }));
    return item;
  }));
  at("added").hidden = !added.length;
  at("add").disabled = added.length >= MOST_COMPARED - 1;
  at("perturbation").required = !added.length;
  at("add-note").textContent = added.length ? `${added.length} added; one more may be in the field.` : "Add several to see them side by side.";
}

async function suggest() {
  combo.request?.abort();
  combo.request = new AbortController();
  const search = encodeURIComponent(at("perturbation").value.trim());
  try {
    const found = await getJson(`/perturbations?limit=30&search=${search}&${wiring.ofModel()}`, { signal: combo.request.signal });
    const near = found.nearest.map((name) => ({ name, trained: true, near: true }));
    show(found.perturbations.length ? found.perturbations : near);
  } catch (error) {
    if (error.name !== "AbortError") wiring.onError(error);
  }
}

function show(items) {
  const chosen = combo.items[combo.active]?.name;
  combo.items = items;
  combo.active = -1;
  at("options").replaceChildren(...items.map((item, index) => {
    const option = text("li", item.name, { id: `option-${index}`, role: "option", "aria-selected": "false" });
    if (item.near) option.append(text("span", "similar"));
    if (!item.trained) option.append(text("span", "not trained"));
    option.addEventListener("mousedown", (event) => { event.preventDefault(); choose(index); });
    return option;
  }));
  setOpen(items.length > 0 && document.activeElement === at("perturbation"));
  const kept = items.findIndex((item) => item.name === chosen);
  if (kept >= 0) move(kept + 1);
}

export function setOpen(open) {
  at("options").hidden = !open;
  at("perturbation").setAttribute("aria-expanded", String(open));
  if (!open) at("perturbation").removeAttribute("aria-activedescendant");
}

function choose(index) {
  at("perturbation").value = combo.items[index].name;
  setOpen(false);
}

function move(step) {
  const options = at("options").children;
  if (!options.length) return;
  if (combo.active >= 0) options[combo.active].setAttribute("aria-selected", "false");
  combo.active = (combo.active + step + options.length) % options.length;
  options[combo.active].setAttribute("aria-selected", "true");
  options[combo.active].scrollIntoView({ block: "nearest" });
  at("perturbation").setAttribute("aria-activedescendant", options[combo.active].id);
}

function onKey(event) {
  const isOpen = !at("options").hidden;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (isOpen) move(event.key === "ArrowDown" ? 1 : -1);
    else suggest();
  } else if (event.key === "Enter" && isOpen && combo.active >= 0) {
    event.preventDefault();
    choose(combo.active);
  } else if (event.key === "Escape" && isOpen) {
    event.preventDefault();
    setOpen(false);
  }
}

export function wireNames(ofModel, onError) {
  Object.assign(wiring, { ofModel, onError });
  const field = at("perturbation");
  field.addEventListener("input", () => { clearTimeout(combo.timer); combo.timer = setTimeout(suggest, 120); });
  field.addEventListener("focus", () => { if (!field.value) suggest(); });
  field.addEventListener("keydown", onKey);
  field.addEventListener("blur", () => setOpen(false));
  at("add").addEventListener("click", add);
}
