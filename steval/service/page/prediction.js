// Predictions: ask, show, download, and keep the request in the address.

import { call, getJson, showError } from "/page/call.js";
import { drawBars, drawScatter, fillTable, strongest } from "/page/chart.js";
import { compared, errorOf, fillHeatMap, fillSummary } from "/page/compare.js";
import { at, button, reveal, save } from "/page/dom.js";
import { askedNames, setNames, setOpen } from "/page/names.js";

const H5AD = "application/x-hdf5";
const state = { answer: null, asked: null, all: [], shown: 0, number: 0, chosenModel: () => null };

function asked() {
  const body = { perturbations: askedNames(), cells: Number(at("cells").value), seed: Number(at("seed").value) };
  const model = state.chosenModel();
  if (model) body.model = model;
  if (!at("cell-type-field").hidden) body.cell_type = at("cell-type").value;
  return body;
}

function post(body, accept) {
  const headers = { "Content-Type": "application/json", Accept: accept };
  return ["/predict", { method: "POST", headers, body: JSON.stringify(body) }];
}

export async function predict(event) {
  event?.preventDefault();
  setOpen(false);
  if (!at("form").reportValidity()) return;
  const body = asked();
  busy(true, "predicting…");
  const began = performance.now();
  try {
    state.answer = await getJson(...post(body, "application/json"));
    Object.assign(state, { asked: body, all: compared(state.answer), shown: 0 });
    at("error").hidden = true;
    render();
    remember(body);
    busy(false, `done in ${((performance.now() - began) / 1000).toFixed(2)} s`);
  } catch (error) {
    busy(false, "");
    at("answer").hidden = true;
    showProblem(error);
  }
  reveal(at("results"));
}

function busy(isBusy, message) {
  at("predict").disabled = isBusy;
  at("status").textContent = message;
}

// What went wrong; the nearest names replace the unknown one.
export function showProblem(error) {
  const offered = Object.entries(error.detail?.nearest ?? {}).flatMap(([unknown, names]) => names.map((name) => button(name, () => {
    setNames(askedNames().map((one) => (one === unknown ? name : one)));
    predict();
  })));
  showError(at("error"), error, ...offered);
}

function render() {
  at("empty").hidden = true;
  at("answer").hidden = false;
  const several = state.all.length > 1;
  at("comparison").hidden = !several;
  if (several) {
    fillSummary(at("summary").tBodies[0], state.all, showOne);
    const number = fillHeatMap(at("heat-map"), state.all);
    at("heat-caption").textContent = `The ${number} genes that these perturbations are predicted to change most: `
      + (state.all[0].control ? `mean predicted minus mean control expression (${state.answer.scale}).` : `mean predicted expression (${state.answer.scale}).`);
  }
  renderOne();
}

function showOne(index) {
  state.shown = index;
  renderOne();
  at("result-title").focus();
}

function renderOne() {
  const { answer, all, shown } = state;
  const { profile, control, rows } = all[shown];
  const top = strongest(rows, Number(at("top").value));
  const expected = errorOf(profile);
  at("result-title").textContent = profile.perturbation;
  at("result-facts").textContent = `${profile.num_cells} predicted ${profile.cell_type} cells, seed ${answer.seed}`
    + (control ? `, against ${control.num_cells} measured controls` : ", controls' expression not known");
  at("expected-error").hidden = !expected;
  at("expected-error").textContent = expected ? `Expected error: ${expected} mean absolute error over genes, from held-out pairs.` : "";
  drawBars(at("chart"), top);
  fillTable(at("table").tBodies[0], top);
  at("chart-caption").textContent = control
    ? `Strongest predicted changes: mean predicted minus mean control expression (${answer.scale}), of ${answer.genes.length} genes.`
    : `Strongest predicted values (${answer.scale}), of ${answer.genes.length} genes.`;
  at("scatter-figure").hidden = !control;
  if (control) {
    drawScatter(at("scatter"), rows, top);
    at("scatter-caption").textContent = `All ${answer.genes.length} genes: predicted change against level (an MA plot); `
      + `coloured are the ${top.length} strongest, which the table lists.`;
  }
}

// All genes of the perturbation on screen.
function csv() {
  const { profile, control } = state.all[state.shown];
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = state.answer.genes.map((gene, index) => [quoted(gene), control ? control.mean[index] : "", profile.mean[index]].join(","));
  return ["gene,control_mean,predicted_mean", ...lines, ""].join("\n");
}

function fileName(names, extension) {
  const name = names.join("-").replaceAll(/[^A-Za-z0-9._-]+/g, "_").slice(0, 120);
  return `${name}-${state.asked.cells}cells-seed${state.asked.seed}.${extension}`;
}

function downloadMeans() {
  save(new Blob([csv()], { type: "text/csv" }), fileName([state.all[state.shown].profile.perturbation], "csv"));
}

async function downloadCells() {
  busy(true, "writing the h5ad…");
  try {
    const response = await call(...post({ ...state.asked, output: "cells" }, H5AD));
    save(await response.blob(), fileName(state.asked.perturbations, "h5ad"));
  } catch (error) {
    showProblem(error);
  }
  busy(false, "");
}

// The address keeps the request, so that a link shows the same prediction.
function remember(body) {
  const values = new URLSearchParams(body.perturbations.map((name) => ["perturbation", name]));
  values.append("cells", body.cells);
  values.append("seed", body.seed);
  if (body.model && !at("model-field").hidden) values.append("model", body.model);
  if (body.cell_type) values.append("cell_type", body.cell_type);
  history.replaceState(null, "", `#${values}`);
}

export function restore() {
  const values = new URLSearchParams(location.hash.slice(1));
  if (!values.get("perturbation")) return;
  setNames(values.getAll("perturbation"));
  for (const name of ["cells", "seed"]) if (/^\d+$/.test(values.get(name) ?? "")) at(name).value = values.get(name);
  if (values.get("cell_type")) at("cell-type").value = values.get("cell_type");
  predict();
}

export function wirePrediction(chosenModel) {
  state.chosenModel = chosenModel;
  at("form").addEventListener("submit", predict);
  at("top").addEventListener("change", renderOne);
  addEventListener("resize", () => { if (!at("answer").hidden) renderOne(); });
  at("download-csv").addEventListener("click", downloadMeans);
  at("download-h5ad").addEventListener("click", downloadCells);
}
