// The micrograph: tiles on a canvas, raw and denoised on either side of a divider, with zoom and pan.
// Lengths on the canvas are in pixels of the screen; `scale` is screen pixels per image pixel.

import { gestures } from "./gestures.js";
import { distance, pixelSize, length, roundLength, tag } from "./format.js";
import { Tiles } from "./tiles.js";

const LARGEST = 32;
const STEP = 1.25;

export class Viewer {
  view = "compare"; // or "residual"
  split = 0.5; // the share of the width that shows raw
  line = null; // [y0, x0, y1, x1] of the profile, in image pixels
  drawing = false; // whether dragging draws the line
  onchange = () => {};
  online = () => {};

  #micrograph = null;
  #next = null; // shown as soon as its first picture has arrived
  #fitted = true;
  #due = false;

  constructor(root, contrast) {
    this.contrast = contrast;
    const find = (name) => root.querySelector(name);
    this.canvas = find("#image");
    this.divider = find("#divider");
    this.labels = [find("#left-label"), find("#right-label")];
    this.bar = find("#bar");
    this.notice = find("#notice");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.tiles = new Tiles(() => this.refresh(), (name, why) => this.#refused(name, why));
    this.centre = { x: 0, y: 0 };
    this.scale = 1;
    new ResizeObserver(() => this.#resize()).observe(root);
    gestures(this);
  }

  get micrograph() {
    return this.#micrograph;
  }

  /** Show another micrograph once its first picture has arrived; `null` shows none, with the reason. */
  show(micrograph, why = "") {
    if (micrograph === null) {
      this.#micrograph = this.#next = null;
      this.#say(why, true);
    } else if (micrograph.shown.key !== this.#micrograph?.shown.key) {
      this.#next = micrograph;
    } else {
      micrograph.shown.raw_gone ||= this.#micrograph.shown.raw_gone;
      this.#micrograph = micrograph;
      this.#sayAlone();
    }
    this.refresh();
  }

  /** Whether the visible part is drawn in full sharpness. */
  get settled() {
    return this.#micrograph !== null && this.#next === null && this.tiles.has(this.#needed().map((tile) => tile.name));
  }

  /** The tiles on the canvas that have a contrast to set: [{plane, tiles}, ...]. */
  displayed() {
    if (!this.#micrograph || this.view !== "compare") return [];
    const { width, height } = this.canvas;
    const planes = this.#planes(this.#micrograph.shown);
    return planes.map((plane) => {
      const found = this.#visible(plane, 0, width).map((tile) => this.tiles.get(tile.name)).filter(Boolean);
      const base = this.tiles.get(this.#bases(this.#micrograph)[planes.indexOf(plane)].name);
      return { plane, tiles: found.length || !base ? found : [base] };
    });
  }

  setView(view) {
    this.view = view;
    if (this.#micrograph) this.#sayAlone();
    this.refresh();
  }

  setSplit(share) {
    this.split = Math.min(1, Math.max(0, share));
    this.refresh();
  }

  /** Enlarge by a factor; the point `at` of the canvas (default: its middle) stays in place. */
  zoom(factor, at = { x: this.canvas.width / 2, y: this.canvas.height / 2 }) {
    if (!this.#micrograph) return;
    const before = this.scale;
    this.scale = Math.min(LARGEST, Math.max(Math.min(this.#whole(), 1), this.scale * factor));
    this.#fitted = false;
    const nearer = 1 / before - 1 / this.scale;
    this.#moveTo(this.centre.x + (at.x - this.canvas.width / 2) * nearer, this.centre.y + (at.y - this.canvas.height / 2) * nearer);
  }

  larger = () => this.zoom(STEP);
  smaller = () => this.zoom(1 / STEP);
  full = () => this.zoom(1 / this.scale);

  fit() {
    this.#fitted = true;
    this.#fitNow();
    this.refresh();
  }

  /** Move the view by pixels of the screen. */
  pan(x, y) {
    this.#fitted = false;
    this.#moveTo(this.centre.x - x / this.scale, this.centre.y - y / this.scale);
  }

  /** A point of the canvas as a point of the image (whole numbers are the corners of pixels), and back. */
  toImage(at) {
    const origin = this.#origin();
    return { x: (at.x - origin.x) / this.scale, y: (at.y - origin.y) / this.scale };
  }

  toCanvas(at) {
    const origin = this.#origin();
    return { x: origin.x + at.x * this.scale, y: origin.y + at.y * this.scale };
  }

  setLine(line) {
    this.line = line;
    this.refresh();
    this.online(line);
  }

  refresh() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#draw();
    });
  }

  // Drawing

  #refused(name, why) {
    const refused = [this.#next, this.#micrograph].find((one) => one && name.startsWith(one.shown.key));
    if (!refused) return;
    if (name.includes("-denoised-")) return this.show(null, why);
    refused.shown.raw_gone = why; // the raw file exists, but cannot be read
    if (refused === this.#micrograph) this.#sayAlone();
  }

  #sayAlone() {
    const why = this.#micrograph.shown.raw_gone;
    this.#say(why && `${this.view === "residual" ? "no residual" : "denoised alone"}: ${why}`);
  }

  #say(text, whole = false) {
    this.notice.hidden = !text;
    this.notice.textContent = text || "";
    this.notice.classList.toggle("whole", whole);
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.#fitted) this.#fitNow();
    this.#due = false;
    this.#draw(); // now: a canvas that was resized is empty
  }

  #whole() {
    const { width, height } = this.#micrograph.shown;
    return Math.min(this.canvas.width / width, this.canvas.height / height) || 1;
  }

  #fitNow() {
    if (!this.#micrograph) return;
    this.scale = Math.min(LARGEST, this.#whole());
    this.centre = { x: this.#micrograph.shown.width / 2, y: this.#micrograph.shown.height / 2 };
  }

  #moveTo(x, y) {
    const { width, height } = this.#micrograph?.shown ?? { width: 0, height: 0 };
    this.centre = { x: Math.min(width, Math.max(0, x)), y: Math.min(height, Math.max(0, y)) };
    this.refresh();
  }

  /** The image's upper left corner on the canvas, in whole pixels, so that each pixel is exact at 100 %. */
  #origin() {
    return {
      x: Math.round(this.canvas.width / 2 - this.centre.x * this.scale),
      y: Math.round(this.canvas.height / 2 - this.centre.y * this.scale),
    };
  }

  #planes(shown) {
    if (shown.raw_gone) return this.view === "residual" ? [] : ["denoised"];
    return this.view === "residual" ? ["residual"] : ["raw", "denoised"];
  }

  #tile(micrograph, plane, level, row, column) {
    return {
      name: `${micrograph.shown.key}-${plane}-${level}-${row}-${column}`,
      path: `picture/${micrograph.id}/${plane}/${level}/${row}/${column}`,
    };
  }

  #bases(micrograph) {
    return this.#planes(micrograph.shown).map((plane) => this.#tile(micrograph, plane, micrograph.shown.levels, 0, 0));
  }

  /** The tiles of one plane that lie between two columns of the canvas: [{name, path, level, row, column}, ...]. */
  #visible(plane, left, right) {
    const shown = this.#micrograph.shown;
    const level = Math.min(shown.levels, Math.max(0, Math.floor(Math.log2(1 / this.scale) + 0.01)));
    const side = shown.tile * 2 ** level;
    const from = this.toImage({ x: left, y: 0 });
    const to = this.toImage({ x: right, y: this.canvas.height });
    const count = (size) => Math.ceil(Math.max(1, Math.floor(size / 2 ** level)) / shown.tile);
    const found = [];
    for (let row = Math.max(0, Math.floor(from.y / side)); row < Math.min(count(shown.height), to.y / side); row += 1) {
      for (let column = Math.max(0, Math.floor(from.x / side)); column < Math.min(count(shown.width), to.x / side); column += 1) {
        found.push({ ...this.#tile(this.#micrograph, plane, level, row, column), level, row, column });
      }
    }
    return found;
  }

  /** [plane, left, right] of each plane on the canvas. */
  #parts() {
    const width = this.canvas.width;
    const planes = this.#planes(this.#micrograph.shown);
    if (planes.length < 2) return planes.map((plane) => [plane, 0, width]);
    const middle = Math.round(this.split * width);
    return [["raw", 0, middle], ["denoised", middle, width]].filter(([, left, right]) => right > left);
  }

  #needed() {
    return this.#parts().flatMap(([plane, left, right]) => this.#visible(plane, left, right));
  }

