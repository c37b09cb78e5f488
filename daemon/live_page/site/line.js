// The line: its length and angle, and the values of raw and denoised along it.

import { askPatiently } from "./api.js";
import { Chart } from "./chart.js";
import { distance, number, pixelSize, readable } from "./format.js";

export class LineProfile {
  #turn = 0;
  #asked = 0;

  constructor(viewer) {
    this.viewer = viewer;
    this.panel = document.querySelector("#profile");
    this.text = document.querySelector("#profile-text");
    this.svg = document.querySelector("#profile-plot");
    this.width = document.querySelector("#profile-width");
    this.button = document.querySelector("#line");
    this.width.addEventListener("change", () => this.#ask());
    this.button.addEventListener("click", () => this.toggle());
    document.querySelector("#profile-close").addEventListener("click", () => this.close());
    viewer.online = (line) => line && this.#soon();
    new ResizeObserver(() => this.#draw()).observe(this.svg);
  }

  get open() {
    return !this.panel.hidden;
  }

  toggle() {
    if (this.open) {
      this.close();
    } else if (this.viewer.micrograph) {
      this.#setOpen(true);
      this.viewer.setLine(this.#across());
    }
  }

  close() {
    this.#turn += 1;
    this.#setOpen(false);
    this.viewer.setLine(null);
    this.found = null;
  }

  /** Move the line by 1 % of the visible width, times x and y. */
  move(x, y) {
    const step = (0.01 * this.viewer.canvas.width) / this.viewer.scale;
    const [y0, x0, y1, x1] = this.viewer.line;
    this.#put([y0 + y * step, x0 + x * step, y1 + y * step, x1 + x * step]);
  }

  /** Turn it about its middle by degrees, and make it longer by a factor. */
  change(degrees, factor) {
    const [y0, x0, y1, x1] = this.viewer.line;
    const [y, x] = [(y0 + y1) / 2, (x0 + x1) / 2];
    const turn = (degrees * Math.PI) / 180;
    const [dy, dx] = [((y1 - y0) / 2) * factor, ((x1 - x0) / 2) * factor];
    const [ry, rx] = [dy * Math.cos(turn) + dx * Math.sin(turn), dx * Math.cos(turn) - dy * Math.sin(turn)];
    this.#put([y - ry, x - rx, y + ry, x + rx]);
  }

  widen() {
    this.width.selectedIndex = (this.width.selectedIndex + 1) % this.width.options.length;
    this.#ask();
  }

  #setOpen(open) {
    this.panel.hidden = !open;
    this.viewer.drawing = open;
    this.viewer.canvas.classList.toggle("drawing", open);
    this.button.setAttribute("aria-pressed", open);
  }

  /** A line across the middle of the visible part. */
  #across() {
    const { canvas } = this.viewer;
    const { width, height } = this.viewer.micrograph.shown;
    const from = this.viewer.toImage({ x: 0.25 * canvas.width, y: 0.5 * canvas.height });
    const to = this.viewer.toImage({ x: 0.75 * canvas.width, y: 0.5 * canvas.height });
    const row = Math.min(height - 1, Math.max(0, from.y - 0.5));
    const within = (value) => Math.min(width - 1, Math.max(0, value - 0.5));
    return [row, within(from.x), row, within(to.x)];
  }

  #put(line) {
    if (!this.viewer.micrograph) return;
    const { width, height } = this.viewer.micrograph.shown;
    const inside = line.every((value, at) => value >= 0 && value <= (at % 2 ? width : height) - 1);
    if (inside) this.viewer.setLine(line);
  }

  /** Ask when the line has rested for 40 ms. */
  #soon() {
    clearTimeout(this.#asked);
    this.#asked = setTimeout(() => this.#ask(), 40);
  }

  async #ask() {
    const { micrograph, line } = this.viewer;
    if (!micrograph || !line) return;
    const turn = (this.#turn += 1);
    const [y0, x0, y1, x1] = line.map((value) => value.toFixed(3));
    const width = Number(this.width.value);
    const path = `data/profile/${micrograph.id}?y0=${y0}&x0=${x0}&y1=${y1}&x1=${x1}&width=${width}`;
    try {
      const found = await askPatiently(path, () => turn === this.#turn);
      if (found === null || turn !== this.#turn) return;
      const size = pixelSize(micrograph);
      const [reach, unit] = readable(Math.hypot((y1 - y0) * size.y, (x1 - x0) * size.x), size.unit);
      this.found = { ...found, reach, unit };
      const mean = (values) => number(values.filter((one) => one !== null).reduce((sum, one, _, all) => sum + one / all.length, 0));
      const means = found.raw ? `mean ${mean(found.raw)} → ${mean(found.denoised)}` : `mean ${mean(found.denoised)}`;
      this.text.textContent = `${distance(line, size).join(", ")}; ${means}, in the file's units`;
      this.#draw();
    } catch (error) {
      if (turn === this.#turn) this.text.textContent = error.message;
    }
  }

  #draw() {
    if (!this.found || !this.open) return;
    const { raw = [], denoised, reach, unit } = this.found;
    const known = [...raw, ...denoised].filter((value) => value !== null);
    if (!known.length) return this.svg.replaceChildren();
    const chart = new Chart(this.svg,
      { low: 0, high: reach, label: unit },
      { low: known.reduce((a, b) => Math.min(a, b)), high: known.reduce((a, b) => Math.max(a, b)) });
    const points = (values) => values.map((value, at) => [(reach * at) / Math.max(1, values.length - 1), value]);
    chart.curve(points(raw), "var(--raw)");
    chart.curve(points(denoised), "var(--accent)");
  }
}
