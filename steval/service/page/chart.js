// A diverging bar chart of the strongest genes as SVG; text is set as text, never as markup.

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 860;
const ROW = 22;
const BAR = 14;
const LABELS = 130;
const VALUES = 70;

export function strongest(genes, predicted, controls, count) {
  const rows = genes.map((gene, index) => {
    const before = controls ? controls[index] : null;
    return { gene, before, after: predicted[index], difference: predicted[index] - (before ?? 0) };
  });
  rows.sort((a, b) => b.difference - a.difference);
  const up = rows.filter((row) => row.difference > 0).slice(0, count);
  const down = rows.filter((row) => row.difference < 0).slice(-count);
  return [...up, ...down];
}

export function drawChart(svg, rows) {
  svg.replaceChildren();
  const height = Math.max(1, rows.length) * ROW + 8;
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const most = Math.max(...rows.map((row) => Math.abs(row.difference)), 1e-9);
  const half = (WIDTH - 2 * (LABELS + VALUES)) / 2 + VALUES;
  const centre = WIDTH / 2;
  const reach = half - VALUES;
  svg.append(element("line", { class: "axis", x1: centre, x2: centre, y1: 0, y2: height }));
  rows.forEach((row, index) => {
    const isUp = row.difference > 0;
    const y = index * ROW + 4;
    const length = Math.max(1, (Math.abs(row.difference) / most) * (reach + LABELS - 20));
    const group = element("g", { "data-gene": row.gene });
    group.append(
      element("title", {}, `${row.gene}: ${described(row)}`),
      element("rect", {
        class: isUp ? "up" : "down", x: isUp ? centre : centre - length, y: y + (ROW - BAR) / 2, width: length, height: BAR, rx: 2,
      }),
      element("text", { x: isUp ? centre - 8 : centre + 8, y: y + 15, "text-anchor": isUp ? "end" : "start" }, row.gene),
      element("text", {
        class: "value", x: isUp ? centre + length + 6 : centre - length - 6, y: y + 15, "text-anchor": isUp ? "start" : "end",
      }, signed(row.difference)),
    );
    svg.append(group);
  });
}

export function fillTable(body, rows) {
  body.replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = row.gene;
    const cells = [row.before === null ? "–" : row.before.toFixed(4), row.after.toFixed(4), signed(row.difference, 4)];
    line.append(name, ...cells.map((text, index) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (index === 2) cell.className = row.difference > 0 ? "up" : "down";
      return cell;
    }));
    return line;
  }));
}

export function signed(value, digits = 3) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

function described(row) {
  return row.before === null ? row.after.toFixed(4) : `${row.before.toFixed(4)} in controls, ${row.after.toFixed(4)} predicted`;
}

function element(name, attributes, text) {
  const node = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  if (text !== undefined) node.textContent = text;
  return node;
}
