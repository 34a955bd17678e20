// Charts of one perturbation: its strongest genes as diverging bars, and all genes by their level and change.

import { drawn, row, signed } from "/page/dom.js";

const [WIDEST, NARROW, NARROWEST] = [860, 560, 280];
const ROW = 22;
const BAR = 14;

// As wide as its place on a small screen, so that text keeps its size; else drawn at the widest and scaled.
function widthOf(svg) {
  const place = svg.parentElement.clientWidth;
  return place && place < NARROW ? Math.max(place, NARROWEST) : WIDEST;
}

// Every gene with its mean before (null: not known) and after, the greatest rise first.
export function changes(genes, predicted, controls) {
  const rows = genes.map((gene, index) => {
    const before = controls ? controls[index] : null;
    return { gene, before, after: predicted[index], difference: predicted[index] - (before ?? 0) };
  });
  return rows.sort((a, b) => b.difference - a.difference);
}

export function strongest(rows, count) {
  const up = rows.filter((one) => one.difference > 0).slice(0, count);
  const down = rows.filter((one) => one.difference < 0).slice(-count);
  return [...up, ...down];
}

export function drawBars(svg, rows) {
  svg.replaceChildren();
  const width = widthOf(svg);
  const height = Math.max(1, rows.length) * ROW + 8;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const most = Math.max(...rows.map((one) => Math.abs(one.difference)), 1e-9);
  const centre = width / 2;
  const longest = centre - (width < NARROW ? 56 : 90); // beyond it stands the value
  svg.append(drawn("line", { class: "axis", x1: centre, x2: centre, y1: 0, y2: height }));
  rows.forEach((one, index) => {
    const isUp = one.difference > 0;
    const y = index * ROW + 4;
    const length = Math.max(1, (Math.abs(one.difference) / most) * longest);
    const group = drawn("g", { "data-gene": one.gene });
    group.append(
      drawn("title", {}, `${one.gene}: ${described(one)}`),
      drawn("rect", {
        class: isUp ? "up" : "down", x: isUp ? centre : centre - length, y: y + (ROW - BAR) / 2, width: length, height: BAR, rx: 2,
      }),
      drawn("text", { x: isUp ? centre - 8 : centre + 8, y: y + 15, "text-anchor": isUp ? "end" : "start" }, one.gene),
      drawn("text", {
        class: "value", x: isUp ? centre + length + 6 : centre - length - 6, y: y + 15, "text-anchor": isUp ? "start" : "end",
      }, signed(one.difference)),
    );
    svg.append(group);
  });
}

export function fillTable(body, rows) {
  body.replaceChildren(...rows.map((one) => {
    const line = row(one.gene, [one.before === null ? null : one.before.toFixed(4), one.after.toFixed(4), signed(one.difference, 4)]);
    line.lastChild.className = one.difference > 0 ? "up" : "down";
    return line;
  }));
}

function described(one) {
  return one.before === null ? one.after.toFixed(4) : `${one.before.toFixed(4)} in controls, ${one.after.toFixed(4)} predicted`;
}

// The MA plot: mean of control and predicted expression across, predicted change up. A path for each kind of dot keeps tens
// of thousands of genes quick; the pointer names the nearest.
const MA = { height: 360, left: 52, right: 16, top: 14, bottom: 40, named: 5, namedNarrow: 2, reach: 14, letter: 9, line: 15 };

