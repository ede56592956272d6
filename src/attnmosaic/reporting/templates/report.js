"use strict";
// The page is complete without this script, which adds sorting, filters, values under the pointer and dark colours.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (tag, text = "", attributes = {}) => {
    const node = document.createElement(tag);
    node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const SVG = "http://www.w3.org/2000/svg";

  // ---- light or dark

  const theme = document.getElementById("theme");
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("attnmosaic-theme", value);
      return localStorage.getItem("attnmosaic-theme");
    } catch { return null; }  // The browser stores nothing for local files.
  };
  const system = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const show_theme = (chosen) => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    const other = (chosen || system()) === "dark" ? "light" : "dark";
    theme.textContent = other === "dark" ? "Dark" : "Light";
    theme.setAttribute("aria-label", `Switch to ${other} colours`);
    theme.onclick = () => { remembered(other); show_theme(other); };
  };
  theme.hidden = false;
  show_theme(["light", "dark"].includes(remembered()) ? remembered() : null);

  // ---- copying

  for (const button of all(".copy-it")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = button.previousElementSibling;
      let done = false;
      try {
        await navigator.clipboard.writeText(source.textContent);
        done = true;
      } catch {  // The clipboard is not available to local files, so the text is selected and copied by the old command.
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // ---- sorting

  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    if (text === "" || text === "–") return null;
    return Number.isNaN(Number(text)) ? text : Number(text);
  };
  const compared = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  for (const table of all("table.sortable")) {
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      const button = make("button", heading.textContent.trim(), { type: "button" });
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);  // Missing values come last.
          return down ? compared(b, a) : compared(a, b);
        });
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // ---- filtering runs

  const listed = all("#all-runs tbody tr");
  if (listed.length > 5) {
    const status = make("span", "", { class: "note", role: "status" });
    const field = make("input", "", { type: "search", id: "find-runs", placeholder: "for example seed=0 finished" });
    const line = make("p", "", { class: "find" });
    line.append(make("label", "Filter", { for: "find-runs" }), field, status);
    document.querySelector("#runs .scroll").before(line);
    const words_of = new Map(listed.map((row) => [row, row.dataset.words.toLowerCase().split(" ")]));
    const every_word = new Set([...words_of.values()].flat());
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
      // A complete word must be equal, so that k=1 does not match k=10; a part of a word matches all words with it.
      const matches = (word, candidate) => (every_word.has(word) ? candidate === word : candidate.includes(word));
      const has = (row, word) => words_of.get(row).some((candidate) => matches(word, candidate));
      for (const row of listed) {
        row.hidden = !words.every((word) => has(row, word));
        document.querySelector(row.querySelector("a").getAttribute("href")).hidden = row.hidden;
      }
      const shown = listed.filter((row) => !row.hidden).length;
      status.textContent = words.length ? `${shown} of ${listed.length} runs` : "";
    });
  }

  // ---- a row of buttons, of which one is pressed

  const choices = (label, options, chosen, act) => {
    const row = make("div", "", { class: "buttons", role: "group", "aria-label": label });
    const buttons = options.map(([value, text]) => {
      const button = make("button", text, { type: "button", "data-choice": value });
      button.addEventListener("click", () => choose(value));
      row.append(button);
      return button;
    });
    const choose = (value) => {
      for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.choice === value));
      act(value);
    };
    return { row, buttons, choose: () => choose(chosen) };
  };

  for (const views of all(".views")) {
    const panels = all(".view", views);
    const options = panels.map((panel) => [panel.dataset.view, panel.dataset.view]);
    const { row, choose } = choices("view of the table", options, options[0][0], (value) => {
      for (const panel of panels) panel.hidden = panel.dataset.view !== value;
    });
    views.prepend(row);
    views.classList.add("switched");
    choose();
  }

  // ---- mosaics

  for (const gallery of all(".gallery")) {
    const { counts, kinds, splits } = JSON.parse(gallery.querySelector("script").textContent);
    const names = Object.fromEntries(kinds);
    const cards = all(".card", gallery);
    const status = make("p", "", { class: "note", role: "status" });
    const now = { split: splits[0], kind: "all" };
    const count_of = (kind) => (counts[now.split] ?? {})[kind] ?? 0;
    const visible = () => cards.filter((card) => !card.hidden);
    const pick = (card, focus) => {
      for (const other of cards) {
        other.tabIndex = other === card ? 0 : -1;
        other.classList.toggle("picked", other === card && focus);
      }
      if (focus && card) {
        card.focus();
        card.scrollIntoView({ block: "nearest" });
      }
    };
    const update = () => {
      for (const card of cards) {
        card.hidden = card.dataset.split !== now.split || (now.kind !== "all" && card.dataset.kind !== now.kind);
      }
      const total = now.kind === "all" ? kinds.reduce((sum, [kind]) => sum + count_of(kind), 0) : count_of(now.kind);
      const name = now.kind === "all" ? "" : `“${names[now.kind]}” `;
      status.textContent = `${visible().length} of ${total.toLocaleString("en")} ${name}mosaics shown, worst first`;
      pick(visible()[0], false);
    };
    const by_kind = choices("kind", [["all", "all kinds"], ...kinds], "all", (value) => {
      now.kind = value;
      update();
    });
    const by_split = choices("split", splits.map((split) => [split, split]), splits[0], (value) => {
      now.split = value;
      for (const button of by_kind.buttons.slice(1)) {
        button.textContent = `${names[button.dataset.choice]} ${count_of(button.dataset.choice).toLocaleString("en")}`;
      }
      update();
    });
    const dim = make("button", "darken patches with little weight", { type: "button", "aria-pressed": "true" });
    dim.addEventListener("click", () => {
      const undimmed = gallery.classList.toggle("undimmed");
      dim.setAttribute("aria-pressed", String(!undimmed));
    });
    for (const text of all(".counts", gallery)) text.hidden = true;  // The buttons show the counts.
    const list = gallery.querySelector(".cards");
    list.before(by_split.row, by_kind.row, status);
    if (gallery.querySelector(".mosaic")) by_kind.row.append(dim);
    by_kind.choose();
    by_split.choose();
    list.addEventListener("keydown", (event) => {
      const shown = visible();
      const at = shown.indexOf(event.target.closest(".card"));
      const across = getComputedStyle(list).gridTemplateColumns.split(" ").length;
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: shown.length - 1 - at };
      if (!(event.key in steps) || at < 0) return;
      event.preventDefault();
      pick(shown[Math.max(0, Math.min(shown.length - 1, at + steps[event.key]))], true);
    });
    list.addEventListener("click", (event) => {
      const card = event.target.closest(".card");
      if (card) pick(card, true);
    });
    list.addEventListener("focusin", (event) => {
      for (const card of cards) card.classList.toggle("picked", card === event.target.closest(".card"));
    });
  }

  // ---- values under the pointer

  const tip = document.getElementById("tip");
  const place = (box, x) => {
    tip.hidden = false;
    const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
    const left = x + 14 + wide > innerWidth ? x - 14 - wide : x + 14;
    tip.style.left = `${scrollX + Math.max(4, left)}px`;  // Page coordinates, so that the tip scrolls with its chart.
    tip.style.top = `${scrollY + Math.max(4, Math.min(innerHeight - high - 4, box.top + 8))}px`;
  };
  const hide = () => { tip.hidden = true; };

  for (const node of all("[data-tip]")) {
    node.setAttribute("tabindex", "0");
    const show = () => {
      tip.replaceChildren(node.dataset.tip);
      tip.hidden = false;
      const box = node.getBoundingClientRect();
      const fits = box.bottom + 12 + tip.offsetHeight < innerHeight;  // Otherwise the tip is above the row.
      place({ top: fits ? box.bottom : box.top - 16 - tip.offsetHeight }, box.left + box.width / 3);
    };
    node.addEventListener("pointerenter", show);
    node.addEventListener("focus", show);
    node.addEventListener("pointerleave", hide);
    node.addEventListener("blur", hide);
  }

  const formatted = (value, fraction) => {
    const is_whole = Math.abs(value) >= 1000 || !value;
    const digits = fraction ? value.toFixed(3) : is_whole ? value.toFixed(0) : value.toPrecision(4);
    return digits.replace("-", "−");
  };
  for (const figure of all(".chart:not(.strips)")) {
    const plot = figure.querySelector(".plot");
    const drawing = plot.querySelector("svg");
    let values = null;
    let at = -1;
    const read = () => { values ??= JSON.parse(figure.querySelector("script").textContent); };  // at the first use
    const cross = document.createElementNS(SVG, "line");
    cross.setAttribute("class", "cross");
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}; left and right arrow keys show the values of each epoch`);

    const show = (index) => {
      read();
      const [left, right, top, bottom, width] = values.box;
      at = Math.max(0, Math.min(values.epochs.length - 1, index));
      const epoch = values.epochs[at];
      const x = left + ((right - left) * epoch) / values.right;
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom]]) cross.setAttribute(name, value);
      drawing.append(cross);
      const stage = values.stages.find(([from, to]) => from < epoch && epoch <= to);
      const table = make("table");
      all(".legend li", figure).slice(0, values.lines.length).forEach((item, i) => {
        if (values.lines[i][at] === null) return;
        const row = make("tr");
        const name = make("td");
        name.append(item.querySelector(".swatch").cloneNode(true), item.childNodes[1].textContent.trim());
        row.append(name, make("td", formatted(values.lines[i][at], values.fraction)));
        table.append(row);
      });
      tip.replaceChildren(make("b", `epoch ${epoch}${stage ? ` (${stage[2]})` : ""}`), table);
      const box = drawing.getBoundingClientRect();
      place(box, box.left + (x / width) * box.width);
    };
    const leave = () => { cross.remove(); hide(); };
    const nearest = (event) => {
      read();
      const [left, right, , , width] = values.box;
      const box = drawing.getBoundingClientRect();
      const epoch = ((((event.clientX - box.left) / box.width) * width - left) / (right - left)) * values.right;
      let best = 0;
      values.epochs.forEach((candidate, i) => {
        if (Math.abs(candidate - epoch) < Math.abs(values.epochs[best] - epoch)) best = i;
      });
      return best;
    };
    plot.addEventListener("pointermove", (event) => show(nearest(event)));
    plot.addEventListener("pointerdown", (event) => show(nearest(event)));
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(at < 0 ? Infinity : at); });
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") leave();
      if (!(event.key in steps)) return;
      event.preventDefault();
      show((at < 0 ? 0 : at) + steps[event.key]);
    });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // ---- links to a run open its section

  const open_target = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.matches("details")) target.open = true;
  };
  addEventListener("hashchange", () => { open_target(); document.getElementById(location.hash.slice(1))?.scrollIntoView(); });
  for (const link of all("a[href^='#run-']")) {
    link.addEventListener("click", () => { document.getElementById(link.hash.slice(1)).open = true; });
  }
  open_target();
})();
