// The page: choose a perturbation, predict, look, download. No build step, no other origin.

import { drawChart, fillTable, strongest } from "/page/chart.js";

const H5AD = "application/x-hdf5";
const at = (id) => document.getElementById(id);
const page = { card: null, answer: null, asked: null, model: null };

class ServiceError extends Error {
  constructor(status, detail) {
    super(detail.message ?? `the service answered ${status}`);
    this.status = status;
    this.detail = detail;
  }
}

async function call(path, options = {}) {
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

function askForKey() {
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

// Which models there are, and the card of the one that is chosen, with patience while it warms up.
async function start() {
  const found = await patiently("/models");
  if (!found) return;
  const usable = found.models.filter((model) => model.state !== "broken");
  const asked = new URLSearchParams(location.hash.slice(1)).get("model");
  const chosen = usable.find((model) => model.name === asked) ?? usable.find((model) => model.default) ?? usable[0];
  at("model").replaceChildren(...usable.map((model) => text("option", model.name)));
  at("model-field").hidden = usable.length < 2;
  if (chosen) at("model").value = chosen.name;
  await loadModel();
  restore();
}

async function patiently(path) {
  for (;;) {
    try {
      return await (await call(path)).json();
    } catch (error) {
      at("model-name").textContent = error.message;
      if (error.status !== 503 || error.detail?.code === "bad_model") return null;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

const ofModel = () => (page.model ? `model=${encodeURIComponent(page.model)}` : "");

async function loadModel() {
  page.model = at("model").value || null;
  const asked = page.model;
  at("predict").disabled = true;
  const card = await patiently(`/model?${ofModel()}`);
  if (card === null || asked !== page.model) return;
  page.card = card;
  at("predict").disabled = false;
  at("model-name").textContent = card.name;
  at("vocabulary").textContent = `${card.num_perturbations.toLocaleString()} known perturbations`;
  at("cells").max = card.limits.max_cells;
  const scale = card.scale + (card.target_sum ? ` (${card.target_sum.toLocaleString()} a cell)` : "");
  const facts = [
    ["Genes", card.num_genes.toLocaleString()], ["Scale", scale], ["Parameters", card.parameters.toLocaleString()],
    ["Cell set", `${card.set_size} cells`], ["Attention", card.attention],
    ["Controls", `${card.num_controls.toLocaleString()} cells (${card.control})`],
    ["Cell types", card.cell_types.join(", ")], ["Runs on", `${card.device}, ${card.dtype}`],
    ["Steps trained", card.training ? card.training.step.toLocaleString() : "not recorded"],
    ["Made by", card.made_by], ["Created", card.created.slice(0, 16).replace("T", " ")], ["Licence", card.licence ?? "not recorded"],
    ["Digest", card.checkpoint.slice(0, 16)],
  ];
  at("model-card").replaceChildren(...facts.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
  at("evidence").textContent = card.evidence;
  at("evidence").hidden = false;
  at("model-notes").hidden = !card.notes.length;
  at("model-notes").querySelector("ul").replaceChildren(...card.notes.map((note) => text("li", note)));
  at("cell-type").replaceChildren(...card.cell_types.map((name) => text("option", name)));
  at("cell-type-field").hidden = card.cell_types.length < 2;
}

function text(tag, content) {
  const node = document.createElement(tag);
  node.textContent = content;
  return node;
}

// Type-ahead: a combobox with a list box, after the ARIA pattern.
const combo = { items: [], active: -1, timer: 0, request: null };

async function suggest() {
  combo.request?.abort();
  combo.request = new AbortController();
  const search = encodeURIComponent(at("perturbation").value.trim());
  try {
    const found = await (await call(`/perturbations?limit=30&search=${search}&${ofModel()}`, { signal: combo.request.signal })).json();
    const near = found.nearest.map((name) => ({ name, trained: true, near: true }));
    show(found.perturbations.length ? found.perturbations : near);
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

function show(items) {
  const chosen = combo.items[combo.active]?.name;
  combo.items = items;
  combo.active = -1;
  at("options").replaceChildren(...items.map((item, index) => {
    const option = text("li", item.name);
    option.id = `option-${index}`;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", "false");
    if (item.near) option.append(text("span", "similar"));
    if (!item.trained) option.append(text("span", "not trained"));
    option.addEventListener("mousedown", (event) => { event.preventDefault(); choose(index); });
    return option;
  }));
  setOpen(items.length > 0 && document.activeElement === at("perturbation"));
  const kept = items.findIndex((item) => item.name === chosen);
  if (kept >= 0) move(kept + 1);
}

function setOpen(open) {
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

function onComboKey(event) {
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

// Prediction.
function asked() {
  const body = { perturbations: [at("perturbation").value.trim()], cells: Number(at("cells").value), seed: Number(at("seed").value) };
  if (page.model) body.model = page.model;
  if (!at("cell-type-field").hidden) body.cell_type = at("cell-type").value;
  return body;
}

function post(body, accept) {
  const headers = { "Content-Type": "application/json", Accept: accept };
  return call("/predict", { method: "POST", headers, body: JSON.stringify(body) });
}

async function predict(event) {
  event?.preventDefault();
  setOpen(false);
  if (!at("form").reportValidity()) return;
  const body = asked();
  busy(true, "predicting…");
  const began = performance.now();
  try {
    page.answer = await (await post(body, "application/json")).json();
    page.asked = body;
    at("error").hidden = true;
    render();
    remember(body);
    busy(false, `done in ${((performance.now() - began) / 1000).toFixed(2)} s`);
    reveal();
  } catch (error) {
    busy(false, "");
    at("answer").hidden = true;
    showError(error);
    reveal();
  }
}

// To the result; where it stands below the form, also into view.
function reveal() {
  at("results").focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) at("results").scrollIntoView({ block: "start" });
}

function busy(isBusy, message) {
  at("predict").disabled = isBusy;
  at("status").textContent = message;
}

function render() {
  const answer = page.answer;
  const [profile] = answer.predictions;
  const control = answer.controls.find((one) => one.cell_type === profile.cell_type) ?? null;
  const rows = strongest(answer.genes, profile.mean, control?.mean ?? null, Number(at("top").value));
  at("empty").hidden = true;
  at("answer").hidden = false;
  at("result-title").textContent = profile.perturbation;
  at("result-facts").textContent = `${profile.num_cells} predicted ${profile.cell_type} cells, seed ${answer.seed}`
    + (control ? `, against ${control.num_cells} measured controls` : ", controls' expression not known");
  drawChart(at("chart"), rows);
  fillTable(at("table").tBodies[0], rows);
  at("chart-caption").textContent = control
    ? `Strongest predicted changes: mean predicted minus mean control expression (${answer.scale}), of ${answer.genes.length} genes.`
    : `Strongest predicted values (${answer.scale}), of ${answer.genes.length} genes.`;
}

function showError(error) {
  const box = at("error");
  const problems = error.detail?.problems ?? [];
  box.replaceChildren(text("strong", error.message), ...problems.map((problem) => text("div", problem)));
  for (const names of Object.values(error.detail?.nearest ?? {})) {
    for (const name of names) {
      const button = text("button", name);
      button.type = "button";
      button.addEventListener("click", () => { at("perturbation").value = name; predict(); });
      box.append(button);
    }
  }
  box.hidden = false;
}

// Downloads: all genes as CSV from the answer on screen; the cells as h5ad from the service.
function csv() {
  const [profile] = page.answer.predictions;
  const control = page.answer.controls.find((one) => one.cell_type === profile.cell_type);
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = page.answer.genes.map((gene, index) =>
    [quoted(gene), control ? control.mean[index] : "", profile.mean[index]].join(","));
  return ["gene,control_mean,predicted_mean", ...lines, ""].join("\n");
}

function save(blob, extension) {
  const link = document.createElement("a");
  const name = page.asked.perturbations[0].replaceAll(/[^A-Za-z0-9._-]+/g, "_");
  link.href = URL.createObjectURL(blob);
  link.download = `${name}-${page.asked.cells}cells-seed${page.asked.seed}.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function downloadCells() {
  busy(true, "writing the h5ad…");
  try {
    const response = await post({ ...page.asked, output: "cells" }, H5AD);
    save(await response.blob(), "h5ad");
    busy(false, "");
  } catch (error) {
    busy(false, "");
    showError(error);
  }
}

// The address keeps the request, so that a link shows the same prediction.
function remember(body) {
  const values = { perturbation: body.perturbations[0], cells: body.cells, seed: body.seed };
  if (body.model && !at("model-field").hidden) values.model = body.model;
  if (body.cell_type) values.cell_type = body.cell_type;
  history.replaceState(null, "", `#${new URLSearchParams(values)}`);
}

function restore() {
  const values = new URLSearchParams(location.hash.slice(1));
  if (!values.get("perturbation")) return;
  at("perturbation").value = values.get("perturbation");
  for (const name of ["cells", "seed"]) if (/^\d+$/.test(values.get(name) ?? "")) at(name).value = values.get(name);
  if (values.get("cell_type")) at("cell-type").value = values.get("cell_type");
  predict();
}

function switchTheme() {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (isDark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("steval-theme", next);
}

const theme = localStorage.getItem("steval-theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
at("theme-button").addEventListener("click", switchTheme);
at("key-button").addEventListener("click", askForKey);
at("form").addEventListener("submit", predict);
at("perturbation").addEventListener("input", () => { clearTimeout(combo.timer); combo.timer = setTimeout(suggest, 120); });
at("perturbation").addEventListener("focus", () => { if (!at("perturbation").value) suggest(); });
at("perturbation").addEventListener("keydown", onComboKey);
at("perturbation").addEventListener("blur", () => setOpen(false));
at("top").addEventListener("change", render);
at("download-csv").addEventListener("click", () => save(new Blob([csv()], { type: "text/csv" }), "csv"));
at("download-h5ad").addEventListener("click", downloadCells);
at("model").addEventListener("change", loadModel);
start();
