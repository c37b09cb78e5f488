// The contrast panel: histograms of the displayed tiles with a handle for black and one for white, gamma, lock.

import { LEVELS, RANGE, ZERO } from "./contrast.js";
import { drawing, number } from "./format.js";

const BINS = 192; // of the plot
const CODES = 16; // in each bin of the count
const SAMPLES = 400_000; // most codes of a plane that are counted
const PAUSE = 120; // milliseconds between two counts
const SIDE = 12; // pixels left and right of the plot
const TAIL = 0.0005; // the share of the pixels that may lie beyond the plot, on either side
const STEP = 0.01; // of the plot's width: an arrow key

export class Histogram {
  #found = []; // {plane, counts, total, tile} of each displayed plane
  #axis = { low: 0, high: 1 };
  #due = 0;
  #held = null; // {plane, end} of the handle that is dragged

  constructor(viewer, contrast) {
    this.viewer = viewer;
    this.contrast = contrast;
    this.panel = document.querySelector("#contrast");
    this.svg = document.querySelector("#contrast-plot");
    this.text = document.querySelector("#contrast-text");
    this.gamma = document.querySelector("#contrast-gamma");
    this.lock = document.querySelector("#contrast-lock");
    this.button = document.querySelector("#contrast-open");
    this.button.addEventListener("click", () => this.toggle());
    document.querySelector("#contrast-auto").addEventListener("click", () => this.contrast.auto());
    document.querySelector("#contrast-close").addEventListener("click", () => this.close());
    this.gamma.addEventListener("input", () => this.contrast.setGamma(10 ** Number(this.gamma.value)));
    this.lock.addEventListener("change", () => this.contrast.lock(this.lock.checked));
    contrast.onchange = () => this.#changed();
    this.svg.addEventListener("pointerdown", (event) => this.#grab(event));
    this.svg.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => this.#drop());
    this.svg.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.#draw()).observe(this.svg);
    this.#changed();
  }

  get open() {
    return !this.panel.hidden;
  }

  toggle() {
    if (this.panel.contains(document.activeElement)) document.activeElement.blur(); // or keys go to what is hidden
    this.panel.hidden = this.open;
    this.button.setAttribute("aria-expanded", this.open);
    this.refresh();
  }

  close() {
    if (this.open) this.toggle();
  }

  /** Count again what is displayed, soon. */
  refresh() {
    if (!this.open || this.#due) return;
    this.#due = setTimeout(() => {
      this.#due = 0;
      if (!this.open) return;
      this.#found = this.viewer.displayed().map(({ plane, tiles }) => counted(plane, tiles)).filter(Boolean);
      this.#draw();
    }, PAUSE);
  }

