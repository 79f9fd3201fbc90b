"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ENTRY = { q: -0.3, k: 0, v: 0.3, in: 0 }; // where a port stands under a head, in widths of the box
  const ROLES = ["#2f7fd0", "#d97706", "#2e9e6b", "#9a5bc4", "#d1495b", "#1893a3", "#8a8d1f", "#c4569a", "#a3684a", "#5b67c9"];
  const THIN = 0.8;
  const THICK = 5.5;
  const RANGE = 1000; // scores below the largest by this factor are as thin as lines get
  const GAP = 8; // between boxes, pixels
  const LINE = 14; // between lines of one block
  let views = 0;

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function shape(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const short = (x) => (x === null ? "" : Number(x.toPrecision(3)).toString());
  const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;
  const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

  // The numbers of a page as objects: components with their edges, edges with their ends.
  function read(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const nodes = data.nodes.map(([name, kind, layer, x, roles], i) => ({ i, name, kind, layer, x, roles, role: roles[0] ?? "" }));
    const sign = (score) => (score ? data.words[score < 0 ? 0 : 1] : "");
    const edges = data.edges.map(([s, r, port, score, low, high], i) => {
      const effect = sign(score);
      return { i, from: nodes[s], to: nodes[r], port, score, low, high, effect, size: Math.abs(score ?? 0) };
    });
    const shared = data.shared.map(([kv, head]) => ({ kv: nodes[kv], head: nodes[head] }));
    return { ...data, nodes, edges, shared };
  }

  // Width of an edge by the logarithm of its score's size, over three powers of ten below the largest.
  function widths(edges) {
    const most = edges.reduce((best, edge) => Math.max(best, edge.size), 0);
    const share = (size) => (size > 0 ? Math.max(0, 1 + Math.log(size / most) / Math.log(RANGE)) : 0);
    return { most, share, width: (size) => (most ? THIN + (THICK - THIN) * share(size) : 1.5) };
  }

  function circuitView(root) {
    const own = `circuit-${views++}`;
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const data = read(root);
    const scale = widths(data.edges);
    const roles = [...new Set(data.nodes.map((node) => node.role).filter(Boolean))];
    const colour = new Map(roles.map((role, i) => [role, ROLES[i % ROLES.length]]));
    const state = { n: data.first, by: roles.length ? "role" : "layer", chosen: null, sort: { key: "size", down: true }, drawn: null };
    const measured = new Map(data.sizes.map(([n, ...rest]) => [n, rest]));
    const canvas = part("canvas");
    const tip = element("div", "tip");
    const edgesShown = () => data.edges.slice(0, state.n);
    const look = (edge) => edge.effect || "plain";

    // ---- words -------------------------------------------------------------------------------------------------

    const named = (node) => node.name + (node.roles.length ? ` (${node.roles.join(", ")})` : "");
    const arrow = (edge) => `${edge.from.name} → ${edge.to.name}${edge.port === "in" ? "" : `.${edge.port}`}`;

    function edgeText(edge) {
      const interval = edge.low === null ? "" : ` (95 % interval ${short(edge.low)} .. ${short(edge.high)})`;
      const score = edge.score === null ? "no score" : `score ${short(edge.score)}${interval}`;
      return `${arrow(edge)}\n${score}${edge.effect ? `: ${edge.effect}` : ""}`;
    }

    function nodeText(node) {
      const into = edgesShown().filter((edge) => edge.to === node);
      const out = edgesShown().filter((edge) => edge.from === node);
      const heads = data.shared.filter((pair) => pair.kv === node).map((pair) => pair.head.name);
      const group = node.kind === "kv_head" ? `\nkeys and values of ${heads.join(", ") || "heads that are not in the circuit"}` : "";
      const kv = data.shared.find((pair) => pair.head === node)?.kv;
      const reads = kv ? `, keys and values through ${kv.name} (${edgesShown().filter((edge) => edge.to === kv).length} in)` : "";
      return `${named(node)}\n${plural(into.length, "edge")} in, ${out.length} out${reads}${group}`;
    }

    function strongest(edges) {
      const top = [...edges].sort((a, b) => b.size - a.size).slice(0, 3);
      return top.map((edge) => `${arrow(edge)} ${short(edge.score)}`).join("; ");
    }

    function tell() {
      const { chosen } = state;
      const told = part("told");
      if (!chosen) {
        told.replaceChildren("Choose a component, an edge or a row of the table to see what it is joined to; Escape shows everything again.");
        return;
      }
      const text = (chosen.edge ? edgeText(chosen.edge) : chosen.node ? nodeText(chosen.node) : `${chosen.role}\n${plural(members().size, "component")}`).split("\n");
      const more = chosen.node ? strongest(edgesShown().filter((edge) => edge.from === chosen.node || edge.to === chosen.node)) : "";
      const back = element("button", "", "Show all (Escape)");
      Object.assign(back, { type: "button" });
      back.dataset.all = "";
      told.replaceChildren(element("b", "", text[0]), ` ${text.slice(1).join("; ")}${more ? `; strongest: ${more}` : ""} `, back);
    }

    function tellSize() {
      const at = measured.get(state.n);
      const all = data.own > data.edges.length ? data.own : data.edges.length;
      part("count").textContent = `${state.n.toLocaleString("en")} of ${data.edges.length.toLocaleString("en")}`;
      part("size").ariaValueText = `${plural(state.n, "edge")} of ${data.edges.length}`;
      const isOwn = state.n === data.own;
      let text = `Faithfulness was not measured with ${state.n === 1 ? "this edge" : `these ${state.n.toLocaleString("en")} edges`} alone.`;
      if (state.n < data.own && !at) text = `The strongest ${plural(state.n, "edge")} of the circuit’s ${data.own.toLocaleString("en")}. ${text}`;
      if (at) {
        const [value, low, high] = at.map((x) => x?.toFixed(2));
        const interval = low === undefined || high === undefined ? "" : ` (95 % interval ${low} .. ${high})`;
        text = `Faithfulness of ${isOwn ? "this circuit of " : ""}${plural(state.n, "edge")}: ${value}${interval}.`;
        if (state.n > data.own) text += " Larger than the circuit chosen.";
      }
      part("measured").textContent = measured.size || state.n < all ? text : "";
      for (const button of part("sizes").children) button.ariaPressed = String(Number(button.dataset.size) === state.n);
    }

    // ---- places ------------------------------------------------------------------------------------------------

    // What stands together, from below: the heads of a layer or of a role, key-value heads under those that share them.
    function blocks(nodes) {
      const found = new Map();
      for (const node of nodes) {
        if (node.kind === "mlp") continue;
        const role = state.by === "role" ? node.role : "";
        const below = node.kind === "kv_head";
        const key = role ? `role ${role}` : `${node.layer}${below ? " shared" : ""}`;
        if (!found.has(key)) found.set(key, { role, below, lines: new Map(), nodes: [] });
        const block = found.get(key);
        const line = role ? node.layer * 2 + !below : 0;
        if (!block.lines.has(line)) block.lines.set(line, []);
        block.lines.get(line).push(node);
        block.nodes.push(node);
      }
      const made = [...found.values()];
      for (const block of made) {
        block.depth = mean(block.nodes.map((node) => node.layer)) + (block.below ? -0.45 : 0.1);
        block.x = mean(block.nodes.map((node) => node.x));
      }
      return made.sort((a, b) => a.depth - b.depth);
    }

    // Lines of a block within so many boxes, from below.
    function broken(block, capacity) {
      const lines = [];
      for (const [, line] of [...block.lines].sort(([a], [b]) => a - b)) {
        const sorted = line.sort((a, b) => a.x - b.x);
        const each = Math.ceil(sorted.length / Math.ceil(sorted.length / capacity));
        for (let first = 0; first < sorted.length; first += each) lines.push(sorted.slice(first, first + each));
      }
      return lines;
    }

    // Blocks of about the same depth side by side, where they fit.
    function rowsOf(nodes, box, room) {
      const rows = [];
      for (const block of blocks(nodes)) {
        block.parts = broken(block, Math.max(1, Math.floor((room - (block.role ? 16 : 0) + GAP) / (box.w + GAP))));
        block.width = Math.max(...block.parts.map((line) => line.length)) * (box.w + GAP) - GAP + (block.role ? 16 : 0);
        if (block.role) block.width = Math.min(room, Math.max(block.width, block.role.length * 6.2 + 18));
        const row = rows[rows.length - 1];
        const fits = row && block.depth - row.depth < 0.45 && row.width + block.width + 2 * GAP <= room && (row.role || block.role);
        if (fits) {
          row.blocks.push(block);
          row.width += block.width + 2 * GAP;
          row.lines = Math.max(row.lines, block.parts.length);
          row.role ||= block.role;
        } else rows.push({ depth: block.depth, blocks: [block], width: block.width, lines: block.parts.length, role: block.role });
      }
      rows.forEach((row, i) => { row.opens = rows[i - 1]?.blocks[0].nodes[0].layer !== row.blocks[0].nodes[0].layer; });
      return rows;
    }

    function layout() {
      const visible = new Set(edgesShown().flatMap((edge) => [edge.from, edge.to]));
      const nodes = [...visible];
      const lettered = state.by === "layer" && nodes.some((node) => node.role); // with the role below the name
      const box = { w: lettered ? 92 : 60, h: lettered ? 36 : 24, lettered };
      const width = Math.max(280, canvas.clientWidth);
      const mlps = nodes.filter((node) => node.kind === "mlp").sort((a, b) => a.layer - b.layer);
      const left = state.by === "layer" ? 18 : 12;
      const right = width - 14 - (mlps.length ? box.w + 22 : 0);
      const rows = rowsOf(nodes, box, right - left);
      const pitch = box.h + (rows.length > 24 ? 24 : rows.length > 12 ? 34 : 44);
      const want = wish(nodes, left + box.w / 2, right - box.w / 2);
      const at = new Map();
      let y = box.h; // of the next line's middle, upwards from the lower edge
      let column = 0; // of the highest MLP so far
      const items = [...rows.map((row) => ({ depth: row.depth, row })), ...mlps.map((mlp) => ({ depth: mlp.layer + 0.3, mlp }))];
      items.sort((a, b) => a.depth - b.depth);
      for (const { row, mlp } of items) {
        if (mlp) {
          column = Math.max(y - pitch / 2, column + box.h + 16);
          at.set(mlp, { x: width - 14 - box.w / 2, y: column });
          continue;
        }
        y = Math.max(y, column + (row.depth >= data.layers ? pitch * 0.6 : 0)) + (row.role ? 8 : 0);
        const ordered = row.blocks.sort((a, b) => a.x - b.x);
        const middles = ordered.map((block) => want(block.x));
        const widths = ordered.map((block) => block.width);
        placed(middles, widths, row.blocks.length > 1 || row.role ? 2 * GAP : 0, left, right).forEach((middle, i) => {
          const block = ordered[i];
          const [low, high] = ordered.length > 1 || block.role ? [middle - block.width / 2, middle + block.width / 2] : [left, right];
          const pad = block.role ? 8 : 0;
          block.parts.forEach((line, k) => {
            const wants = line.map((node) => want(node.x));
            const ends = [low + pad + box.w / 2, high - pad - box.w / 2];
            spaced(wants, box.w + GAP, ...ends).forEach((x, j) => at.set(line[j], { x, y: y + k * (box.h + LINE) }));
          });
          Object.assign(block, { left: low, right: high, low: y - box.h / 2, high: y + (block.parts.length - 1) * (box.h + LINE) + box.h / 2 });
        });
        row.low = y - box.h / 2;
        const below = row.blocks.every((block) => block.below);
        y += (row.lines - 1) * (box.h + LINE) + (below ? Math.min(pitch, box.h + 26) : pitch) + (row.role ? 18 : 0);
      }
      const height = Math.max(y - pitch, column) + box.h + 4;
      for (const place of at.values()) place.y = height - place.y; // downwards from the upper edge, as the screen counts
      return { at, box, width, height, rows, right };
    }

    // Where an x of the data belongs on the screen: partly to scale, mostly by rank, so that the middle is not crowded.
    function wish(nodes, low, high) {
      const xs = nodes.filter((node) => node.kind !== "mlp").map((node) => node.x).sort((a, b) => a - b);
      const [least, most] = [xs[0], xs[xs.length - 1]];
      return (x) => {
        if (!(most > least)) return (low + high) / 2;
        const rank = (xs.filter((other) => other < x).length + xs.filter((other) => other <= x).length) / 2 / xs.length;
        return low + (high - low) * (0.4 * ((x - least) / (most - least)) + 0.6 * rank);
      };
    }

    // Middles of blocks of these widths, in order, as near to where they want to be as there is room for.
    function placed(middles, widths, gap, low, high) {
      const xs = [...middles];
      for (let i = 0, limit = low; i < xs.length; limit = xs[i] + widths[i] / 2 + gap, i += 1) xs[i] = Math.max(xs[i], limit + widths[i] / 2);
      for (let i = xs.length - 1, limit = high; i >= 0; limit = xs[i] - widths[i] / 2 - gap, i -= 1) xs[i] = Math.min(xs[i], limit - widths[i] / 2);
      return xs;
    }

    // As near to where each wants to be as the distance between neighbours and the edges of the drawing allow.
    function spaced(wants, apart, low, high) {
      const xs = [...wants];
      for (let i = 1; i < xs.length; i += 1) xs[i] = Math.max(xs[i], xs[i - 1] + apart);
      const shift = wants.reduce((sum, x, i) => sum + x - xs[i], 0) / xs.length;
      for (let i = 0; i < xs.length; i += 1) xs[i] += shift;
      for (let i = xs.length - 1, limit = high; i >= 0; i -= 1, limit = xs[i + 1] - apart) xs[i] = Math.min(xs[i], limit);
      for (let i = 0, limit = low; i < xs.length; i += 1, limit = xs[i - 1] + apart) xs[i] = Math.max(xs[i], limit);
      return xs;
    }

    function curve(from, to, shift, { box, right }) {
      const start = { x: from.x, y: from.y - box.h / 2 };
      const end = { x: to.x + shift * box.w, y: to.y + box.h / 2 + 8 }; // where the head of the arrow begins
      const rise = start.y - end.y;
      const reach = rise > 0 ? Math.max(26, Math.min(0.45 * rise, 160)) : 40 - 0.2 * rise;
      let bend = 0; // what stands between two boxes above one another is gone around
      if (rise > 3 * box.h && Math.abs(end.x - start.x) < box.w * 0.6) bend = (from.x > right ? -1 : from.x > right / 2 ? 1 : -1) * Math.min(box.w * 1.25, 26 + rise * 0.12);
      return `M${start.x.toFixed(1)},${start.y.toFixed(1)}C${(start.x + bend).toFixed(1)},${(start.y - reach).toFixed(1)} ${(end.x + bend).toFixed(1)},${(end.y + reach).toFixed(1)} ${end.x.toFixed(1)},${end.y.toFixed(1)}`;
    }

    // ---- drawing -----------------------------------------------------------------------------------------------

    function markers() {
      return shape("defs", {}, ...["helps", "hurts", "negative", "positive", "plain"].map((name) => {
        const size = { viewBox: "0 0 8 8", refX: 0.8, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" };
        return shape("marker", { id: `${own}-${name}`, class: name, ...size }, shape("path", { d: "M0,0.6L8,4L0,7.4z" }));
      }));
    }

    // A box around the components of a role, or a line under a layer.
    function drawBand(row, { width, height }, titles) {
      const group = shape("g", { class: "band" });
      for (const block of row.blocks) {
        if (!block.role) continue;
        const top = height - block.high;
        group.append(shape("rect", { x: block.left, y: top - 18, width: block.right - block.left, height: block.high - block.low + 26, style: `--role: ${colour.get(block.role)}` }));
        const room = Math.floor((block.right - block.left - 12) / 5.6);
        const title = block.role.length > room ? `${block.role.slice(0, room - 1)}…` : block.role;
        titles.push(shape("text", { class: "title", x: block.left + 8, y: top - 5 }, title));
      }
      const { layer } = row.blocks[0].nodes[0];
      if (state.by === "layer" && layer >= 0 && layer < data.layers && row.opens) {
        const y = height - row.low + 13;
        group.append(shape("line", { x1: 0, x2: width, y1: y, y2: y }));
        titles.push(shape("text", { class: "title", x: 6, y: y - 3 }, `layer ${layer}`));
      }
      return group;
    }

    function drawNode(node, { at, box }) {
      const { x, y } = at.get(node);
      const group = shape("g", { class: `node ${node.kind}`, role: "button", tabindex: -1, "aria-pressed": "false", "aria-label": nodeText(node).replaceAll("\n", ", "), transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` });
      group.dataset.node = node.i;
      if (node.role) group.style.setProperty("--role", colour.get(node.role));
      group.append(shape("rect", { x: -box.w / 2, y: -box.h / 2, width: box.w, height: box.h, rx: node.kind === "mlp" ? 3 : 7 }));
      const second = box.lettered && node.role;
      group.append(shape("text", { y: second ? -3 : 4 }, node.name));
      if (second) group.append(shape("text", { class: "role", y: 11 }, node.role.length > 17 ? `${node.role.slice(0, 16)}…` : node.role));
      return group;
    }

    function draw() {
      const places = layout();
      const svg = shape("svg", { width: places.width, height: places.height, viewBox: `0 0 ${places.width} ${places.height}`, role: "group", "aria-label": `Drawing of ${plural(state.n, "edge")}; the table below says the same` });
      const titles = []; // above the lines, below the boxes
      svg.append(markers(), ...places.rows.map((row) => drawBand(row, places, titles)));
      const weakFirst = edgesShown().sort((a, b) => a.size - b.size);
      for (const { kv, head } of data.shared) {
        if (!places.at.has(kv) || !places.at.has(head)) continue;
        const line = shape("path", { class: "share", d: curve(places.at.get(kv), places.at.get(head), 0, places) });
        line.dataset.ends = `${kv.i} ${head.i}`;
        svg.append(line);
      }
      const touch = [];
      const ports = new Map();
      for (const edge of weakFirst) {
        const [from, to] = [places.at.get(edge.from), places.at.get(edge.to)];
        const d = curve(from, to, ENTRY[edge.port], places);
        const strength = scale.most ? scale.share(edge.size) : 0.6;
        const line = shape("path", { class: `edge ${look(edge)}`, d, "stroke-width": scale.width(edge.size).toFixed(2), "stroke-opacity": (0.4 + 0.55 * strength).toFixed(2), "marker-end": `url(#${own}-${look(edge)})` });
        const wide = shape("path", { class: "touch", d });
        line.dataset.edge = wide.dataset.edge = edge.i;
        svg.append(line);
        touch.push(wide);
        if (edge.port !== "in") ports.set(`${edge.to.i}${edge.port}`, shape("text", { class: "port", x: to.x + ENTRY[edge.port] * places.box.w + 7, y: to.y + places.box.h / 2 + 10 }, edge.port));
      }
      svg.append(...touch, ...titles, ...ports.values());
      const reading = [...places.at.keys()].sort((a, b) => places.at.get(b).y - places.at.get(a).y || places.at.get(a).x - places.at.get(b).x);
      svg.append(...reading.map((node) => drawNode(node, places)));
      state.drawn = { svg, places, reading };
      canvas.replaceChildren(svg, tip);
      tip.hidden = true;
      mark();
    }

    // ---- choosing ----------------------------------------------------------------------------------------------

    function members() {
      return new Set(data.nodes.filter((node) => node.role === state.chosen.role));
    }

    function isChosen(edge) {
      const { chosen } = state;
      if (chosen.edge) return edge === chosen.edge;
      const inside = chosen.node ? new Set([chosen.node]) : members();
      for (const { kv, head } of data.shared) if (inside.has(head)) inside.add(kv);
      return inside.has(edge.from) || inside.has(edge.to);
    }

    function mark() {
      const { svg, reading } = state.drawn;
      const { chosen } = state;
      const edges = chosen ? edgesShown().filter(isChosen) : [];
      const on = new Set(edges.map((edge) => String(edge.i)));
      const lit = new Set(edges.flatMap((edge) => [edge.from.i, edge.to.i]));
      if (chosen?.node) lit.add(chosen.node.i);
      if (chosen?.role) for (const node of members()) lit.add(node.i);
      svg.classList.toggle("isolated", Boolean(chosen));
      for (const line of svg.querySelectorAll("[data-edge]")) line.classList.toggle("on", on.has(line.dataset.edge));
      for (const line of svg.querySelectorAll(".share")) line.classList.toggle("on", line.dataset.ends.split(" ").every((i) => lit.has(Number(i))));
      const focused = reading.find((node) => node === state.focus) ?? reading[0];
      for (const group of svg.querySelectorAll(".node")) {
        const node = data.nodes[group.dataset.node];
        group.classList.toggle("on", lit.has(node.i));
        group.setAttribute("aria-pressed", String(chosen?.node === node));
        group.setAttribute("tabindex", node === focused ? 0 : -1);
      }
      for (const row of part("body").rows) row.classList.toggle("chosen", Boolean(chosen) && on.has(row.dataset.edge));
      for (const button of part("legend").querySelectorAll("button")) button.ariaPressed = String(chosen?.role === button.dataset.role);
      tell();
    }

    function choose(what) {
      const same = what && state.chosen && ["edge", "node", "role"].every((key) => what[key] === state.chosen[key]);
      state.chosen = same ? null : what;
      mark();
    }

    function hot(i) {
      for (const line of canvas.querySelectorAll(".edge.hot")) line.classList.remove("hot");
      if (i !== undefined) canvas.querySelector(`.edge[data-edge="${i}"]`)?.classList.add("hot");
    }

    function point(event) {
      const target = event.target.closest("[data-edge], [data-node]");
      tip.hidden = !target;
      hot(target?.dataset.edge);
      if (!target) return;
      const { edge, node } = target.dataset;
      tip.textContent = node === undefined ? edgeText(data.edges[edge]) : nodeText(data.nodes[node]);
      const frame = canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
      tip.style.left = `${Math.max(4, Math.min(x + 12, frame.width - tip.offsetWidth - 6))}px`;
      tip.style.top = `${y + 16 + tip.offsetHeight < frame.height ? y + 16 : Math.max(2, y - tip.offsetHeight - 10)}px`;
    }

    // ---- table -------------------------------------------------------------------------------------------------

    const keys = [(edge) => edge.from.name, (edge) => edge.to.name, (edge) => edge.port, (edge) => edge.score, (edge) => edge.low, (edge) => edge.effect];

    function row(edge) {
      const show = element("button", "", edge.from.name);
      Object.assign(show, { type: "button", ariaLabel: `${edge.from.name}: show the edge to ${edge.to.name}` });
      const first = element("th", "", show, element("small", "", edge.from.role));
      first.scope = "row";
      const interval = edge.low === null ? "" : `${short(edge.low)} .. ${short(edge.high)}`;
      const cells = [element("td", "", edge.to.name, element("small", "", edge.to.role)), element("td", "", edge.port === "in" ? "" : edge.port), element("td", "n", edge.score === null ? "" : String(edge.score)), element("td", "n", interval), element("td", edge.effect, edge.effect)];
      const made = element("tr", "", first, ...cells);
      made.dataset.edge = edge.i;
      return made;
    }

    function compare(a, b) {
      if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
      return (a ?? -Infinity) - (b ?? -Infinity);
    }

    function list() {
      const sought = part("filter").value.trim().toLowerCase();
      const text = (edge) => [edge.from, edge.to].flatMap((node) => [node.name, ...node.roles]).join(" ").toLowerCase();
      const words = (edge) => `${text(edge)} ${edge.effect}`;
      const exact = data.nodes.some((node) => node.name.toLowerCase() === sought); // L1H1 is not L1H10
      const matches = (edge) => (exact ? [edge.from, edge.to].some((node) => node.name.toLowerCase() === sought) : words(edge).includes(sought));
      const edges = edgesShown().filter(matches);
      const { key, down } = state.sort;
      const value = key === "size" ? (edge) => edge.size : keys[key];
      edges.sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b)));
      part("body").replaceChildren(...edges.map(row));
      part("rows").textContent = `${edges.length.toLocaleString("en")} of ${plural(state.n, "edge")}`;
      root.querySelectorAll("thead th").forEach((head, i) => {
        if (i === key) head.ariaSort = down ? "descending" : "ascending";
        else head.ariaSort = null;
      });
    }

    // ---- controls ----------------------------------------------------------------------------------------------

    function swatch(className, text, width) {
      const line = element("i", className);
      if (width) line.style.setProperty("--w", `${width}px`);
      return element("span", "", line, text);
    }

    function legend() {
      const made = [];
      const effects = [...new Set(data.edges.map(look))];
      const words = { helps: "helps the metric", hurts: "hurts the metric", negative: "negative score", positive: "positive score", plain: "no sign or no score" };
      for (const name of ["helps", "hurts", "positive", "negative", "plain"]) if (effects.includes(name)) made.push(swatch(name, words[name], 4));
      if (scale.most) {
        for (const share of [1, 10, 100]) made.push(swatch("", `${share === 1 ? "|score| " : ""}${short(scale.most / share)}`, scale.width(scale.most / share).toFixed(1)));
        made.push(element("span", "", "width grows with the logarithm of |score|"));
      }
      if (data.nodes.some((node) => node.kind === "kv_head")) made.push(swatch("dotted", "KV: keys and values that heads share"));
      const visible = new Set(edgesShown().flatMap((edge) => [edge.from, edge.to]));
      for (const role of roles) {
        const count = [...visible].filter((node) => node.role === role).length;
        if (!count) continue;
        const button = element("button", "", element("i", "swatch"), `${role} (${count})`);
        Object.assign(button, { type: "button", ariaPressed: "false" });
        button.dataset.role = role;
        button.style.setProperty("--role", colour.get(role));
        made.push(button);
      }
      part("legend").replaceChildren(...made);
    }

    function sizeButtons() {
      part("sizes").replaceChildren(...data.sizes.map(([n, value]) => {
        const button = element("button", "", n.toLocaleString("en"), element("small", "", value.toFixed(2)));
        Object.assign(button, { type: "button", ariaPressed: "false", ariaLabel: `${plural(n, "edge")}, faithfulness ${value.toFixed(2)}${n === data.own ? ", the circuit" : ""}` });
        button.dataset.size = n;
        button.style.setProperty("--f", Math.max(0, Math.min(1, value)));
        return button;
      }));
    }

    function resize(n) {
      state.n = Math.max(1, Math.min(data.edges.length, n));
      part("size").value = state.n;
      const { chosen } = state;
      const gone = chosen?.edge ? chosen.edge.i >= state.n : chosen && !edgesShown().some((edge) => [edge.from, edge.to].some((node) => (chosen.node ? node === chosen.node : node.role === chosen.role)));
      if (gone) state.chosen = null;
      tellSize();
      legend();
      list();
      draw();
    }

    function step(event) {
      const { reading, places } = state.drawn;
      const here = data.nodes[event.target.closest(".node").dataset.node];
      const { x, y } = places.at.get(here);
      const side = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      let next;
      if (side) next = reading[reading.indexOf(here) + side];
      else {
        const up = event.key === "ArrowUp";
        const beyond = reading.filter((node) => (up ? places.at.get(node).y < y - 4 : places.at.get(node).y > y + 4));
        const far = (node) => 3 * Math.abs(places.at.get(node).y - y) + Math.abs(places.at.get(node).x - x);
        next = beyond.sort((a, b) => far(a) - far(b))[0];
      }
      if (!next) return;
      state.focus = next;
      mark();
      canvas.querySelector(`[data-node="${next.i}"]`).focus();
    }

    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.chosen) {
        choose(null);
        event.preventDefault();
      }
      if (!event.target.closest(".node")) return;
      if (event.key.startsWith("Arrow")) step(event);
      else if (event.key === "Enter" || event.key === " ") choose({ node: data.nodes[event.target.closest(".node").dataset.node] });
      else return;
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; hot(); });
    canvas.addEventListener("click", ({ target }) => {
      const hit = target.closest("[data-edge], [data-node]");
      if (!hit) choose(null);
      else if (hit.dataset.node !== undefined) {
        state.focus = data.nodes[hit.dataset.node];
        choose({ node: state.focus });
      } else choose({ edge: data.edges[hit.dataset.edge] });
    });
    root.addEventListener("input", ({ target }) => {
      if (target === part("size")) resize(Number(target.value));
      if (target === part("filter")) { list(); mark(); }
    });
    root.addEventListener("change", ({ target }) => {
      if (target.type !== "radio") return;
      state.by = target.value;
      draw();
    });
    root.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      if (button.dataset.size) resize(Number(button.dataset.size));
      if (button.dataset.role) choose({ role: button.dataset.role });
      if (button.dataset.all !== undefined) choose(null);
      if (button.closest("tbody")) choose({ edge: data.edges[button.closest("tr").dataset.edge] });
      if (button.dataset.key) {
        const key = Number(button.dataset.key);
        state.sort = { key, down: state.sort.key === key ? !state.sort.down : key === 3 };
        list();
        mark();
      }
    });
    part("body").addEventListener("pointerover", ({ target }) => hot(target.closest("tr")?.dataset.edge));
    part("body").addEventListener("pointerleave", () => hot());
    part("body").addEventListener("focusin", ({ target }) => hot(target.closest("tr")?.dataset.edge));

    // ---- opening -----------------------------------------------------------------------------------------------

    if (!data.edges.length) return;
    root.querySelectorAll("thead th").forEach((head, i) => {
      const button = element("button", "", ...head.childNodes);
      button.type = "button";
      button.dataset.key = i;
      head.replaceChildren(button);
    });
    for (const name of ["controls", "measured", "canvas", "told", "legend", "filters"]) part(name).hidden = false;
    part("arrange").hidden = !roles.length;
    if (part("roles")) part("roles").hidden = true; // the drawing says them
    for (const input of part("arrange").querySelectorAll("input")) {
      input.name = `${own}-by`;
      input.checked = input.value === state.by;
    }
    part("size").max = data.edges.length;
    sizeButtons();
    resize(state.n);
    let width = canvas.clientWidth;
    new ResizeObserver(() => {
      if (canvas.clientWidth === width) return;
      width = canvas.clientWidth;
      draw();
    }).observe(canvas);
  }

  for (const root of document.querySelectorAll("[data-circuit]")) circuitView(root);
})();