export function drawScatter(svg, rows, named) {
  const levels = rows.map((one) => (one.before + one.after) / 2);
  const highest = Math.max(...levels, 1e-9);
  const most = Math.max(...rows.map((one) => Math.abs(one.difference)), 1e-9) * 1.08;
  const width = widthOf(svg);
  const x = (level) => MA.left + (level / highest) * (width - MA.left - MA.right);
  const y = (difference) => MA.top + ((most - difference) / (2 * most)) * (MA.height - MA.top - MA.bottom);
  const strong = new Set(named.map((one) => one.gene));
  const dots = { rest: [], up: [], down: [] };
  const places = rows.map((one, index) => ({ one, x: x(levels[index]), y: y(one.difference) }));
  for (const place of places) {
    const kind = strong.has(place.one.gene) ? (place.one.difference > 0 ? "up" : "down") : "rest";
    dots[kind].push(`M${place.x.toFixed(1)} ${place.y.toFixed(1)}h0`);
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${MA.height}`);
  svg.replaceChildren(...axes(x, y, highest, most, width));
  for (const [kind, path] of Object.entries(dots)) svg.append(drawn("path", { class: `dots ${kind}`, d: path.join("") || "M0 0" }));
  const few = width < NARROW ? MA.namedNarrow : MA.named;
  const ends = new Set([...named.slice(0, few), ...named.slice(-few)].map((one) => one.gene));
  svg.append(...labels(places.filter((place) => ends.has(place.one.gene)), width));
  follow(svg, places, width);
}

function axes(x, y, highest, most, width) {
  const [zero, bottom] = [y(0), MA.height - MA.bottom];
  const middle = (MA.left + width - MA.right) / 2;
  const lines = [
    drawn("line", { class: "axis", x1: MA.left, x2: width - MA.right, y1: zero, y2: zero }),
    drawn("line", { class: "axis", x1: MA.left, x2: MA.left, y1: MA.top, y2: bottom }),
    drawn("text", { class: "value", x: middle, y: MA.height - 6, "text-anchor": "middle" }, "mean expression, control and predicted"),
    drawn("text", { class: "value", transform: `translate(12 ${(MA.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "predicted change"),
  ];
  for (const level of [0, highest / 2, highest]) {
    lines.push(drawn("text", { class: "value", x: x(level), y: bottom + 16, "text-anchor": level ? "end" : "start" }, level.toFixed(2)));
  }
  for (const change of [most / 1.08, 0, -most / 1.08]) {
    lines.push(drawn("text", { class: "value", x: MA.left - 6, y: y(change) + 4, "text-anchor": "end" }, signed(change, 2)));
  }
  return lines;
}

// The strongest first; a name that would run into one already there is left to the pointer and the table.
function labels(places, width) {
  const taken = [];
  return places.toSorted((a, b) => Math.abs(b.one.difference) - Math.abs(a.one.difference)).flatMap(({ one, x, y }) => {
    const isRight = x > width * (width < NARROW ? 0.6 : 0.85);
    const from = isRight ? x - 7 - one.gene.length * MA.letter : x + 7;
    const box = { from, to: from + one.gene.length * MA.letter, y };
    if (taken.some((other) => box.from < other.to && other.from < box.to && Math.abs(y - other.y) < MA.line)) return [];
    taken.push(box);
    return [drawn("text", { class: "gene", x: isRight ? x - 7 : x + 7, y: y + 4, "text-anchor": isRight ? "end" : "start" }, one.gene)];
  });
}

function follow(svg, places, width) {
  const mark = drawn("circle", { class: "mark", r: 6, visibility: "hidden" });
  const name = drawn("text", { class: "pointed", "text-anchor": "middle", x: width / 2, y: 12 });
  svg.append(mark, name);
  svg.onpointermove = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let [nearest, least] = [null, MA.reach ** 2];
    for (const place of places) {
      const distance = (place.x - at.x) ** 2 + (place.y - at.y) ** 2;
      if (distance < least) [nearest, least] = [place, distance];
    }
    mark.setAttribute("visibility", nearest ? "visible" : "hidden");
    name.textContent = nearest ? `${nearest.one.gene}: ${described(nearest.one)}, ${signed(nearest.one.difference)}` : "";
    if (nearest) {
      mark.setAttribute("cx", nearest.x);
      mark.setAttribute("cy", nearest.y);
    }
  };
  svg.onpointerleave = () => {
    mark.setAttribute("visibility", "hidden");
    name.textContent = "";
  };
}
