// Batches: the leaderboards that the service finds in its data directories, and the reports of their jobs.

import { embed, getJson, showError } from "/page/call.js";
import { at, button, reveal, row, signed, text } from "/page/dom.js";

export async function loadBatches() {
  try {
    const found = (await getJson("/batches")).batches;
    at("batch").replaceChildren(...found.map((one) => text("option", `${one.name} (${one.changed.slice(0, 16).replace("T", " ")})`, { value: one.id })));
    at("batch-field").hidden = !found.length;
    at("batch-empty").hidden = found.length > 0;
    at("batch-answer").hidden = !found.length;
    if (found.length) await show();
  } catch (error) {
    showError(at("batch-error"), error);
  }
}

async function show() {
  const id = at("batch").value;
  at("batch-error").hidden = true;
  at("batch-report").hidden = true;
  try {
    const { rows } = await getJson(`/batches/${id}`);
    at("leaderboard").tBodies[0].replaceChildren(...rows.map((one, index) => line(id, one, index)));
    at("leaderboard-caption").textContent = `${rows.length} jobs, best first; scores with 95 % intervals.`;
  } catch (error) {
    showError(at("batch-error"), error);
  }
}

function line(id, one) {
  const interval = (value, low, high, say) => (value === null ? null : say(value) + (low === null ? "" : ` [${say(low)}, ${say(high)}]`));
  const fixed = (value) => value.toFixed(3);
  const report = one.job && one.state === "scored"
    ? button("Report", () => showReport(id, one), { "aria-label": `Report of ${one.checkpoint} on ${one.data}, ${one.request}` })
    : null;
  return row(one.rank === null ? "–" : String(one.rank), [
    one.checkpoint, one.data, one.request, interval(one.overall, one.overall_low, one.overall_high, fixed),
    interval(one.above_simple, one.above_simple_low, one.above_simple_high, (value) => signed(value, 1)),
    one.error ?? (one.flags || one.state), report,
  ]);
}

async function showReport(id, one) {
  try {
    await embed(at("batch-report"), `/batches/${id}/${encodeURIComponent(one.job)}/report`, `Score report of ${one.checkpoint} on ${one.data}`);
    reveal(at("batch-report"));
  } catch (error) {
    showError(at("batch-error"), error);
  }
}

export function wireBatches() {
  at("batch").addEventListener("change", show);
  at("batch-reload").addEventListener("click", loadBatches);
}
