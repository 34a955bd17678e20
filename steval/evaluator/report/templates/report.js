// Figures as PNG and the picker of perturbations. Without scripts the page shows all of it but these.

for (const link of document.querySelectorAll("a.png")) {
  link.hidden = false;
  link.addEventListener("click", (event) => { event.preventDefault(); saveDrawn(link); });
}

function saveDrawn(link) {
  const svg = link.closest("figure").querySelector("svg").cloneNode(true);
  const own = getComputedStyle(document.documentElement);
  const text = new XMLSerializer().serializeToString(svg)
    .replaceAll(/var\((--[\w-]+)(?:, [^)]*)?\)/g, (_, name) => own.getPropertyValue(name).trim());
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const image = new Image();
  image.onload = () => {
    const canvas = document.createElement("canvas");
    const pixels = 2400 / width;
    canvas.width = Math.round(width * pixels);
    canvas.height = Math.round(height * pixels);
    const pen = canvas.getContext("2d");
    pen.fillStyle = own.getPropertyValue("--paper");
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const made = document.createElement("a");
    made.href = canvas.toDataURL("image/png");
    made.download = link.download;
    made.click();
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}

const SIZE = 420;
const EDGE = 46;
const LABELLED = 12;

for (const picker of document.querySelectorAll(".picker")) {
  const changes = JSON.parse(picker.querySelector("script").textContent);
  const choice = picker.querySelector("select");
  choice.append(...Object.keys(changes).map((name) => new Option(name, name)));
  choice.addEventListener("change", () => plotChanges(picker, choice.value, changes[choice.value]));
  picker.hidden = false;
  plotChanges(picker, choice.value, changes[choice.value]);
}

function plotChanges(picker, name, genes) {
  const most = 1.08 * Math.max(1e-3, ...genes.flatMap(([, real, predicted]) => [Math.abs(real), Math.abs(predicted)]));
  const across = (value) => EDGE + (SIZE - EDGE - 8) * (value + most) / (2 * most);
  const up = (value) => SIZE - EDGE - (SIZE - EDGE - 8) * (value + most) / (2 * most);
  const svg = picker.querySelector("svg");
  svg.replaceChildren(
    drawn("line", { x1: across(-most), y1: up(-most), x2: across(most), y2: up(most), class: "equal" }),
    drawn("line", { x1: across(-most), y1: up(0), x2: across(most), y2: up(0), class: "zero" }),
    drawn("line", { x1: across(0), y1: up(-most), x2: across(0), y2: up(most), class: "zero" }),
    drawn("text", { x: across(0), y: SIZE - 8, "text-anchor": "middle" }, "real change"),
    drawn("text", { x: 14, y: up(0), "text-anchor": "middle", transform: `rotate(-90 14 ${up(0)})` }, "predicted change"),
    ...[-most, most].flatMap((end) => [
      drawn("text", { x: across(end), y: SIZE - EDGE + 16, "text-anchor": end < 0 ? "start" : "end" }, signed(end / 1.08)),
      drawn("text", { x: EDGE - 6, y: up(end) + (end < 0 ? 0 : 10), "text-anchor": "end" }, signed(end / 1.08)),
    ]),
    ...genes.toReversed().map(([gene, real, predicted, significant]) => {
      const point = drawn("circle", { cx: across(real), cy: up(predicted), r: 4, class: significant ? "significant" : "" });
      point.append(drawn("title", {}, `${gene}: real ${signed(real)}, predicted ${signed(predicted)}`));
      return point;
    }),
    ...apart(genes, across, up).map(([gene, real, predicted]) => drawn("text", {
      x: across(real) + (real > 0 ? -7 : 7), y: up(predicted) - 5, "text-anchor": real > 0 ? "end" : "start", class: "gene",
    }, gene)),
  );
  svg.setAttribute("aria-label", `Predicted against real changes of ${name}`);
}

// The most changed genes whose names do not lie on one another.
function apart(genes, across, up) {
  const placed = [];
  for (const gene of genes) {
    const [x, y] = [across(gene[1]), up(gene[2])];
    if (placed.every(([, a, b]) => Math.abs(x - a) > 70 || Math.abs(y - b) > 12)) placed.push([gene, x, y]);
    if (placed.length === LABELLED) break;
  }
  return placed.map(([gene]) => gene);
}

function drawn(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function signed(value) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toPrecision(2);
}
