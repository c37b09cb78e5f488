// The table of micrographs: sorted, searched and filtered by the daemon; only the visible rows are requested and drawn.

import { askPatiently } from "./api.js";
import { element, MARKS, number, length, time } from "./format.js";

const ROW = 30; // pixels
const BLOCK = 100; // rows in one request
const TALLEST = 8e6; // pixels: browsers do not scroll in much taller elements
const AGAIN = 5000; // milliseconds between two requests for news
const TYPED = 250; // milliseconds after a letter of the search
const COLUMNS = [
  ["time", "Time", ({ updated }) => time(updated)],
  ["name", "Name", ({ path, revision }) => path + (revision > 1 ? ` (revision ${revision})` : "")],
  ["dose", "Dose", ({ dose }) => number(dose)],
  ["pixel", "Pixel size", ({ pixel }) => (pixel === null ? "–" : length(pixel, "nm"))],
  ["verdict", "Verdict", ({ verdict }) => `${MARKS[verdict]} ${verdict}`],
  ["code", "Reason", (row) => (row.acknowledged ? `acknowledged; ${why(row)}` : why(row))],
  ["seconds", "Seconds", ({ seconds }) => number(seconds)],
];

const why = ({ codes, error, verdict }) => (verdict === "quarantined" || verdict === "waiting" ? error ?? "" : codes.join(", "));

export class Table {
  visible = false;
  #query = { sort: "time", order: "desc", show: "all", scope: "session", search: "" };
  #blocks = new Map(); // by number: rows, or null while they are requested
  #total = 0;
  #turn = 0;
  #at = 0;
  #due = 0;

