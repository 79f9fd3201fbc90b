"use strict";
(() => {
  const UNIT = 10000;
  const two = (p) => (Math.floor((p + UNIT / 200) / (UNIT / 100)) / 100).toFixed(2);

  const said = (p) => (p > 0 && p < UNIT / 100 ? (p / UNIT).toFixed(4) : two(p));
  const POINT = "Point at a token to look from it. A click holds its row, and pointing then reads values.";

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

  function attentionView(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const chips = part("chips");
    const rowOf = new Map(data.queries.map((query, row) => [query, row]));
    const targets = new Map(data.targets);
    const n = data.tokens.length;
    const state = { head: 0, at: data.at, start: data.start, sought: null };
    const word = (j) => data.words[data.tokens[j]];
    const named = (j) => `position ${j} (${word(j).join("")})`;

    function row(query) {
      const flat = data.heads[state.head].rows[rowOf.get(query)];
      return Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);
    }

    function chip(j) {
      const kept = rowOf.has(j);
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
      state.start = Math.max(0, Math.min(start, n - data.window));
      const stop = Math.min(n, state.start + data.window);
      chips.replaceChildren(...Array.from({ length: stop - state.start }, (_, i) => chip(state.start + i)));
      part("shown").textContent = `tokens ${state.start} to ${stop - 1} of ${n}`;
      root.querySelector('[data-step="page"][data-by="-1"]').disabled = state.start === 0;
      root.querySelector('[data-step="page"][data-by="1"]').disabled = stop === n;
    }

    function reveal(j) {
      if (j < state.start || j >= state.start + data.window) turn(j - data.window / 2);
    }

    function shade(query) {
      const keys = row(query);
      const p = new Map(keys);
      const most = part("relative").checked ? (keys[0]?.[1] ?? UNIT) : UNIT;
      const target = targets.get(query);
      for (const made of chips.children) {
        const j = Number(made.dataset.j);
        const value = p.get(j) ?? 0;
        made.style.setProperty("--p", value / most);
        made.classList.toggle("query", j === query);
        made.classList.toggle("later", j > query);
        made.classList.toggle("target", j === target);
        made.classList.toggle("sought", j === state.sought);
        made.lastChild.textContent = value >= UNIT / 200 ? two(value) : "\u00a0";
        if (made.firstChild.type === "radio") made.firstChild.checked = j === state.at;
      }
    }

    function sentence(query, keys) {
      const head = data.heads[state.head].name;
      let told = `From ${named(query)} ${head} pays nothing to any token.`;
      if (keys.length) {
        told = `From ${named(query)} ${head} looks most at ${named(keys[0][0])}, p = ${said(keys[0][1])}`;
        told += keys.length > 1 ? `, then at ${named(keys[1][0])}, p = ${said(keys[1][1])}.` : ".";
      }
      const target = targets.get(query);
      if (target === undefined) return told;
      const p = keys.find(([key]) => key === target)?.[1] ?? 0;
      return `${told} The token after the earlier copy, position ${target}, gets p = ${said(p)}.`;
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

    function show(query) {
      const keys = row(query);
      const listed = keys.slice(0, data.listed).filter(([, p]) => 100 * p >= keys[0][1]);
      shade(query);
      part("summary").textContent = sentence(query, keys);
      part("top").replaceChildren(...listed.map(entry), others(listed));
      part("note").textContent = data.heads[state.head].note;
      part("position").value = query;
    }

    function look(query, { focus = false } = {}) {
      state.at = query;
      state.sought = null;
      reveal(query);
      show(query);
      if (focus) chips.querySelector(`input[value="${query}"]`).focus();
    }

    function nearest(position) {
      return data.queries.reduce((best, q) => (Math.abs(q - position) < Math.abs(best - position) ? q : best));
    }

    function step(by, options) {
      const next = data.queries[rowOf.get(state.at) + by];
      if (next !== undefined) look(next, options);
    }

    function told(j) {
      const query = Number(chips.querySelector(".query")?.dataset.j ?? state.at);
      const where = `${named(j)}, token id ${data.ids[j]}`;
      if (j > query) return `${where}: not visible from position ${query}`;
      const keys = row(query);
      const p = keys.find(([key]) => key === j)?.[1];
      if (p !== undefined) return `${where}: p = ${(p / UNIT).toFixed(4)}`;
      const least = keys.length ? keys[keys.length - 1][1] / UNIT : 0;
      return `${where}: not among the keys kept of this row, p at most ${least.toFixed(4)}`;
    }

    const pointed = (event) => event.target.closest(".chip");

    root.addEventListener("submit", (event) => event.preventDefault());
    root.addEventListener("change", ({ target }) => {
      if (target.name === `${root.id}-head`) {
        state.head = Number(target.value);
        show(state.at);
      } else if (target.name === `${root.id}-query`) {
        look(Number(target.value));
      } else if (target === part("position")) {
        look(nearest(Number(target.value)));
      } else if (target === part("relative")) {
        shade(state.at);
      }
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
      if (!part("hold").checked && rowOf.has(j)) show(j);
      part("pointed").textContent = told(j);
    });
    chips.addEventListener("mouseleave", () => {
      part("pointed").textContent = POINT;
      if (!part("hold").checked) show(state.at);
    });
    chips.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const end = { Home: data.queries[0], End: data.queries[data.queries.length - 1] }[event.key];
      if (by === undefined && end === undefined) return;
      event.preventDefault(); // a radio group would wrap around within the window
      if (by === undefined) look(end, { focus: true });
      else step(by, { focus: true });
    });
    root.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (!button) return;
      if (button.dataset.step === "row") step(Number(button.dataset.by));
      if (button.dataset.step === "home") look(state.at);
      if (button.dataset.step === "page") {
        turn(state.start + Number(button.dataset.by) * data.window);
        shade(state.at);
      }
      if (button.dataset.key !== undefined) {
        state.sought = Number(button.dataset.key);
        reveal(state.sought);
        shade(state.at);
        chips.querySelector(".sought").scrollIntoView({ block: "nearest" });
      }
    });

    part("steps").hidden = data.queries.length < 2;
    part("pages").hidden = n <= data.window;
    part("pointed").hidden = false;
    part("pointed").textContent = POINT;
    turn(state.start);
    look(state.at);
  }

  for (const root of document.querySelectorAll("form.attention-view")) attentionView(root);
})();