  #changed() {
    const { contrast } = this;
    this.gamma.value = Math.log10(contrast.gamma);
    this.gamma.title = `gamma ${number(contrast.gamma, 2)}`;
    document.querySelector("#contrast-gamma-text").textContent = number(contrast.gamma, 2);
    this.lock.checked = contrast.locked;
    document.querySelector("#contrast-auto").setAttribute("aria-pressed", contrast.automatic);
    this.button.setAttribute("aria-pressed", !contrast.automatic);
    this.viewer.refresh();
    this.#draw();
  }

  // Drawing

  /** The planes on the canvas, one above the other; one row for both where they are locked. */
  #rows() {
    if (this.contrast.locked) return [this.#found];
    return this.#found.map((one) => [one]);
  }

  #draw() {
    if (!this.open) return;
    this.size = { width: this.svg.clientWidth || 400, height: this.svg.clientHeight || 110 };
    this.svg.setAttribute("viewBox", `0 0 ${this.size.width} ${this.size.height}`);
    const focused = document.activeElement?.closest?.("#contrast-plot .handle")?.dataset.handle;
    this.svg.replaceChildren();
    if (!this.#found.length) {
      this.text.textContent = "no image";
      return;
    }
    if (!this.#held) this.#axis = this.#reach();
    const rows = this.#rows();
    const height = this.size.height / rows.length;
    rows.forEach((planes, row) => this.#drawRow(planes, row * height, height));
    this.text.textContent = rows.map(([one, other]) => {
      const [black, white] = this.contrast.range(one.plane, one.tile);
      return `${other ? "both" : one.plane}: black ${number(black, 4)}, white ${number(white, 4)}`;
    }).join("; ");
    if (focused) this.svg.querySelector(`[data-handle="${focused}"]`)?.focus();
  }

  /** The values that the plot shows: nearly all pixels, and the handles. */
  #reach() {
    const ends = this.#found.flatMap(({ plane, counts, total, tile }) => {
      let [from, to, sum] = [0, counts.length - 1, 0];
      while (from < to && (sum += counts[from]) < TAIL * total) from += 1;
      sum = 0;
      while (to > from && (sum += counts[to]) < TAIL * total) to -= 1;
      return [edge(from, tile), edge(to + 1, tile), ...this.contrast.range(plane, tile)];
    });
    const [low, high] = [Math.min(...ends), Math.max(...ends)];
    const spare = 0.04 * (high - low);
    return { low: low - spare, high: high + spare };
  }

  #x(value) {
    const { low, high } = this.#axis;
    return SIDE + ((value - low) / (high - low)) * (this.size.width - 2 * SIDE);
  }

  #value(x) {
    const { low, high } = this.#axis;
    return low + ((x - SIDE) / (this.size.width - 2 * SIDE)) * (high - low);
  }

  #drawRow(planes, top, height) {
    const floor = top + height - 4;
    for (const { plane, counts, total, tile } of planes) {
      const bins = this.#binned(counts, tile);
      const most = Math.max(...bins) || total;
      const width = (this.size.width - 2 * SIDE) / BINS;
      const points = bins.map((count, bin) => {
        const [x, y] = [SIDE + bin * width, floor - Math.sqrt(count / most) * (height - 14)];
        return `${x.toFixed(1)} ${y.toFixed(1)}L${(x + width).toFixed(1)} ${y.toFixed(1)}`;
      });
      this.svg.append(drawing("path", { class: `shape ${plane}`, d: `M${SIDE} ${floor}L${points.join("L")}L${this.size.width - SIDE} ${floor}Z` }));
    }
    const [{ plane, tile }] = planes;
    const range = this.contrast.range(plane, tile);
    const named = planes.length > 1 ? "both" : plane;
    range.forEach((value, end) => this.#handle(named, plane, end, value, top, height));
  }

  /** Counts in the bins of the plot, from those in bins of codes, each spread evenly over its values. */
  #binned(counts, tile) {
    const bins = new Array(BINS).fill(0);
    const { low, high } = this.#axis;
    const place = (at) => (BINS * (edge(at, tile) - low)) / (high - low);
    counts.forEach((count, at) => {
      if (!count) return;
      const [from, to] = [place(at), place(at + 1)];
      for (let bin = Math.max(0, Math.floor(from)); bin < Math.min(BINS, to); bin += 1) {
        bins[bin] += (count * (Math.min(to, bin + 1) - Math.max(from, bin))) / (to - from);
      }
    });
    return bins;
  }

  #handle(named, plane, end, value, top, height) {
    const x = Math.min(this.size.width - 2, Math.max(2, this.#x(value)));
    const word = ["Black", "White"][end];
    const group = drawing("g", {
      class: "handle", role: "slider", tabindex: 0, "data-handle": `${plane}-${end}`, "aria-label": `${word}, ${named}`,
      "aria-valuenow": value, "aria-valuetext": number(value, 4), "aria-orientation": "horizontal",
    });
    group.append(
      drawing("rect", { class: "grip", x: x - 16, y: top, width: 32, height }),
      drawing("line", { x1: x, x2: x, y1: top + 2, y2: top + height - 2 }),
      drawing("path", { class: ["black", "white"][end], d: `M${x - 7} ${top + height - 1}h14l-7 -11z` }),
    );
    this.svg.append(group);
  }

  // The user's hand

  #grab(event) {
    const handle = event.target.closest(".handle");
    if (!handle) return;
    const [plane, end] = handle.dataset.handle.split("-");
    this.#held = { plane, end: Number(end) };
    this.svg.setPointerCapture(event.pointerId);
    handle.focus();
  }

  #drag(event) {
    if (!this.#held) return;
    const box = this.svg.getBoundingClientRect();
    this.#move(this.#held.plane, this.#held.end, this.#value(event.clientX - box.left));
  }

  #drop() {
    this.#held = null;
    this.#draw();
  }

  #move(plane, end, value) {
    const found = this.#found.find((one) => one.plane === plane);
    if (!found || !Number.isFinite(value)) return;
    const range = [...this.contrast.range(plane, found.tile)];
    const least = (found.tile.shared[1] - found.tile.shared[0]) / 255;
    range[end] = end ? Math.max(value, range[0] + least) : Math.min(value, range[1] - least);
    this.contrast.set(plane, ...range);
  }

  #key(event) {
    const handle = event.target.closest(".handle");
    const steps = { ArrowLeft: -STEP, ArrowDown: -STEP, ArrowRight: STEP, ArrowUp: STEP, PageDown: -10 * STEP, PageUp: 10 * STEP };
    if (!handle || !(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const [plane, end] = handle.dataset.handle.split("-");
    const value = Number(handle.getAttribute("aria-valuenow"));
    this.#move(plane, Number(end), value + steps[event.key] * (this.#axis.high - this.#axis.low));
  }
}

/** The value, in the file's units, at which a bin of codes begins. */
function edge(bin, { shared: [low, high] }) {
  return low + ((bin * CODES - ZERO) / RANGE) * (high - low);
}

/** How many pixels of a plane's tiles have each code, in bins of CODES codes. */
function counted(plane, tiles) {
  if (!tiles.length) return null;
  const counts = new Float64Array(LEVELS / CODES);
  const all = tiles.reduce((sum, tile) => sum + tile.codes.length, 0);
  const stride = Math.max(1, Math.round(all / SAMPLES) | 1);
  let total = 0;
  for (const { codes } of tiles) {
    for (let at = 0; at < codes.length; at += stride) counts[Math.floor(codes[at] / CODES)] += 1;
    total += Math.ceil(codes.length / stride);
  }
  return { plane, counts, total, tile: tiles[0] };
}
