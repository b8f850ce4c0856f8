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
  const grid = style.getPropertyValue("--grid").trim();
  return { gridcolor: grid, linecolor: grid, zeroline: false, automargin: true, fixedrange: true, ticks: "", ...own };
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const muted = style.getPropertyValue("--muted").trim();
  const card = style.getPropertyValue("--card").trim();
  const line = style.getPropertyValue("--line").trim();
  for (const [id, figure] of Object.entries(figures)) {
    // what is folded has no width yet: it is drawn when it is opened
    if (document.getElementById(id).closest("details:not([open])")) continue;
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
    const data = coloured(figure.data, style);
    const narrow = document.getElementById(id).clientWidth < 600;
    for (const trace of data) if (trace.text && narrow) trace.text = trace.text.map((text) => text.split("<br>")[0]);
    Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
  }
}

draw();
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);

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
function listen() {
  for (const id of Object.keys(figures).filter((name) => name.startsWith("plot-") && name !== "plot-histogram")) {
    const plot = field(id);
    if (!plot.on || plot.dataset.listens) continue;
    plot.dataset.listens = "yes";
    plot.on("plotly_click", ({ points }) => {
      field("tensors").open = true;
      field("filter").value = points[0].customdata[0];
      field("status").value = field("kind").value = "";
      filter();
      field("tensors").scrollIntoView({ behavior: "smooth" });
    });
  }
}
listen();
for (const details of document.querySelectorAll("details")) {
  if (!details.querySelector(".plot")) continue;
  details.addEventListener("toggle", () => {
    draw();
    listen();
  });
}

// Images: the sets as they stand in the page.
const sets = Array.from(document.querySelectorAll(".set"), (set) => ({
  name: set.querySelector("h3").firstChild.textContent.trim(),
  small: set.classList.contains("small"),
  views: Array.from(set.querySelectorAll("figure"), (figure) => ({
    image: figure.querySelector("img"),
    name: figure.dataset.view,
    label: figure.querySelector("figcaption").textContent,
    difference: figure.classList.contains("difference"),
  })),
}));

// The slider: two images of a set one over the other, the upper one cut off at a line that is dragged.
function copyOf(view) {
  const image = new Image(view.image.width, view.image.height);
  image.src = view.image.src;
  image.alt = view.image.alt;
  return image;
}

function tag(side, view) {
  const element = document.createElement("span");
  element.className = `tag ${side}`;
  element.textContent = view.label;
  return element;
}

function cut() {
  const { value } = field("cut");
  field("compare").style.setProperty("--cut", `${value}%`);
  field("cut").setAttribute("aria-valuetext", `${value} % ${field("left").value}, the rest ${field("right").value}`);
}

function stage() {
  const set = sets[field("which").selectedIndex];
  const [left, right] = ["left", "right"].map((side) => set.views[field(side).selectedIndex]);
  const grip = document.createElement("span");
  grip.className = "grip";
  grip.textContent = "\u2039\u203a";
  field("compare").replaceChildren(
    copyOf(right), copyOf(left), tag("left", left), tag("right", right), grip, field("cut"));
  cut();
}

if (sets.length) {
  for (const id of ["which", "left", "right"]) field(id).addEventListener("input", stage);
  field("cut").addEventListener("input", cut);
  stage();
  field("stage").hidden = false;
}

// One image, large. The arrow keys flick between the views of its set in place.
let shown = { set: null, index: 0 };

function show(set, index) {
  shown = { set, index };
  const view = set.views[index];
  field("zoom-title").textContent = view.image.alt;
  field("zoom-image").replaceChildren(copyOf(view));
  field("zoom-image").className = set.small ? "small" : "";
  Array.from(field("zoom-views").children, (button, place) =>
    button.setAttribute("aria-pressed", String(place === index)));
}

function enlarge(set, index) {
  field("zoom-views").replaceChildren(...set.views.map((view, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = view.name;
    button.addEventListener("click", () => show(set, place));
    return button;
  }));
  show(set, index);
  field("zoom").showModal();
}

for (const set of sets) {
  set.views.forEach((view, index) => view.image.parentNode.addEventListener("click", () => enlarge(set, index)));
}
field("zoom-close").addEventListener("click", () => field("zoom").close());
field("zoom-image").addEventListener("click", () => field("zoom").close());
field("zoom").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const count = shown.set.views.length;
  show(shown.set, (shown.index + step + count) % count);
});
