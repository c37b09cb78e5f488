// The strip of recent micrographs: one page of the ledger at a time, filtered by outcome.

import { ask, pictures } from "./api.js";
import { element, MARKS, outcome, time } from "./format.js";

const PAGE = 40;
const FITS = 13; // letters below a picture
const SHOWS = ["all", "good", "check", "reject", "quarantined", "waiting"];

/** The end of a name, which is where the names of one session differ. */
function ending(name) {
  const stem = name.replace(/\.[^.]{1,5}$/, "");
  return stem.length > FITS ? `…${stem.slice(1 - FITS)}` : stem;
}

export class Strip {
  show = "all";
  micrographs = [];
  #starts = [""]; // where each page up to this one begins
  #shots = new Map(); // by id, place and whether it is acknowledged: the button of each
  #more = false;
  #asking = null;
  #again = false;

  /** `pick(micrograph)` is called when the user picks one. */
  constructor(pick) {
    this.pick = pick;
    this.list = document.querySelector("#strip");
    this.range = document.querySelector("#range");
    this.filters = [...document.querySelectorAll("[data-show]")];
    this.newerButton = document.querySelector("#newer");
    this.olderButton = document.querySelector("#older");
    this.newerButton.addEventListener("click", () => this.newer());
    this.olderButton.addEventListener("click", () => this.older());
    for (const one of this.filters) one.addEventListener("click", () => this.filter(one.dataset.show));
    this.watcher = new IntersectionObserver((seen) => seen.forEach((one) => one.isIntersecting && this.#picture(one.target)),
      { root: this.list, rootMargin: "0px 300px" });
  }

  filter(show) {
    this.show = show;
    this.#starts = [""];
    this.list.scrollLeft = 0;
    return this.refresh();
  }

  nextFilter() {
    return this.filter(SHOWS[(SHOWS.indexOf(this.show) + 1) % SHOWS.length]);
  }

  newest() {
    if (this.#starts.length === 1 && this.show === "all") return Promise.resolve();
    return this.filter("all");
  }

  async older() {
    if (!this.#more) return;
    this.#starts.push(this.micrographs.at(-1).place);
    this.list.scrollLeft = 0;
    await this.refresh();
  }

  async newer() {
    if (this.#starts.length === 1) return;
    this.#starts.pop();
    this.list.scrollLeft = 0;
    await this.refresh();
  }

  /** Request this page again; calls during a request lead to one further request. */
  async refresh() {
    if (this.#asking) {
      this.#again = true;
      return this.#asking;
    }
    this.#asking = this.#ask();
    try {
      await this.#asking;
    } finally {
      this.#asking = null;
    }
  }

  async #ask() {
    do {
      this.#again = false;
      const before = this.#starts.at(-1);
      const [show, page] = [this.show, this.#starts.length];
      const answer = await ask(`data/list?show=${show}&limit=${PAGE}${before && `&before=${before}`}`);
      if (this.show !== show || this.#starts.length !== page) this.#again = true;
      else this.#take(answer);
    } while (this.#again);
  }

  #take({ micrographs, more }) {
    this.micrographs = micrographs;
    this.#more = more;
    const shots = new Map();
    for (const one of micrographs) {
      const key = `${one.id} ${one.place} ${one.acknowledged}`;
      shots.set(key, this.#shots.get(key) ?? this.#shot(one));
    }
    for (const [key, item] of this.#shots) if (!shots.has(key)) this.#forget(item);
    this.#shots = shots;
    const items = [...shots.values()];
    this.list.replaceChildren(...(items.length ? items : [element("li", "none", "none yet")]));
    this.select(this.selected);
    const first = (this.#starts.length - 1) * PAGE;
    this.range.textContent = micrographs.length ? `${first + 1}–${first + micrographs.length}` : "";
    this.olderButton.disabled = !more;
    this.newerButton.disabled = this.#starts.length === 1;
    for (const one of this.filters) one.setAttribute("aria-pressed", one.dataset.show === this.show);
  }

  /** Mark the displayed micrograph. */
  select(id) {
    this.selected = id;
    for (const item of this.#shots.values()) {
      const button = item.firstElementChild;
      const chosen = button.dataset.id === String(id);
      if (chosen === (button.getAttribute("aria-current") === "true")) continue;
      button.setAttribute("aria-current", chosen);
      if (chosen) this.#reveal(item);
    }
  }

  /** Scroll the strip, and not the page, until an item is visible. */
  #reveal(item) {
    const [strip, box] = [this.list.getBoundingClientRect(), item.getBoundingClientRect()];
    if (box.left < strip.left) this.list.scrollLeft += box.left - strip.left;
    else if (box.right > strip.right) this.list.scrollLeft += box.right - strip.right;
  }

  /** Pick the next in the strip, older (1) or newer (-1), also on the next page. */
  async step(by) {
    const at = this.micrographs.findIndex((one) => one.id === this.selected);
    let next = at < 0 ? (by > 0 ? 0 : -1) : at + by;
    if (at >= 0 && next >= this.micrographs.length && this.#more) {
      await this.older();
      next = 0;
    } else if (next < 0 && this.#starts.length > 1) {
      await this.newer();
      next = this.micrographs.length - 1;
    }
    if (this.micrographs[next]) this.pick(this.micrographs[next]);
  }

  #shot(micrograph) {
    const word = outcome(micrograph);
    const name = micrograph.path.split("/").pop();
    const button = element("button", "shot", "", {
      type: "button", "data-id": micrograph.id, "data-outcome": word, title: micrograph.path, "aria-label": `${name}: ${word}${micrograph.acknowledged === null ? "" : ", acknowledged"}`,
    });
    if (micrograph.acknowledged !== null) button.dataset.acknowledged = "";
    const picture = element("span", "picture");
    picture.append(element("span", "mark", MARKS[word], { "aria-hidden": "true" }));
    if (micrograph.error && word !== "good") picture.append(element("span", "why", micrograph.error));
    const label = element("span", "name");
    label.append(element("span", "", ending(name)), element("span", "", time(micrograph.updated, false)));
    button.append(picture, label);
    button.addEventListener("click", () => this.pick(micrograph));
    const item = element("li");
    item.append(button);
    item.micrograph = micrograph;
    if (word !== "quarantined" && word !== "waiting") this.watcher.observe(item);
    return item;
  }

  #forget(item) {
    this.watcher.unobserve(item);
    item.forgotten = true;
  }

  async #picture(item) {
    this.watcher.unobserve(item);
    try {
      const blob = await pictures.get(`picture/${item.micrograph.id}/thumbnail`, 100, () => !item.forgotten);
      if (blob === null) return;
      const image = element("img", "", "", { alt: "", draggable: "false" });
      const address = URL.createObjectURL(blob);
      image.addEventListener("load", () => URL.revokeObjectURL(address));
      image.src = address;
      item.querySelector(".picture").prepend(image);
    } catch (error) {
      item.firstElementChild.title += `: ${error.message}`;
    }
  }
}