  #takeNext() {
    const bases = this.#next ? this.#bases(this.#next) : [];
    if (!this.#next || !this.tiles.has(bases.map((tile) => tile.name))) return bases;
    const before = this.#micrograph?.shown;
    this.#micrograph = this.#next;
    this.#next = null;
    const { width, height } = this.#micrograph.shown;
    if (this.#fitted || before?.width !== width || before?.height !== height) {
      this.#fitted = true;
      this.#fitNow();
    }
    this.#sayAlone();
    if (this.line) this.setLine(this.line);
    return [];
  }

  #draw() {
    const coming = this.#takeNext();
    const { context, canvas } = this;
    context.fillStyle = "#050608";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (this.#micrograph) {
      const bases = this.#bases(this.#micrograph);
      this.tiles.want([...coming, ...bases, ...this.#needed()]);
      for (const [plane, left, right] of this.#parts()) this.#drawPlane(plane, left, right);
      if (this.line) this.#drawLine();
    } else {
      this.tiles.want(coming);
    }
    this.#decorate();
    this.onchange();
  }

  #drawPlane(plane, left, right) {
    const { context, canvas } = this;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, canvas.height);
    context.clip();
    const levels = this.#micrograph.shown.levels;
    const base = { ...this.#tile(this.#micrograph, plane, levels, 0, 0), level: levels, row: 0, column: 0 };
    for (const tile of [base, ...this.#visible(plane, left, right)]) this.#drawTile(tile, plane);
    context.restore();
  }

  #drawTile({ name, level, row, column }, plane) {
    const found = this.tiles.get(name);
    if (!found) return;
    const factor = 2 ** level;
    const side = this.#micrograph.shown.tile * factor;
    const from = this.toCanvas({ x: column * side, y: row * side });
    const to = this.toCanvas({ x: column * side + found.width * factor, y: row * side + found.height * factor });
    const [x, y] = [Math.round(from.x), Math.round(from.y)];
    this.context.imageSmoothingEnabled = level > 0 || this.scale < 1;
    this.context.imageSmoothingQuality = "high";
    const table = found.shared && this.contrast.table(plane, found);
    this.context.drawImage(found.picture(table), x, y, Math.round(to.x) - x, Math.round(to.y) - y);
  }

  #drawLine() {
    const [y0, x0, y1, x1] = this.line;
    const from = this.toCanvas({ x: x0 + 0.5, y: y0 + 0.5 });
    const to = this.toCanvas({ x: x1 + 0.5, y: y1 + 0.5 });
    const { context } = this;
    for (const [width, colour] of [[5, "rgba(5, 6, 8, 0.7)"], [2, "#8ecbff"]]) {
      context.lineWidth = width * (window.devicePixelRatio || 1);
      context.strokeStyle = context.fillStyle = colour;
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x, to.y);
      context.stroke();
      context.beginPath();
      context.arc(from.x, from.y, width + 1.5, 0, 2 * Math.PI);
      context.fill();
    }
    const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 - 22 * (window.devicePixelRatio || 1) };
    tag(context, middle, distance(this.line, pixelSize(this.#micrograph)).slice(-2).join("  "));
  }

  #decorate() {
    const shown = this.#micrograph?.shown;
    const compared = shown && this.#planes(shown).length === 2;
    this.divider.hidden = !compared;
    this.divider.style.left = `${100 * this.split}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.split));
    const [left, right] = this.labels;
    left.hidden = !shown || (compared && this.split < 0.06) || !this.#planes(shown).length;
    right.hidden = !compared || this.split > 0.94;
    left.textContent = compared ? "raw" : this.view === "residual" ? "raw − denoised" : "denoised";
    this.#scaleBar();
  }

  #scaleBar() {
    this.bar.hidden = !this.#micrograph || !this.#planes(this.#micrograph.shown).length;
    if (this.bar.hidden) return;
    const size = pixelSize(this.#micrograph);
    const ratio = window.devicePixelRatio || 1;
    const perUnit = this.scale / size.x / ratio; // CSS pixels
    const value = roundLength((0.22 * this.canvas.clientWidth) / perUnit);
    this.bar.firstElementChild.style.width = `${value * perUnit}px`;
    this.bar.lastElementChild.textContent = length(value, size.unit);
  }
}
