"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const touch = matchMedia("(pointer: coarse)").matches;

function draw(node) {
  if (node.dataset.drawn) return;
  node.dataset.drawn = "yes";
  const { data, layout } = figures[node.dataset.figure];
  if (layout.polar) layout.height = Math.min(layout.height, node.clientWidth); // a circle needs no more height than width
  if (touch) layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(node, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

// What is folded away has no width yet: it is drawn when it opens.
const hidden = (node) => node.closest("details:not([open])");
const charts = [...document.querySelectorAll("[data-figure]")];
charts.filter((node) => !hidden(node)).forEach(draw);
for (const fold of document.querySelectorAll("details")) {
  fold.addEventListener("toggle", () => charts.filter((node) => !hidden(node)).forEach(draw));
}

// A button of a legend switches its curves off and on, in all charts.
for (const button of document.querySelectorAll("button[data-key]")) {
  button.addEventListener("click", () => {
    const key = button.dataset.key;
    const off = button.getAttribute("aria-pressed") === "true";
    for (const same of document.querySelectorAll("button[data-key]")) {
      if (same.dataset.key === key) same.setAttribute("aria-pressed", String(!off));
    }
    for (const figure of Object.values(figures)) {
      for (const trace of figure.data) if (trace.meta === key) trace.visible = !off;
    }
    for (const node of charts.filter((node) => node.dataset.drawn)) {
      const traces = node.data.flatMap((trace, index) => (trace.meta === key ? [index] : []));
      if (traces.length) Plotly.restyle(node, { visible: !off }, traces);
    }
  });
}
