"use strict";

const field = (id) => document.getElementById(id);

// Plots: the figures name CSS variables ("@linear"), so that they follow the reader's light or dark scheme.
const figures = JSON.parse(field("figures").textContent);

function coloured(value, style) {
  if (typeof value === "string") return /^@[a-z]+$/.test(value) ? style.getPropertyValue("--" + value.slice(1)).trim() : value;
  if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((item) => coloured(item, style)) : value;
  if (value === null || typeof value !== "object") return value;
  // customdata holds names from the checkpoint: a name like "@ink" is no colour
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === "customdata" ? v : coloured(v, style)]));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const plot = field(id);
    // what is folded has no width yet: it is drawn when it is opened
    if (plot.closest("details:not([open])")) continue;
    const { data, layout } = coloured(figure, style);
    for (const trace of data) if (trace.text && plot.clientWidth < 600) trace.text = trace.text.map((text) => text.split("<br>")[0]);
    const drawn = plot.on;
    Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
    // plots of tensors alone: those of the outputs show images, which the table has not
    if (!drawn && id.startsWith("plot-") && id !== "plot-histogram") plot.on("plotly_click", findTensor);
  }
}

function findTensor({ points }) {
  field("tensors").open = true;
  field("filter").value = points[0].customdata[0];
  field("status").value = field("kind").value = "";
  filter();
  field("tensors").scrollIntoView({ behavior: "smooth" });
}

draw();
for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
for (const details of document.querySelectorAll("details:has(.plot)")) details.addEventListener("toggle", draw);

// Table of all tensors: sort by a click on a head, filter by name, status and kind.
const body = document.querySelector("#all tbody");

function filter() {
  const words = field("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = [field("status").value, field("kind").value];
  for (const row of body.rows) {
    const [name, ...kinds] = Array.from(row.cells, (cell) => cell.textContent);
    row.hidden = !chosen.every((value, place) => !value || value === kinds[place])
      || !words.every((word) => name.toLowerCase().includes(word));
  }
  const kept = Array.from(body.rows).filter((row) => !row.hidden).length;
  field("count").textContent = `${kept.toLocaleString("en")} of ${body.rows.length.toLocaleString("en")}`;
}

function sort(head, column) {
  const key = ({ dataset, textContent }) => (dataset.v === undefined ? textContent : Number(dataset.v));
  const before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : head.classList.contains("n");
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : (a > b) - (a < b));
  const keyed = Array.from(body.rows, (row) => [key(row.cells[column]), row]);
  // what is no number stands last in both directions
  keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || (descending ? order(b, a) : order(a, b)));
  body.append(...keyed.map(([, row]) => row));
}

document.querySelectorAll("#all thead th").forEach((head, column) => {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => sort(head, column));
});
for (const id of ["filter", "status", "kind"]) field(id).addEventListener("input", filter);
document.querySelector(".tools").hidden = false;
filter();

// Images: the sets as they stand in the page.
const sets = Array.from(document.querySelectorAll(".set"), (set) => Array.from(set.querySelectorAll("figure"), (figure) => ({
  image: figure.querySelector("img"),
  name: figure.dataset.view,
  label: figure.querySelector("figcaption").textContent,
  small: set.classList.contains("small"),
})));

// The slider: two images of a set one over the other, the upper one cut off at a line that is dragged.
function stage() {
  const set = sets[field("which").selectedIndex];
  for (const side of ["left", "right"]) {
    const { image, label } = set[field(side).selectedIndex];
    Object.assign(field(`${side}-image`), { src: image.src, alt: image.alt });
    field(`${side}-tag`).textContent = label;
  }
  const { value } = field("cut");
  field("compare").style.setProperty("--cut", `${value}%`);
  field("cut").setAttribute("aria-valuetext", `${value} % ${field("left").value}, the rest ${field("right").value}`);
}

// One image, large. The arrow keys flick between the views of its set in place.
let zoomed = { set: [], index: 0 };

function show(set, index) {
  zoomed = { set, index };
  const { image, small } = set[index];
  field("zoom-title").textContent = image.alt;
  Object.assign(field("zoom-image"), { src: image.src, alt: image.alt, className: small ? "pixels" : "" });
  Array.from(field("zoom-views").children, (button, place) => button.setAttribute("aria-pressed", place === index));
}

function enlarge(set, index) {
  field("zoom-views").replaceChildren(...set.map((view, place) => {
    const button = document.createElement("button");
    button.textContent = view.name;
    button.addEventListener("click", () => show(set, place));
    return button;
  }));
  show(set, index);
  field("zoom").showModal();
}

if (sets.length) {
  for (const id of ["which", "left", "right", "cut"]) field(id).addEventListener("input", stage);
  stage();
  field("stage").hidden = false;
}
for (const set of sets) set.forEach(({ image }, index) => image.parentNode.addEventListener("click", () => enlarge(set, index)));
for (const id of ["zoom-close", "zoom-image"]) field(id).addEventListener("click", () => field("zoom").close());
field("zoom").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  show(zoomed.set, (zoomed.index + step + zoomed.set.length) % zoomed.set.length);
});
