// Several perturbations side by side: a line for each, and a heat map of the genes that they change most. Both are tables, so
// that they are read out, scroll and can be copied.

import { changes, strongest } from "/page/chart.js";
import { button, row, signed, text } from "/page/dom.js";

const SHOWN_GENES = 36;
const FEWEST_EACH_WAY = 2;

// Of each prediction: its profile, its genes by change, and the controls it is compared with.
export function compared(answer) {
  return answer.predictions.map((profile) => {
    const control = answer.controls.find((one) => one.cell_type === profile.cell_type) ?? null;
    return { profile, control, rows: changes(answer.genes, profile.mean, control?.mean ?? null) };
  });
}

export function errorOf(profile) {
  const expected = profile.expected_error;
  return expected ? `${expected.mae.toFixed(3)} (90 %: ${expected.low.toFixed(3)} to ${expected.high.toFixed(3)})` : null;
}

export function fillSummary(body, all, choose) {
  body.replaceChildren(...all.map((one, index) => {
    const sizes = one.rows.map((gene) => Math.abs(gene.difference));
    const mean = sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
    const name = one.profile.perturbation;
    const head = button(name, () => choose(index), { class: "link", "aria-label": `Show ${name} below` });
    const [first, last] = [one.rows[0], one.rows.at(-1)];
    return row(head, [mean.toFixed(4), errorOf(one.profile), `${first.gene} ${signed(first.difference, 2)}`, `${last.gene} ${signed(last.difference, 2)}`]);
  }));
}

// Genes in the order of their mean change over all perturbations; colours reach from the greatest fall to the greatest rise.
export function fillHeatMap(table, all) {
  const each = Math.max(FEWEST_EACH_WAY, Math.floor(SHOWN_GENES / (2 * all.length)));
  const shown = [...new Set(all.flatMap((one) => strongest(one.rows, each).map((gene) => gene.gene)))];
  const values = all.map((one) => new Map(one.rows.map((gene) => [gene.gene, gene.difference])));
  const mean = (gene) => values.reduce((sum, map) => sum + map.get(gene), 0);
  shown.sort((a, b) => mean(b) - mean(a));
  const most = Math.max(...shown.flatMap((gene) => values.map((map) => Math.abs(map.get(gene)))), 1e-9);
  const head = document.createElement("tr");
  head.append(text("th", "Gene", { scope: "col" }), ...all.map((one) => text("th", one.profile.perturbation, { scope: "col" })));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...shown.map((gene) => {
    const line = row(gene, values.map((map) => signed(map.get(gene), 2)));
    values.forEach((map, index) => colour(line.children[index + 1], map.get(gene) / most));
    return line;
  }));
  return shown.length;
}

function colour(cell, share) {
  cell.className = share < 0 ? "cool" : "warm";
  cell.style.setProperty("--share", Math.abs(share).toFixed(3));
}
