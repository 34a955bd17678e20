// The page: choose a model, then predict, score, or look at batches. No build step, no other origin.

import { loadBatches, wireBatches } from "/page/batches.js";
import { askForKey, getJson, pause } from "/page/call.js";
import { at, text } from "/page/dom.js";
import { wireNames } from "/page/names.js";
import { restore, showProblem, wirePrediction } from "/page/prediction.js";
import { loadProfiles, tellScore, wireScore } from "/page/score.js";
import { wireViews } from "/page/views.js";

let model = null;

const chosenModel = () => model;
const ofModel = () => (model ? `model=${encodeURIComponent(model)}` : "");

// Which models there are, and the card of the one that is chosen, with patience while it warms up.
async function start() {
  const found = await patiently("/models");
  if (!found) return;
  const usable = found.models.filter((one) => one.state !== "broken");
  const asked = new URLSearchParams(location.hash.slice(1)).get("model");
  const chosen = usable.find((one) => one.name === asked) ?? usable.find((one) => one.default) ?? usable[0];
  at("model").replaceChildren(...usable.map((one) => text("option", one.name)));
  at("model-field").hidden = usable.length < 2;
  if (chosen) at("model").value = chosen.name;
  await loadModel();
  restore();
}

async function patiently(path) {
  for (;;) {
    try {
      return await getJson(path);
    } catch (error) {
      at("model-name").textContent = error.message;
      if (error.status !== 503 || error.detail?.code === "bad_model") return null;
      await pause(1000);
    }
  }
}

async function loadModel() {
  model = at("model").value || null;
  const asked = model;
  at("predict").disabled = true;
  const card = await patiently(`/model?${ofModel()}`);
  if (card === null || asked !== model) return;
  at("predict").disabled = false;
  showCard(card);
  tellScore(card);
}

function showCard(card) {
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
at("model").addEventListener("change", loadModel);
wireNames(ofModel, showProblem);
wirePrediction(chosenModel);
wireScore(chosenModel);
wireBatches();
wireViews({ score: loadProfiles, batches: loadBatches });
start();
