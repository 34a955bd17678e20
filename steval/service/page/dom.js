// Elements of the page; text is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const at = (id) => document.getElementById(id);

export function text(tag, content, attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = content;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  return node;
}

export function button(label, act, attributes = {}) {
  const node = text("button", label, { type: "button", ...attributes });
  node.addEventListener("click", act);
  return node;
}

export function drawn(name, attributes, content) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  if (content !== undefined) node.textContent = content;
  return node;
}

// A row of a table: its head and its cells, each text, a node or null (nothing to say).
export function row(head, cells) {
  const line = document.createElement("tr");
  const first = document.createElement("th");
  first.scope = "row";
  first.append(head);
  line.append(first, ...cells.map((content) => {
    const cell = document.createElement("td");
    cell.append(content ?? "–");
    return cell;
  }));
  return line;
}

export function signed(value, digits = 3) {
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

// To what has come, for the keyboard and for screen readers; where it stands below what was asked, also into view.
export function reveal(node) {
  node.focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) node.scrollIntoView({ block: "start" });
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
