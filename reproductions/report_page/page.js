"use strict";
/* Draws the tables of the page from its data, those in view first. Texts come from files: they are only ever set as text. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const ROWS = 60;
  const [MEASURED, VALUE, PUBLISHED, VERDICT, REASON, METRIC, SOLVER, SETTINGS, INTERVAL, SAMPLES, SECONDS, RUN, CLAIM] = [...Array(13).keys()];
  const text = (place) => data.strings[place];
  const field = (id) => document.getElementById(id);

  function element(name, properties, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties ?? {})) {
      if (key.includes("-") || key === "role" || key === "scope") made.setAttribute(key, value);
      else made[key] = value;
    }
    made.append(...children);
    return made;
  }

  /* ---- a grid: rows of a head and cells, ordered and cut by what the reader asks for */

  class Grid {
    constructor(host, label, columns, rows) {
      Object.assign(this, { host, label, columns, rows, order: null, all: false, drawn: false });
      host.style.minHeight = `${(Math.min(rows.length, ROWS) + 1) * 2.2}rem`;  // what it will take, so that links to sections stay right
    }

    draw(keep = () => true, about = null) {
      this.keep = keep;
      this.about = about ?? this.about;
      if (this.drawn) this.redraw();
    }

    first() {
      this.drawn = true;
      this.redraw();
    }

    redraw() {
      const focused = this.host.contains(document.activeElement) ? document.activeElement.dataset.column : null;
      const rows = this.rows.filter(this.keep ?? (() => true));
      if (this.order) {
        const { column, sign } = this.order;
        const key = (row) => row.keys[column];
        rows.sort((a, b) => sign * compare(key(a), key(b), sign));
      }
      const shown = this.all ? rows : rows.slice(0, ROWS);
      const head = element("tr", {}, ...this.columns.map((c, k) => this.head(c, k)));
      const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...shown.map((r) => r.draw())));
      const region = element("div", { className: "scroll", role: "region", "aria-label": `${this.label}: numbers`, tabIndex: 0 }, table);
      this.host.replaceChildren(region);
      this.host.style.minHeight = "";
      if (rows.length > shown.length) {
        const more = element("button", { type: "button", className: "more" }, `Show all ${rows.length} rows`);
        more.addEventListener("click", () => { this.all = true; this.redraw(); region.focus(); });
        this.host.append(more);
      }
      if (focused != null) this.host.querySelector(`[data-column="${focused}"]`)?.focus();
    }

    head(column, k) {
      const button = element("button", { type: "button" }, column.name);
      button.dataset.column = k;
      button.addEventListener("click", () => {
        const again = this.order?.column === k;
        this.order = { column: k, sign: again ? -this.order.sign : 1 };
        this.redraw();
      });
      const sorted = this.order?.column === k ? (this.order.sign > 0 ? "ascending" : "descending") : "none";
      return element("th", { scope: "col", className: column.right ? "right" : "", "aria-sort": sorted }, button);
    }
  }

  /* what is missing stands last, whichever way */
  function compare(a, b, sign) {
    if (a == null || b == null) return sign * ((a == null) - (b == null));
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  }

  /* ---- tables of papers */

  function paperGrid(section) {
    const paper = section.dataset.paper;
    const table = data.papers[paper][section.dataset.table];
    const several = new Set(table.rows.map((r) => `${r.tier} ${r.data}`)).size > 1;
    const columns = [{ name: "row" }, ...table.columns.map((name) => ({ name, right: true }))];
    const rows = table.rows.map((row) => {
      const name = text(row.row);
      const words = [name, text(row.data), ...table.columns, ...row.cells.filter(Boolean).map((c) => `${text(c[SOLVER])} ${text(c[SETTINGS])}`)];
      return {
        tier: text(row.tier),
        verdicts: new Set(row.cells.filter(Boolean).map((c) => text(c[VERDICT]))),
        words: `${words.join(" ")} ${table.title} ${table.name}`.toLowerCase(),
        keys: [name, ...row.cells.map((c) => (c ? c[VALUE] : null))],
        count: row.cells.filter(Boolean).length,
        cells: row.cells,
        draw() {
          const label = element("th", { scope: "row" }, name);
          if (several) label.append(element("small", {}, `${text(row.data)}, ${text(row.tier)}`));
          const of = (k) => ({ paper, table, row, name, column: table.columns[k] });
          return element("tr", {}, label, ...row.cells.map((cell, k) => drawCell(cell, of(k))));
        },
      };
    });
    return new Grid(section.querySelector(".grid"), table.title, columns, rows);
  }

  function drawCell(cell, of) {
    if (!cell) return element("td");
    const verdict = text(cell[VERDICT]);
    const button = element("button", { type: "button" }, cell[MEASURED]);
    if (cell[PUBLISHED] !== "–") {
      button.append(element("small", {}, `published ${cell[PUBLISHED]}`));
      button.append(element("span", { className: `verdict ${verdict.replace(" ", "-")}` }, verdict));
    }
    button.addEventListener("click", () => showProvenance(cell, of));
    for (const [on, off] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
      button.addEventListener(on, () => showHint(button, cell));
      button.addEventListener(off, hideHint);
    }
    const other = chosen.verdict && verdict !== chosen.verdict;
    return element("td", { className: other ? "number other" : "number" }, button);
  }

  function listGrid(section) {
    const list = data.lists[section.dataset.list];
    const right = list.columns.map((_, k) => list.rows.some((r) => Array.isArray(r[k])));
    const columns = list.columns.map((name, k) => ({ name, right: right[k] }));
    const rows = list.rows.map((cells) => ({
      keys: cells.map((c, k) => (Array.isArray(c) ? c[1] : right[k] ? null : c)),
      draw: () => element("tr", {}, ...cells.map((c, k) => element("td", { className: right[k] ? "right" : "" }, Array.isArray(c) ? c[0] : c))),
    }));
    return new Grid(section.querySelector(".grid"), section.querySelector("h3").textContent, columns, rows);
  }

  /* ---- where a number comes from */

  function showHint(button, cell) {
    const hint = field("hint");
    const run = data.runs[text(cell[RUN])];
    const lines = [text(cell[METRIC]), text(cell[REASON])];
    if (text(cell[INTERVAL])) lines.push(`95 %: ${text(cell[INTERVAL])}; n = ${cell[SAMPLES] ?? "–"}`);
    if (run) lines.push(`run ${run.started ?? text(cell[RUN])}, commit ${String(run.commit).slice(0, 8)}`);
    hint.textContent = lines.filter(Boolean).join("\n");
    hint.hidden = false;
    const box = button.getBoundingClientRect();
    const below = box.bottom + hint.offsetHeight + 12 < innerHeight;
    hint.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - hint.offsetHeight - 6)}px`;
    hint.style.left = `${Math.max(4, Math.min(box.left, innerWidth - hint.offsetWidth - 8))}px`;
    button.setAttribute("aria-describedby", "hint");
  }

  function hideHint() {
    field("hint").hidden = true;
    document.querySelector("[aria-describedby=hint]")?.removeAttribute("aria-describedby");
  }

  function showProvenance(cell, of) {
    hideHint();
    const dialog = field("provenance");
    const known = data.runs[text(cell[RUN])];
    const lines = {
      measured: cell[MEASURED],
      metric: text(cell[METRIC]),
      "interval (95 %)": text(cell[INTERVAL]),
      samples: cell[SAMPLES],
      published: cell[PUBLISHED] === "–" ? "" : cell[PUBLISHED],
      "as published in": text(cell[CLAIM]),
      verdict: text(cell[VERDICT]),
      why: text(cell[REASON]),
      tier: text(of.row.tier),
      data: text(of.row.data),
      solver: text(cell[SOLVER]),
      settings: text(cell[SETTINGS]),
      "time to measure": cell[SECONDS] == null ? "" : `${cell[SECONDS]} s`,
      run: text(cell[RUN]),
    };
    if (known) Object.assign(lines, Object.fromEntries(Object.entries(known).filter(([k]) => k !== "data")), { "data hash": known.data[text(of.row.data)] });
    else if (lines.run) lines["record of the run"] = `results/runs/${lines.run}.json is not here: records stay on the machine that measured`;
    lines.file = `results/${of.paper}/${of.table.name}.csv`;
    field("provenance-title").textContent = `${of.name}, ${of.column}`;
    const shown = Object.entries(lines).filter(([, value]) => value !== "" && value != null);
    const list = shown.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
    dialog.querySelector("dl").replaceChildren(...list);
    dialog.showModal();
    dialog.scrollTop = 0;
  }

  /* ---- filters, and drawing what comes into view */

  const chosen = { text: "", tier: "", verdict: "", paper: "" };
  const grids = new Map();
  for (const section of document.querySelectorAll("section.table")) grids.set(section, paperGrid(section));
  const lists = new Map();
  for (const section of document.querySelectorAll("section.list")) lists.set(section, listGrid(section));

  function keeps(row) {
    return (!chosen.tier || row.tier === chosen.tier) && (!chosen.verdict || row.verdicts.has(chosen.verdict))
      && (!chosen.text || chosen.text.split(/\s+/).every((word) => row.words.includes(word)));
  }

  function filter() {
    const asked = Object.values(chosen).some(Boolean);
    let found = 0;
    for (const [section, grid] of grids) {
      const elsewhere = chosen.paper && section.dataset.paper !== chosen.paper;
      const rows = elsewhere ? [] : grid.rows.filter(keeps);
      section.hidden = rows.length === 0;
      section.querySelector(".count").textContent = asked ? `${rows.length} of ${grid.rows.length} rows` : "";
      const counts = (cell) => cell && (!chosen.verdict || text(cell[VERDICT]) === chosen.verdict);
      found += rows.reduce((sum, row) => sum + row.cells.filter(counts).length, 0);
      grid.draw(keeps);
    }
    for (const paper of document.querySelectorAll("section.paper")) {
      const left = [...paper.querySelectorAll("section.table")].some((s) => !s.hidden);
      paper.hidden = asked && !left;
      const waiting = paper.querySelector(".waiting");
      if (waiting) waiting.hidden = asked && ![...waiting.querySelectorAll("section.table")].some((s) => !s.hidden);
    }
    const output = field("found");
    if (output) output.textContent = asked ? `${found.toLocaleString("en")} numbers` : "";
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      (grids.get(entry.target) ?? lists.get(entry.target)).first();
    }
  }, { rootMargin: "800px" });
  for (const section of [...grids.keys(), ...lists.keys()]) near.observe(section);
  addEventListener("beforeprint", () => { for (const grid of [...grids.values(), ...lists.values()]) grid.drawn || grid.first(); });

  const filters = field("filters");
  if (filters) {
    for (const name of Object.keys(chosen)) {
      field(name).addEventListener("input", () => { chosen[name] = field(name).value.trim(); if (name === "text") chosen.text = chosen.text.toLowerCase(); filter(); });
    }
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => { Object.assign(chosen, { text: "", tier: "", verdict: "", paper: "" }); filter(); });
    filter();
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hideHint(); });
  addEventListener("scroll", hideHint, { passive: true });

  /* ---- light and dark */

  const theme = field("theme");
  const stored = (() => { try { return localStorage.getItem("matchmark-theme"); } catch { return null; } })();
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (stored === "dark" || stored === "light") document.documentElement.dataset.theme = stored;
  theme.setAttribute("aria-pressed", String(dark()));
  theme.addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    theme.setAttribute("aria-pressed", String(next === "dark"));
    try { localStorage.setItem("matchmark-theme", next); } catch { /* not kept */ }
  });
})();
