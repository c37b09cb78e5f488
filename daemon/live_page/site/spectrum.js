// Fourier transforms of raw and denoised side by side, with rings of resolution.

import { pictures } from "./api.js";
import { length, pixelSize, tag } from "./format.js";

const RINGS = [0.125, 0.25, 0.375]; // cycles per pixel, near which a ring is drawn
const NEAR = 0.006; // cycles per pixel at zoom 1: a click so near to the mark removes it
const ROUND = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];
const GAP = 12;

/** The round length nearest to a length. */
function nearest(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const off = (step) => Math.abs(Math.log(value / (step * power)));
  return power * ROUND.reduce((best, step) => (off(step) < off(best) ? step : best));
}

export class SpectrumView {
  onzoom = () => {};

  #bitmaps = {};
  #micrograph = null;
  #shown = false;
  #turn = 0;
  #asking = false;
  #mark = null; // a spot that the user marked: {x, y} in cycles per pixel, y down

  constructor(root) {
    this.canvas = root.querySelector("#spectrum");
    this.readout = root.querySelector("#frequency");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.zoom = 1;
    new ResizeObserver(() => this.#draw()).observe(root);
    this.canvas.addEventListener("pointermove", (event) => this.#point(event));
    this.canvas.addEventListener("pointerleave", () => (this.readout.hidden = true));
    this.canvas.addEventListener("click", (event) => this.#micrograph && this.#markAt(event));
    this.canvas.addEventListener("dblclick", () => this.setZoom(1));
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.setZoom(this.zoom * Math.exp(-event.deltaY * 0.0016));
    }, { passive: false });
  }

  setZoom(factor) {
    this.zoom = Math.min(8, Math.max(1, factor));
    this.onzoom();
    this.#draw();
  }

  /** Show or hide the spectra; hidden ones are not requested. */
  show(micrograph, visible) {
    const other = micrograph?.shown?.key !== this.#micrograph?.shown?.key;
    const begin = visible && micrograph && (other || (!this.#asking && !this.settled));
    this.#shown = visible;
    this.#micrograph = micrograph;
    this.canvas.hidden = !visible;
    if (!visible) this.readout.hidden = true;
    if (other) this.#turn += 1;
    if (begin) this.#fetch(micrograph);
    if (visible) this.#draw();
  }

  /** Whether both are drawn. */
  get settled() {
    return this.#planes().every((plane) => this.#bitmaps[plane]?.key === this.#micrograph?.shown.key);
  }

  #planes() {
    if (!this.#micrograph) return [];
    return this.#micrograph.shown.raw_gone ? ["denoised"] : ["raw", "denoised"];
  }

  async #fetch(micrograph) {
    const turn = this.#turn;
    const wanted = () => turn === this.#turn && this.#shown;
    this.#asking = true;
    await Promise.all(this.#planes().map(async (plane) => {
      if (this.#bitmaps[plane]?.key === micrograph.shown.key) return;
      try {
        const blob = await pictures.get(`picture/${micrograph.id}/spectrum/${plane}`, 50, wanted);
        if (blob === null || turn !== this.#turn) return;
        const bitmap = await createImageBitmap(blob);
        this.#bitmaps[plane]?.bitmap.close();
        this.#bitmaps[plane] = { key: micrograph.shown.key, bitmap };
      } catch (error) {
        this.#say(error.message);
      }
    }));
    if (turn === this.#turn) this.#asking = false;
    this.#draw();
  }

  #say(text) {
    this.readout.hidden = false;
    this.readout.textContent = text;
  }

  /** The squares on the canvas: {plane, x, y, side}. */
  #squares() {
    const { width, height } = this.canvas;
    const planes = this.#planes();
    const side = Math.floor(Math.min(height - 2 * GAP, (width - (planes.length + 1) * GAP) / planes.length));
    const left = Math.round((width - planes.length * side - (planes.length - 1) * GAP) / 2);
    const top = Math.round((height - side) / 2);
    return planes.map((plane, at) => ({ plane, x: left + at * (side + GAP), y: top, side }));
  }

  #draw() {
    if (!this.#shown) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    const { context } = this;
    context.fillStyle = "#050608";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (const square of this.#squares()) this.#drawOne(square);
  }

  #drawOne({ plane, x, y, side }) {
    const { context } = this;
    const found = this.#bitmaps[plane];
    const { side: pixels, factor } = this.#micrograph.shown.spectrum;
    context.save();
    context.beginPath();
    context.rect(x, y, side, side);
    context.clip();
    const middle = { x: x + side / 2, y: y + side / 2 };
    if (found?.key === this.#micrograph.shown.key) {
      const enlarge = (side / found.bitmap.width) * this.zoom;
      const zero = (pixels / 2 + 0.5) / factor;
      context.imageSmoothingEnabled = enlarge < 3;
      context.drawImage(found.bitmap, middle.x - zero * enlarge, middle.y - zero * enlarge,
        found.bitmap.width * enlarge, found.bitmap.height * enlarge);
    }
    this.#drawRings(middle, side * this.zoom);
    this.#drawMark(middle, side * this.zoom);
    tag(context, { x: x + 10, y: y + 10 }, plane, { corner: true, colour: "#cfd6de" });
    context.restore();
  }

  /** `whole`: pixels of the screen for one cycle per pixel. */
  #drawRings(middle, whole) {
    const { context } = this;
    const size = pixelSize(this.#micrograph);
    const ratio = window.devicePixelRatio || 1;
    for (const wanted of RINGS.map((frequency) => frequency / this.zoom)) {
      const spacing = nearest(size.x / wanted);
      const radius = { x: (whole * size.x) / spacing, y: (whole * size.y) / spacing };
      for (const [wide, colour] of [[3, "rgba(5, 6, 8, 0.5)"], [1, "rgba(142, 203, 255, 0.75)"]]) {
        context.lineWidth = wide * ratio;
        context.strokeStyle = colour;
        context.beginPath();
        context.ellipse(middle.x, middle.y, radius.x, radius.y, 0, 0, 2 * Math.PI);
        context.stroke();
      }
      tag(context, { x: middle.x + radius.x * 0.7071, y: middle.y - radius.y * 0.7071 }, length(spacing, size.unit));
    }
  }

  /** The spot that the user marked, and its opposite. */
  #drawMark(middle, whole) {
    if (!this.#mark) return;
    const { context } = this;
    const ratio = window.devicePixelRatio || 1;
    for (const sign of [1, -1]) {
      const at = { x: middle.x + sign * this.#mark.x * whole, y: middle.y + sign * this.#mark.y * whole };
      for (const [wide, colour] of [[4, "rgba(5, 6, 8, 0.7)"], [2, "#ffd479"]]) {
        context.lineWidth = wide * ratio;
        context.strokeStyle = colour;
        context.beginPath();
        context.arc(at.x, at.y, 9 * ratio, 0, 2 * Math.PI);
        context.stroke();
      }
      if (sign === 1) tag(context, { x: at.x, y: at.y - 24 * ratio }, this.#words(this.#mark), { colour: "#ffd479" });
    }
  }

  /** The place under the pointer in cycles per pixel, y down; null outside the spectra. */
  #frequency(event) {
    const ratio = window.devicePixelRatio || 1;
    const at = { x: event.offsetX * ratio, y: event.offsetY * ratio };
    const square = this.#squares().find(({ x, y, side }) => at.x >= x && at.x < x + side && at.y >= y && at.y < y + side);
    if (!square) return null;
    const whole = square.side * this.zoom;
    return { x: (at.x - square.x - square.side / 2) / whole, y: (at.y - square.y - square.side / 2) / whole };
  }

  /** Spacing and direction of a frequency, as text. */
  #words({ x, y }) {
    const size = pixelSize(this.#micrograph);
    const [right, down] = [x / size.x, y / size.y];
    const frequency = Math.hypot(right, down);
    if (!(frequency > 0)) return "mean";
    return `${length(1 / frequency, size.unit)}  ${((Math.atan2(-down, right) * 180) / Math.PI).toFixed(1)}°`;
  }

  /** Mark the spot under the pointer; the same spot again: no mark. */
  #markAt(event) {
    const found = this.#frequency(event);
    const near = found && this.#mark && Math.hypot(found.x - this.#mark.x, found.y - this.#mark.y) < NEAR / this.zoom;
    this.#mark = near ? null : found;
    this.#draw();
  }

  #point(event) {
    const found = this.#micrograph && this.#frequency(event);
    this.readout.hidden = !found;
    if (found) this.#say(this.#words(found));
  }
}
