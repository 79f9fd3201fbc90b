"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const figures = read("figures");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg" } };

  // Figures carry a colour scale for dark pages beside their own; text and lines take the colours of the page.
  function themed(figure, isDark) {
    const { data, layout } = structuredClone(figure);
    const page = getComputedStyle(document.documentElement);
    const colour = (name) => page.getPropertyValue(name).trim();
    for (const trace of data) {
      if (isDark && trace.type === "heatmap") trace.colorscale = layout.meta.dark;
    }
    layout.font = { ...layout.font, color: colour("--muted") };
    layout.dragmode = false;
    for (const axis of [layout.xaxis, layout.yaxis]) {
      axis.fixedrange = true; // a finger that scrolls the page must not drag a plot
      if (axis.showgrid) axis.gridcolor = colour("--line");
    }
    return { data, layout };
  }

  function draw(isDark) {
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = themed(figure, isDark);
      Plotly.react(id, data, layout, config);
    }
  }

  draw(dark.matches);
  dark.addEventListener("change", () => draw(dark.matches));
  addEventListener("beforeprint", () => draw(false));
  addEventListener("afterprint", () => draw(dark.matches));

  const form = document.getElementById("token-view");
  if (!form) return;
  const rows = read("rows");
  const chips = [...form.querySelectorAll(".chips > li")];

  function show({ at, target, p, summary }) {
    chips.forEach((chip, j) => {
      chip.style.setProperty("--p", p[j]);
      chip.classList.toggle("query", j === at);
      chip.classList.toggle("later", j > at);
      chip.classList.toggle("target", j === target);
      chip.querySelector("small").textContent = p[j] >= 0.005 ? p[j].toFixed(2) : "\u00a0";
      chip.title = chip.title.split(", p =")[0] + (j > at ? "" : `, p = ${p[j].toFixed(4)}`);
    });
    form.querySelector(".summary bdi").textContent = summary;
  }

  const chosen = () => rows[Number(new FormData(form).get("query"))];
  form.addEventListener("change", () => show(chosen()));
  form.addEventListener("submit", (event) => event.preventDefault());
  show(chosen());
})();
