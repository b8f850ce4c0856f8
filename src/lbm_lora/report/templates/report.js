"use strict";

// Plots: the figures name CSS variables ("@linear"), so that they follow the reader's light or dark scheme.
const figures = JSON.parse(document.getElementById("figures").textContent);

function coloured(value, style) {
  if (typeof value === "string") {
    return /^@[a-z]+$/.test(value) ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
  }
  if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((item) => coloured(item, style)) : value;
  if (value === null || typeof value !== "object") return value;
  // customdata holds names from the checkpoint: a name like "@ink" is no colour
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "customdata" ? v : coloured(v, style)]));
}

function axis(own, style) {
  const line = style.getPropertyValue("--line").trim();
  return { gridcolor: line, linecolor: line, zeroline: false, automargin: true, fixedrange: true, ticks: "", ...own };
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const muted = style.getPropertyValue("--muted").trim();
  const card = style.getPropertyValue("--card").trim();
  const line = style.getPropertyValue("--line").trim();
  for (const [id, figure] of Object.entries(figures)) {
    const layout = coloured(figure.layout, style);
    const title = { standoff: 10, font: { size: 12, color: muted } };
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = axis(layout[name], style);
      if (layout[name].title) layout[name].title = { ...title, ...layout[name].title };
    }
    Object.assign(layout, {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: muted },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 20, r: 20, t: 12, b: 20 },
      hovermode: "closest",
      dragmode: false,
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemsizing: "constant", font: { color: ink } },
      hoverlabel: { bgcolor: card, bordercolor: line, align: "left", font: { color: ink, size: 12 } },
    });
    Plotly.react(id, coloured(figure.data, style), layout, { displayModeBar: false, responsive: true });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Table of all tensors: sort by a click on a head, filter by name, status and kind.
const body = document.querySelector("#all tbody");
const lines = Array.from(body.rows, (row) => ({
  row,
  name: row.cells[0].textContent.toLowerCase(),
  status: row.cells[1].textContent,
  kind: row.cells[2].textContent,
}));
const field = (id) => document.getElementById(id);

function filter() {
  const words = field("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = field("status").value;
  const kind = field("kind").value;
  let shown = 0;
  for (const line of lines) {
    const kept = (!status || line.status === status) && (!kind || line.kind === kind)
      && words.every((word) => line.name.includes(word));
    line.row.hidden = !kept;
    shown += kept;
  }
  field("count").textContent = `${shown.toLocaleString("en")} of ${lines.length.toLocaleString("en")}`;
}

function key(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.v !== undefined) return cell.dataset.v === "inf" ? Infinity : Number(cell.dataset.v);
  if (column === 3) return cell.textContent.split("x").reduce((product, n) => product * (Number(n) || 1), 1);
  return column === 4 ? parseInt(cell.textContent, 10) : cell.textContent;
}

function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return a === b ? 0 : a < b ? -1 : 1;
}

function sort(head, column) {
  const numeric = head.classList.contains("n");
  const before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = lines.map((line) => [key(line.row, column), line.row]);
  keyed.sort(([a], [b]) => {
    const missing = Number.isNaN(a) || Number.isNaN(b); // stands last in both directions
    return descending && !missing ? compare(b, a) : compare(a, b);
  });
  body.append(...keyed.map(([, row]) => row));
}

Array.from(document.querySelectorAll("#all thead th")).forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => sort(head, column));
});
for (const id of ["filter", "status", "kind"]) field(id).addEventListener("input", filter);
document.querySelector(".tools").hidden = false;
filter();

// Plots of tensors alone: those of the outputs show images, which the table has not.
for (const id of Object.keys(figures).filter((name) => name.startsWith("plot-"))) {
  field(id).on("plotly_click", ({ points }) => {
    const name = points[0].customdata[0];
    if (id === "plot-histogram" || typeof name !== "string") return;
    field("filter").value = name;
    field("status").value = field("kind").value = "";
    filter();
    field("tensors").scrollIntoView({ behavior: "smooth" });
  });
}
