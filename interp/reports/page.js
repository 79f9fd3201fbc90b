"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const figures = read("figures");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg" } };

  // Circuits carry colours for dark pages beside their own; text and lines of all figures take the colours of the page.
  function themed(figure, isDark) {
    let text = JSON.stringify(figure);
    if (isDark) {
      for (const [light, lighter] of Object.entries(figure.layout.meta?.swapped ?? {})) text = text.replaceAll(light, lighter);
    }
    const { data, layout } = JSON.parse(text);
    const page = getComputedStyle(document.documentElement);
    const colour = (name) => page.getPropertyValue(name).trim();
    layout.font = { ...layout.font, color: colour("--muted") };
    layout.dragmode = false;
    for (const axis of [layout.xaxis, layout.yaxis]) {
      if (!axis) continue;
      axis.fixedrange = true; // a finger that scrolls the page must not drag a plot
      if (axis.showgrid) axis.gridcolor = colour("--line");
    }
    return { data, layout };
  }

  function draw(id, isDark) {
    const { data, layout } = themed(figures[id], isDark);
    Plotly.react(id, data, layout, config);
    fit(document.getElementById(id));
    // The label of the place says what the drawing shows; its loose numbers would only be noise.
    // A graph is read from its logits, which stand at the right.
    const canvas = document.getElementById(id).closest(".graph .canvas");
    if (canvas && !canvas.scrollLeft) canvas.scrollLeft = canvas.scrollWidth;
    for (const svg of document.getElementById(id).querySelectorAll(".main-svg")) svg.ariaHidden = "true";
  }

  // A legend under a plot has room for a narrow page; a wide one needs fewer lines, and the rest is taken back.
  function fit(plot) {
    const { below } = plot.layout.meta ?? {};
    const legend = below && plot.querySelector(".legend .bg");
    if (!legend || !plot.clientWidth) return;
    const room = below + Math.ceil(legend.getBBox().height) + 6;
    const { height, margin } = plot.layout;
    if (Math.abs(margin.b - room) < 3) return;
    plot.style.minHeight = 0;
    Plotly.relayout(plot, { height: height - margin.b + room, "margin.b": room });
  }

  const drawAll = (isDark) => Object.keys(figures).forEach((id) => draw(id, isDark));

  // One figure at a time: the page answers while the rest are still to come.
  async function drawInTurn() {
    for (const id of Object.keys(figures)) {
      draw(id, dark.matches);
      await new Promise((next) => setTimeout(next));
    }
  }

  drawInTurn();
  addEventListener("resize", () => setTimeout(() => document.querySelectorAll(".plot.js-plotly-plot").forEach(fit), 100));
  dark.addEventListener("change", () => drawAll(dark.matches));
  let unfolded = [];
  addEventListener("beforeprint", () => {
    drawAll(false);
    unfolded = [...document.querySelectorAll("details:not([open]):not(.fold):not(.fold *)")]; // whole analyses stay as they are
    for (const details of unfolded) details.open = true;
  });
  addEventListener("afterprint", () => {
    drawAll(dark.matches);
    for (const details of unfolded) details.open = false;
  });

  // What is drawn while folded has no width yet; a link into what is folded opens it.
  addEventListener("toggle", (event) => {
    if (event.target.open) for (const plot of event.target.querySelectorAll(".plot")) draw(plot.id, dark.matches);
  }, true);
  function openTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && (target.closest("details") ?? target.querySelector(":scope > details.fold"));
    if (!fold) return;
    fold.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", openTarget);
  openTarget();

  // Tables are sorted by a button in the head of each column; numbers by the raw value, which is finer than the text.
  function key(row, column) {
    const cell = row.cells[column];
    const raw = cell.dataset.value;
    return raw === undefined ? cell.textContent.trim() : raw === "" ? null : Number(raw);
  }

  function before(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sortBy(table, head, column) {
    const down = head.classList.contains("n") ? head.ariaSort !== "descending" : head.ariaSort === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, by: key(row, column) }));
    const none = (item) => item.by === null; // last either way
    rows.sort((a, b) => none(a) - none(b) || (none(a) ? 0 : down ? before(b.by, a.by) : before(a.by, b.by)));
    body.append(...rows.map((item) => item.row));
  }

  for (const table of document.querySelectorAll("main table")) {
    if (!table.tHead || table.closest("[data-circuit]") || table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sortBy(table, head, column));
    });
  }
})();
