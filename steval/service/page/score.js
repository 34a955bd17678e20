// Scoring: upload a file, follow its job, see the score and its report.

import { call, embed, getJson, pause, showError } from "/page/call.js";
import { at, button, reveal, row, save, text } from "/page/dom.js";

const ENDED = ["done", "failed", "cancelled"];
const SLOWEST = 5000;
const state = { job: null, chosenModel: () => null };

async function submit(event) {
  event.preventDefault();
  if (!at("score-form").reportValidity()) return;
  clear();
  busy(true, "uploading…");
  try {
    const body = new FormData();
    for (const role of ["predictions", "real"]) {
      const [chosen] = at(`score-${role}`).files;
      if (chosen) body.append(role, chosen);
    }
    body.append("profile", at("score-profile").value);
    const model = state.chosenModel();
    if (model) body.append("model", model);
    const job = await getJson("/score", { method: "POST", body });
    await follow(job.id);
  } catch (error) {
    busy(false, "");
    showError(at("score-error"), error);
    reveal(at("score-results"));
  }
}

// Asks for the state until the job has ended, a little less often each time.
async function follow(id) {
  state.job = id;
  at("score-cancel").hidden = false;
  const began = performance.now();
  for (let wait = 500; ; wait = Math.min(wait * 1.3, SLOWEST)) {
    const job = await getJson(`/score/${id}`);
    const seconds = Math.round((performance.now() - began) / 1000);
    busy(!ENDED.includes(job.state), job.state === "queued" ? `waiting for its turn, ${seconds} s` : `${job.state}, ${seconds} s`);
    if (job.state === "done") return showScore(job);
    if (ENDED.includes(job.state)) {
      if (job.error) showError(at("score-error"), { message: job.error.message, detail: job.error });
      return reveal(at("score-results"));
    }
    await pause(wait);
  }
}

async function showScore(job) {
  const score = await getJson(`/score/${job.id}/result`);
  at("score-empty").hidden = true;
  at("score-answer").hidden = false;
  at("score-standing").textContent = score.standing?.sentence ?? "";
  at("score-table").tBodies[0].replaceChildren(...lines(score).map(([name, value]) => row(name, [value])));
  at("score-files").replaceChildren(...job.files.map((name) => {
    const item = document.createElement("li");
    item.append(button(name, () => download(job.id, name), { class: "link" }));
    return item;
  }));
  if (job.files.includes("report.html")) await embed(at("score-report"), `/score/${job.id}/files/report.html`, "Score report");
  reveal(at("score-results"));
}

function lines(score) {
  const number = (value) => (typeof value === "number" ? value.toFixed(4) : null);
  const interval = score.interval?.every((end) => typeof end === "number") ? ` (95 %: ${score.interval.map(number).join(" to ")})` : "";
  const failed = score.integrity?.fail ?? 0;
  return [
    ["Overall score", score.overall === null || score.overall === undefined ? null : number(score.overall) + interval],
    ["Integrity", failed ? `${failed} checks failed` : "no check failed"],
  ];
}

async function download(id, name) {
  try {
    save(await (await call(`/score/${id}/files/${encodeURIComponent(name)}`)).blob(), name);
  } catch (error) {
    showError(at("score-error"), error);
  }
}

async function cancel() {
  try {
    await call(`/score/${state.job}`, { method: "DELETE" });
  } catch (error) {
    showError(at("score-error"), error);
  }
}

function clear() {
  at("score-error").hidden = true;
  at("score-answer").hidden = true;
  at("score-report").replaceChildren();
}

function busy(isBusy, message) {
  at("score-submit").disabled = isBusy;
  at("score-cancel").hidden = !isBusy || !state.job;
  at("score-status").textContent = message;
  if (!isBusy) state.job = null;
}

// The profiles that the service takes, as its description lists them; the first is the default.
export async function loadProfiles() {
  if (at("score-profile").options.length) return;
  try {
    const described = await getJson("/openapi.json");
    const { properties } = described.paths["/score"].post.requestBody.content["application/json"].schema;
    at("score-profile").replaceChildren(...properties.profile.enum.map((name) => text("option", name)));
    at("score-profile").value = properties.profile.default;
  } catch (error) {
    showError(at("score-error"), error);
  }
}

export function wireScore(chosenModel) {
  state.chosenModel = chosenModel;
  at("score-form").addEventListener("submit", submit);
  at("score-cancel").addEventListener("click", cancel);
}

// Whether the real cells are needed: the model may record them.
export function tellScore(card) {
  at("score-real").required = !card.has_evaluation_data;
  at("score-real-hint").textContent = card.has_evaluation_data
    ? "Without a file: the evaluation data that the model records."
    : "Needed: the model records no evaluation data.";
}
