"use strict";
(() => {
  const UNIT = 10000;
  const two = (p) => (Math.floor((p + UNIT / 200) / (UNIT / 100)) / 100).toFixed(2);

  const said = (p) => (p > 0 && p < UNIT / 100 ? (p / UNIT).toFixed(4) : two(p));
  const POINT = {
    from: "Point at a token to look from it. A click holds its row, and pointing then reads values.",
    to: "Point at a token to see who looks at it. A click holds it, and pointing then reads values.",
  };
  const GLANCE = 48; // pixels of a thumbnail's picture at most
  const SIDE = 440; // pixels of the matrix at most, and so many rows of its picture
  const LETTERED = 26; // tokens up to which the matrix names each

  // Text of prompts reaches the page through textContent alone: nothing in it can become markup.
  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function tokenText(word) {
    return element("bdi", "", ...word.map((text, i) => (i % 2 ? element("i", "", text) : text)));
  }

  // Rows of a head as [key, p] pairs; those beyond the first heads travel packed and are opened when asked for.
  function unpack(text, width) {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const rows = [];
    for (let at = 0; at < bytes.length; ) {
      const row = [];
      for (let left = bytes[at++]; left > 0; left -= 1) {
        let key = 0;
        for (let i = 0; i < width; i += 1) key += bytes[at++] * 256 ** i;
        row.push([key, Math.round((bytes[at++] * UNIT) / 255)]);
      }
      rows.push(row);
    }
    return rows;
  }

  function pairs(flat) {
    return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
  }

  function readHeads(data) {
    const queries = new Map();
    for (const own of [data.queries, data.other_queries]) queries.set(own, new Map(own.map((query, row) => [query, row])));
    return [...data.heads, ...data.others].map((head) => {
      const own = head.few ? data.other_queries : data.queries;
      let rows = null;
      return {
        ...head,
        queries: own,
        rowOf: queries.get(own),
        get rows() {
          rows ??= head.packed === undefined ? head.rows.map(pairs) : unpack(head.packed, data.key_bytes);
          return rows;
        },
      };
    });
  }

  // A picture of size x size: how strongly a query (down) looks at a key (across), the largest of those that share a dot.
  function picture(head, n, size, colour) {
    const image = new ImageData(size, size);
    const bin = (position) => Math.min(size - 1, Math.floor((position * size) / n));
    head.queries.forEach((query, r) => {
      const last = bin((head.queries[r + 1] ?? n) - 1); // a row stands for those left out below it
      for (const [key, p] of head.rows[r]) {
        const x = bin(key);
        for (let y = bin(query); y <= Math.max(last, bin(query)); y += 1) {
          const at = 4 * (y * size + x);
          const value = Math.round((255 * p) / UNIT);
          if (value <= image.data[at + 3]) continue;
          image.data.set([...colour, value], at);
        }
      }
    });
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = size;
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  function attentionView(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const chips = part("chips");
    const heads = readHeads(data);
    const targets = new Map(data.targets);
    const n = data.tokens.length;
    const state = { head: 0, way: "from", at: data.at, start: data.start, sought: null, pictures: new Map() };
    const word = (j) => data.words[data.tokens[j]];
    const named = (j) => `position ${j} (${word(j).join("")})`;
    const head = () => heads[state.head];
    const selectable = (j) => state.way === "to" || head().rowOf.has(j);

    // What the position looks at, or who looks at it: [position, p], the largest first.
    function shares(at) {
      if (state.way === "from") return head().rows[head().rowOf.get(at)];
      const found = head().queries.flatMap((query, r) => head().rows[r].filter(([key]) => key === at).map(([, p]) => [query, p]));
      return found.sort((a, b) => b[1] - a[1]);
    }

    function chip(j) {
      const kept = selectable(j);
      const made = element(kept ? "label" : "span", kept ? "chip kept" : "chip", tokenText(word(j)), element("small"));
      if (kept) {
        const input = element("input");
        Object.assign(input, { type: "radio", name: `${root.id}-query`, value: j, ariaLabel: `${word(j).join("")}, position ${j}` });
        made.prepend(input);
      }
      made.dataset.j = j;
      return made;
    }

    function turn(start) {
      state.start = Math.max(0, Math.min(Math.round(start), n - data.window));
      const stop = Math.min(n, state.start + data.window);
      chips.replaceChildren(...Array.from({ length: stop - state.start }, (_, i) => chip(state.start + i)));
      part("shown").textContent = `tokens ${state.start} to ${stop - 1} of ${n}`;
      root.querySelector('[data-step="page"][data-by="-1"]').disabled = state.start === 0;
      root.querySelector('[data-step="page"][data-by="1"]').disabled = stop === n;
    }

    function reveal(j) {
      if (j < state.start || j >= state.start + data.window) turn(j - data.window / 2);
    }

    function shade(at) {
      const others = shares(at);
      const p = new Map(others);
      const most = part("relative").checked ? (others[0]?.[1] ?? UNIT) : UNIT;
      const target = state.way === "from" ? targets.get(at) : undefined;
      for (const made of chips.children) {
        const j = Number(made.dataset.j);
        const value = p.get(j) ?? 0;
        made.style.setProperty("--p", value / most);
        made.classList.toggle("query", j === at);
        made.classList.toggle("later", state.way === "from" ? j > at : j < at);
        made.classList.toggle("target", j === target);
        made.classList.toggle("sought", j === state.sought);
        made.lastChild.textContent = value >= UNIT / 200 ? two(value) : "\u00a0";
        if (made.firstChild.type === "radio") made.firstChild.checked = j === state.at;
      }
    }

    function sentence(query, keys) {
      const { name } = head();
      let told = `From ${named(query)} ${name} pays nothing to any token.`;
      if (keys.length) {
        told = `From ${named(query)} ${name} looks most at ${named(keys[0][0])}, p = ${said(keys[0][1])}`;
        told += keys.length > 1 ? `, then at ${named(keys[1][0])}, p = ${said(keys[1][1])}.` : ".";
      }
      const target = targets.get(query);
      if (target === undefined) return told;
      const p = keys.find(([key]) => key === target)?.[1] ?? 0;
      return `${told} The token after the earlier copy, position ${target}, gets p = ${said(p)}.`;
    }

    function sentenceTo(key, queries) {
      const { name } = head();
      const able = head().queries.filter((query) => query >= key).length;
      if (!queries.length) return `Of ${able} rows that could, none of ${name} keeps a look at ${named(key)}.`;
      const [first, second] = queries;
      let told = `${name} looks at ${named(key)} most from ${named(first[0])}, p = ${said(first[1])}`;
      if (second) told += `, then from ${named(second[0])}, p = ${said(second[1])}`;
      const mean = queries.reduce((sum, [, p]) => sum + p, 0) / able;
      return `${told}. Mean over the ${able} rows that could look there: ${said(Math.round(mean))}.`;
    }

    function entry([j, p]) {
      const key = element("button", "key", element("small", "", String(j)), " ", element("bdi", "", word(j).join("")));
      Object.assign(key, { type: "button", title: `show position ${j}` });
      key.dataset.key = j;
      const made = element("li", "", key, " ", element("b", "", said(p)));
      made.style.setProperty("--p", p / UNIT);
      return made;
    }

    function others(keys) {
      const p = Math.max(0, UNIT - keys.reduce((sum, [, own]) => sum + own, 0));
      const made = element("li", "rest", element("span", "key", "all others together"), " ", element("b", "", said(p)));
      made.style.setProperty("--p", p / UNIT);
      return made;
    }

    function show(at) {
      const from = state.way === "from";
      const found = shares(at);
      const listed = found.slice(0, data.listed).filter(([, p]) => 100 * p >= found[0][1]);
      state.seen = at;
      shade(at);
      part("summary").textContent = from ? sentence(at, found) : sentenceTo(at, found);
      part("top").replaceChildren(...listed.map(entry), ...(from ? [others(listed)] : []));
      part("top").ariaLabel = from ? "Keys with the most attention" : "Queries that look there most";
      part("note").textContent = head().note;
      part("position").value = at;
      overlay();
    }

    function look(at, { focus = false } = {}) {
      state.at = at;
      state.sought = null;
      reveal(at);
      show(at);
      if (focus) chips.querySelector(`input[value="${at}"]`).focus();
    }

    function nearest(position) {
      if (state.way === "to") return Math.max(0, Math.min(n - 1, Math.round(position)));
      return head().queries.reduce((best, q) => (Math.abs(q - position) < Math.abs(best - position) ? q : best));
    }

    function step(by, options) {
      const { queries, rowOf } = head();
      const next = state.way === "to" ? state.at + by : queries[rowOf.get(state.at) + by];
      if (next !== undefined && next >= 0 && next < n) look(next, options);
    }

    function told(j) {
      const at = state.seen;
      const where = `${named(j)}, token id ${data.ids[j]}`;
      const from = state.way === "from";
      if (from ? j > at : j < at) return `${where}: ${from ? `not visible from position ${at}` : `comes before position ${at} and cannot look there`}`;
      const found = shares(at);
      const p = found.find(([key]) => key === j)?.[1];
      if (p !== undefined) return `${where}: p = ${(p / UNIT).toFixed(4)}`;
      if (!from) return `${where}: ${head().rowOf.has(j) ? `position ${at} is not among the keys kept of its row` : "its row was not kept"}`;
      const least = found.length ? found[found.length - 1][1] / UNIT : 0;
      return `${where}: not among the keys kept of this row, p at most ${least.toFixed(4)}`;
    }

    // ---- matrix ------------------------------------------------------------------------------------------------

    const board = part("matrix");
    const pen = board.getContext("2d");

    function colours() {
      const page = getComputedStyle(root);
      const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      probe.fillStyle = page.getPropertyValue("--accent").trim();
      probe.fillRect(0, 0, 1, 1);
      const rgb = [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)];
      const name = (key) => page.getPropertyValue(key).trim();
      return { rgb, ink: name("--muted"), mark: name("--mark"), line: name("--line") };
    }

    function pictureOf(index, size) {
      const key = `${index} ${size}`;
      if (!state.pictures.has(key)) state.pictures.set(key, picture(heads[index], n, size, state.colours.rgb));
      return state.pictures.get(key);
    }

    function frame() {
      const room = Math.max(200, Math.min(SIDE, part("matrixbox").clientWidth));
      const left = n <= LETTERED ? 74 : 34;
      return { room, left, top: n <= LETTERED ? 62 : 18, side: room - left - 2 };
    }

    function overlay() {
      if (part("views").hidden) return;
      const { room, left, top, side } = frame();
      const height = top + side + 2;
      const ratio = devicePixelRatio || 1;
      board.width = room * ratio;
      board.height = height * ratio;
      board.style.width = `${room}px`;
      board.style.height = `${height}px`;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(pictureOf(state.head, Math.min(n, Math.floor(side / 2))), left, top, side, side);
      const unit = side / n;
      pen.strokeStyle = state.colours.line;
      pen.strokeRect(left, top, side, side);
      axes(left, top, unit);
      pen.strokeStyle = state.colours.mark;
      pen.lineWidth = 1.5;
      const thick = Math.max(unit, 3);
      const at = state.seen ?? state.at;
      if (state.way === "from") pen.strokeRect(left, top + at * unit, Math.max(unit * (at + 1), 3), thick);
      else pen.strokeRect(left + at * unit, top + at * unit, thick, Math.max(side - at * unit, 3));
      if (n > data.window) { // the tokens shown beside it
        pen.fillStyle = state.colours.mark;
        const [first, long] = [state.start * unit, data.window * unit];
        pen.fillRect(left + first, top - 4, long, 3);
        pen.fillRect(left - 4, top + first, 3, long);
      }
      board.ariaLabel = `Attention of ${head().name}: queries downwards, keys across. Arrow keys move the position looked from.`;
    }

    function axes(left, top, unit) {
      pen.fillStyle = state.colours.ink;
      pen.font = "11px system-ui, sans-serif";
      const all = n <= LETTERED;
      const every = all ? 1 : 2 ** Math.ceil(Math.log2(n / 8));
      for (let j = 0; j < n; j += every) {
        const text = all ? word(j).join("").slice(0, 10) : String(j);
        const middle = (j + 0.5) * unit;
        pen.textAlign = "right";
        pen.textBaseline = "middle";
        pen.fillText(text, left - 6, top + middle, left - 8);
        pen.save();
        pen.translate(left + middle, top - 6);
        if (all) pen.rotate(-Math.PI / 2);
        pen.textAlign = all ? "left" : "center";
        pen.textBaseline = all ? "middle" : "alphabetic";
        pen.fillText(text, 0, 0, all ? top - 8 : 40);
        pen.restore();
      }
    }

    function cell(event) {
      const { left, top, side } = frame();
      const box = board.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left - left, event.clientY - box.top - top];
      const place = (z) => Math.max(0, Math.min(n - 1, Math.floor((z / side) * n)));
      return x < 0 || y < 0 || x > side || y > side ? null : { key: place(x), query: place(y) };
    }

    function cellText({ key, query }) {
      const own = head().queries.filter((q) => q <= query);
      const row = own[own.length - 1] ?? head().queries[0];
      const stands = row === query ? "" : ` (the row of ${query} was not kept)`;
      if (key > row) return `From ${named(row)} ${named(key)} is not visible${stands}`;
      const found = head().rows[head().rowOf.get(row)].find(([j]) => j === key);
      return `From ${named(row)} to ${named(key)}: ${found ? `p = ${(found[1] / UNIT).toFixed(found[1] < UNIT / 100 ? 4 : 3)}` : "not among the keys kept"}${stands}`;
    }

    // ---- overview ----------------------------------------------------------------------------------------------

    function thumbnails() {
      const places = heads.map(({ name }) => /^L(\d+)H(\d+)$/.exec(name)?.slice(1).map(Number));
      const grid = part("grid");
      const known = places.every(Boolean);
      const order = heads.map((_, i) => i);
      if (known) order.sort((a, b) => places[a][0] - places[b][0] || places[a][1] - places[b][1]);
      const layers = known ? [...new Set(order.map((i) => places[i][0]))] : [];
      const across = known ? Math.max(...places.map(([, number]) => number)) + 1 : Math.min(heads.length, 12);
      grid.style.setProperty("--across", across);
      grid.classList.toggle("plain", !known);
      const size = Math.min(n, GLANCE);
      const made = order.map((i) => {
        const button = element("button", "thumb", pictureCopy(i, size));
        Object.assign(button, { type: "button", title: heads[i].name, ariaLabel: heads[i].name, tabIndex: -1 });
        button.dataset.head = i;
        if (known) Object.assign(button.style, { gridColumn: places[i][1] + 2, gridRow: layers.indexOf(places[i][0]) + 2 });
        return button;
      });
      const label = (text, column, row) => {
        const put = element("small", "", `${text} `);
        Object.assign(put.style, { gridColumn: column, gridRow: row });
        return put;
      };
      const labels = known ? [...layers.map((layer, i) => label(`L${layer}`, 1, i + 2)), ...Array.from({ length: across }, (_, i) => label(`H${i}`, i + 2, 1))] : [];
      grid.replaceChildren(...labels, ...made);
      press();
    }

    function pictureCopy(i, size) {
      const drawn = pictureOf(i, size);
      drawn.ariaHidden = "true";
      return drawn;
    }

    function press() {
      for (const button of part("grid").querySelectorAll("button")) {
        const own = Number(button.dataset.head) === state.head;
        button.ariaPressed = String(own);
        button.tabIndex = own ? 0 : -1;
      }
    }

    function choose(index) {
      state.head = index;
      const radios = root.querySelectorAll(`input[name="${root.id}-head"]`);
      radios.forEach((radio) => { radio.checked = Number(radio.value) === index; });
      part("chosen").textContent = index < radios.length ? "" : head().name;
      press();
      turn(state.start);
      look(nearest(state.at));
    }

    function moveHead(event) {
      const buttons = [...part("grid").querySelectorAll("button")];
      const across = getComputedStyle(part("grid")).getPropertyValue("--across");
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: Number(across), ArrowUp: -Number(across) }[event.key];
      const next = buttons[buttons.indexOf(event.target) + by];
      if (by === undefined || !next) return;
      event.preventDefault();
      choose(Number(next.dataset.head));
      next.focus();
    }

    // ---- events ------------------------------------------------------------------------------------------------

    function face(way) {
      state.way = way;
      const from = way === "from";
      part("question").textContent = from ? "Position to look from" : "Position that is looked at";
      part("chip-query").textContent = from ? "query" : "key";
      part("word-query").textContent = from ? "looks from here" : "is looked at";
      part("chip-later").textContent = from ? "later" : "earlier";
      part("word-later").textContent = from ? "not visible from here" : "cannot look there";
      part("pointed").textContent = POINT[way];
      const at = from ? nearest(state.at) : state.at;
      turn(state.start);
      look(at);
    }

    const pointed = (event) => event.target.closest(".chip");

    root.addEventListener("submit", (event) => event.preventDefault());
    root.addEventListener("change", ({ target }) => {
      if (target.name === `${root.id}-head`) choose(Number(target.value));
      else if (target.name === `${root.id}-way`) face(target.value);
      else if (target.name === `${root.id}-query`) look(Number(target.value));
      else if (target === part("position")) look(nearest(Number(target.value)));
      else if (target === part("relative")) shade(state.at);
    });
    // A click chooses the row and holds it, so that pointing can then read values; another on the same lets go.
    chips.addEventListener("click", ({ target, detail }) => {
      if (target.type !== "radio" || !detail) return; // without detail it comes from the keyboard
      const hold = part("hold");
      hold.checked = !(hold.checked && Number(target.value) === state.held);
      state.held = Number(target.value);
    });
    chips.addEventListener("mouseover", (event) => {
      const over = pointed(event);
      if (!over) return;
      const j = Number(over.dataset.j);
      if (!part("hold").checked && selectable(j)) show(j);
      part("pointed").textContent = told(j);
    });
    chips.addEventListener("mouseleave", () => {
      part("pointed").textContent = POINT[state.way];
      if (!part("hold").checked) show(state.at);
    });
    chips.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const { queries } = head();
      const ends = state.way === "from" ? [queries[0], queries[queries.length - 1]] : [0, n - 1];
      const end = { Home: ends[0], End: ends[1] }[event.key];
      if (by === undefined && end === undefined) return;
      event.preventDefault(); // a radio group would wrap around within the window
      if (by === undefined) look(end, { focus: true });
      else step(by, { focus: true });
    });
    root.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      if (button.dataset.head !== undefined) choose(Number(button.dataset.head));
      if (button.dataset.step === "row") step(Number(button.dataset.by));
      if (button.dataset.step === "home") look(state.at);
      if (button.dataset.step === "page") {
        turn(state.start + Number(button.dataset.by) * data.window);
        show(state.at);
      }
      if (button.dataset.key !== undefined) {
        state.sought = Number(button.dataset.key);
        reveal(state.sought);
        shade(state.at);
        chips.querySelector(".sought").scrollIntoView({ block: "nearest" });
      }
    });
    part("grid").addEventListener("keydown", moveHead);
    board.addEventListener("pointermove", (event) => {
      const at = cell(event);
      part("pointed").textContent = at ? cellText(at) : POINT[state.way];
    });
    board.addEventListener("pointerleave", () => { part("pointed").textContent = POINT[state.way]; });
    board.addEventListener("click", (event) => {
      const at = cell(event);
      if (!at) return;
      look(nearest(state.way === "from" ? at.query : at.key));
      part("hold").checked = true;
      state.held = state.at;
    });
    board.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      step(by);
    });

    function paint() {
      state.colours = colours();
      state.pictures.clear();
      thumbnails();
      overlay();
    }

    part("steps").hidden = data.queries.length < 2;
    part("ways").hidden = n < 2;
    part("pages").hidden = n <= data.window;
    part("pointed").hidden = false;
    part("pointed").textContent = POINT.from;
    part("views").hidden = n < 2;
    part("glance").hidden = heads.length < 2;
    state.colours = colours();
    turn(state.start);
    look(state.at);
    paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    addEventListener("interp-theme", paint); // a notebook's, told to the frame
    let width = part("matrixbox").clientWidth;
    new ResizeObserver(() => {
      if (part("matrixbox").clientWidth === width) return;
      width = part("matrixbox").clientWidth;
      overlay();
    }).observe(part("matrixbox"));
  }

  for (const root of document.querySelectorAll("form.attention-view")) attentionView(root);
})();