  /** `pick(micrograph)` is called when the user picks a row, `open()` when the image is wanted. */
  constructor(pick, open) {
    this.pick = pick;
    this.open = open;
    this.root = document.querySelector("#listing");
    this.frame = this.root.querySelector(".rows");
    this.filler = this.frame.firstElementChild;
    this.body = this.root.querySelector("tbody");
    this.note = document.querySelector("#table-note");
    this.download = document.querySelector("#table-csv");
    this.search = document.querySelector("#table-search");
    this.#head();
    this.frame.addEventListener("scroll", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(this.frame);
    this.search.addEventListener("input", () => this.#later());
    for (const name of ["show", "scope"]) {
      const field = document.querySelector(`#table-${name}`);
      field.addEventListener("change", () => this.#change({ [name]: field.value }));
    }
    this.body.addEventListener("click", (event) => this.#chosen(event));
    this.body.addEventListener("dblclick", () => this.open());
    this.body.addEventListener("keydown", (event) => this.#key(event));
  }

  show(visible) {
    this.visible = visible;
    this.root.hidden = !visible;
    if (visible) this.refresh();
  }

  /** Mark the displayed micrograph. */
  select(id) {
    this.selected = id;
    for (const row of this.body.rows) row.setAttribute("aria-selected", row.dataset.id === String(id));
  }

  /** Request the rows again, at most every 5 s; the place stays. */
  refresh() {
    if (!this.visible || this.#due) return;
    this.#due = setTimeout(() => {
      this.#due = 0;
      if (this.visible) this.#restart(false);
    }, Math.max(0, this.#at + AGAIN - Date.now()));
  }

  #head() {
    const row = this.root.querySelector("thead").insertRow();
    for (const [name, words] of COLUMNS) {
      const cell = element("th", name, "", { scope: "col", "data-column": name });
      const button = element("button", "", words, { type: "button" });
      button.addEventListener("click", () => this.#sort(name));
      cell.append(button);
      row.append(cell);
    }
    this.#showOrder();
  }

  #sort(name) {
    const { sort, order } = this.#query;
    const first = name === "name" || name === "code" || name === "verdict" ? "asc" : "desc";
    this.#change({ sort: name, order: sort !== name ? first : order === "asc" ? "desc" : "asc" });
  }

  #showOrder() {
    for (const cell of this.root.querySelectorAll("th")) {
      const own = cell.dataset.column === this.#query.sort;
      cell.setAttribute("aria-sort", own ? { asc: "ascending", desc: "descending" }[this.#query.order] : "none");
    }
  }

  #later() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.#change({ search: this.search.value.trim() }), TYPED);
  }

  #change(changes) {
    Object.assign(this.#query, changes);
    this.#showOrder();
    this.frame.scrollTop = 0;
    this.#restart(true);
  }

  #path(more) {
    const given = Object.entries({ ...this.#query, ...more }).filter(([, value]) => value !== "");
    return new URLSearchParams(given).toString();
  }

  async #restart(empty) {
    this.#turn += 1;
    this.#at = Date.now();
    const [first] = this.#place();
    const wanted = Math.floor(first / BLOCK);
    if (empty) this.note.textContent = "…";
    this.download.href = `data/table.csv?${this.#path({})}`;
    await this.#fetch(wanted, true);
  }

  /** Request a block; `fresh`: what was known before is forgotten when it arrives. */
  async #fetch(block, fresh = false) {
    const turn = this.#turn;
    if (!fresh) this.#blocks.set(block, null);
    try {
      const found = await askPatiently(`data/table?${this.#path({ from: block * BLOCK, count: BLOCK })}`, () => this.visible && turn === this.#turn);
      if (found === null || turn !== this.#turn) return;
      if (fresh) this.#blocks.clear();
      this.#blocks.set(block, found.rows);
      this.#total = found.total;
      const words = `${found.total.toLocaleString("en")} micrograph${found.total === 1 ? "" : "s"}`;
      this.note.textContent = found.limited ? `the newest ${words}` : words;
      this.#draw();
    } catch (error) {
      if (turn !== this.#turn) return;
      if (!fresh) this.#blocks.delete(block);
      this.note.textContent = error.status === undefined ? "no answer" : error.message;
    }
  }

  /** The first visible row, how many fit, and the height of the whole table. */
  #place() {
    const head = this.root.querySelector("thead").offsetHeight;
    const fit = Math.max(1, Math.floor((this.frame.clientHeight - head) / ROW));
    const height = Math.min(TALLEST, head + this.#total * ROW);
    const room = Math.max(1, height - this.frame.clientHeight);
    const first = Math.round((this.frame.scrollTop / room) * Math.max(0, this.#total - fit));
    return [Math.min(Math.max(0, first), Math.max(0, this.#total - fit)), fit, height];
  }

  #draw() {
    if (!this.visible) return;
    const [first, fit, height] = this.#place();
    this.filler.style.height = `${height}px`;
    const focused = document.activeElement?.closest?.("#listing tbody tr")?.dataset.at;
    const rows = [];
    for (let at = first; at < Math.min(this.#total, first + fit); at += 1) {
      const block = Math.floor(at / BLOCK);
      if (!this.#blocks.has(block)) this.#fetch(block);
      rows.push(this.#row(at, this.#blocks.get(block)?.[at % BLOCK]));
    }
    this.body.replaceChildren(...rows);
    if (focused !== undefined) this.body.querySelector(`[data-at="${focused}"]`)?.focus({ preventScroll: true });
    for (const block of this.#blocks.keys()) {
      if (this.#blocks.size > 20 && Math.abs(block - first / BLOCK) > 5) this.#blocks.delete(block);
    }
  }

  #row(at, found) {
    const row = element("tr", "", "", { "data-at": at, tabindex: 0, "aria-rowindex": at + 2 });
    if (!found) {
      row.append(element("td", "", "…", { colspan: COLUMNS.length }));
      return row;
    }
    row.micrograph = found;
    row.dataset.id = found.id;
    row.dataset.outcome = found.verdict;
    row.setAttribute("aria-selected", found.id === this.selected);
    row.append(...COLUMNS.map(([name, , words]) => {
      const text = words(found);
      return element("td", name, text, name === "name" || name === "code" ? { title: text } : {});
    }));
    return row;
  }

  // The user's hand

  #chosen(event) {
    const found = event.target.closest("tr")?.micrograph;
    if (found) this.pick(found);
  }

  #key(event) {
    const row = event.target.closest("tr");
    if (event.key === "Enter" && row.micrograph) {
      this.pick(row.micrograph);
      this.open();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      this.#move(Number(row.dataset.at) + (event.key === "ArrowDown" ? 1 : -1));
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** Go to a row, scrolling if it is not visible, and pick it. */
  #move(at) {
    if (at < 0 || at >= this.#total) return;
    const [first, fit, height] = this.#place();
    if (at < first || at >= first + fit) {
      const wanted = at < first ? at : at - fit + 1;
      this.frame.scrollTop = (wanted / Math.max(1, this.#total - fit)) * (height - this.frame.clientHeight);
      this.#draw();
    }
    const row = this.body.querySelector(`[data-at="${at}"]`);
    row?.focus({ preventScroll: true });
    if (row?.micrograph) this.pick(row.micrograph);
  }
}
