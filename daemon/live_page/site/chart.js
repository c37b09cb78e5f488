// Small charts as SVG: axes with round numbers, curves with gaps, dots, and stacked blocks.

import { drawing, number } from "./format.js";

const MARGIN = { left: 54, right: 10, top: 8, bottom: 24 };

/** About `about` round numbers from `low` to `high`. */
function ticks(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

export class Chart {
  /**
   * On an empty SVG. `x`, `y`: {low, high, label?, name?(value)}; `label` is written at the end of the axis.
   */
  constructor(svg, x, y) {
    this.svg = svg;
    this.width = svg.clientWidth || 400;
    this.height = svg.clientHeight || 150;
    svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    svg.replaceChildren();
    const flat = y.high > y.low ? 0 : Math.abs(y.high) / 2 || 1;
    this.ranges = { x, y: { low: y.low - flat, high: y.high + flat } };
    this.#axes();
  }

  x(value) {
    const { low, high } = this.ranges.x;
    return MARGIN.left + ((value - low) / (high - low || 1)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const { low, high } = this.ranges.y;
    return this.height - MARGIN.bottom - ((value - low) / (high - low || 1)) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  #axes() {
    const { x, y } = this.ranges;
    for (const value of ticks(y.low, y.high, this.height > 120 ? 4 : 3)) {
      const at = this.y(value);
      this.#add("line", { class: "grid", x1: MARGIN.left, x2: this.width - MARGIN.right, y1: at, y2: at });
      this.#add("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, number(value));
    }
    const values = (x.ticks ?? ticks(x.low, x.high, Math.max(2, Math.floor(this.width / 130)))).filter((value) => value >= x.low && value <= x.high);
    for (const value of values) {
      if (x.label && this.x(value) > this.width - 60) continue; // the unit's place
      this.#add("text", { x: this.x(value), y: this.height - 7, "text-anchor": "middle" }, x.name ? x.name(value) : number(value));
    }
    if (x.label) this.#add("text", { x: this.width - MARGIN.right, y: this.height - 7, "text-anchor": "end" }, x.label);
  }

  #add(tag, attributes, text = "") {
    this.svg.append(drawing(tag, attributes, text));
  }

  /** A curve through [x, y] points; null values leave a gap. */
  curve(points, tone) {
    let path = "";
    let open = false;
    for (const [x, y] of points) {
      if (y === null) {
        open = false;
        continue;
      }
      path += `${open ? "L" : "M"}${this.x(x).toFixed(1)} ${this.y(y).toFixed(1)}`;
      open = true;
    }
    this.#add("path", { class: "curve", d: path });
    this.svg.lastChild.style.setProperty("--tone", tone);
  }

  /** A dot at each [x, y] whose y is known. */
  dots(points, tone) {
    for (const [x, y] of points) {
      if (y === null) continue;
      this.#add("circle", { class: "dot", cx: this.x(x).toFixed(1), cy: this.y(y).toFixed(1), r: 2.4 });
      this.svg.lastChild.style.setProperty("--tone", tone);
    }
  }

  /** A spot that can be clicked; one beyond the chart lies on its edge. */
  spot(x, y, title, tone, act) {
    const { low, high } = this.ranges.y;
    const [cx, cy] = [this.x(x), this.y(Math.min(high, Math.max(low, y)))];
    const spot = drawing("g", { class: "spot", role: "button", tabindex: 0, "aria-label": title });
    spot.append(drawing("title", {}, title), drawing("circle", { class: "reach", cx, cy, r: 11 }), drawing("circle", { cx, cy, r: 5 }));
    spot.style.setProperty("--tone", tone);
    spot.addEventListener("click", act);
    spot.addEventListener("keydown", (event) => event.key === "Enter" && act());
    this.svg.append(spot);
  }

  /** A block between two values of x and of y. */
  block(left, right, low, high, outcome) {
    const [x, y] = [this.x(left) + 0.5, this.y(high)];
    this.#add("rect", {
      class: "block", "data-outcome": outcome, x, y, width: Math.max(1, this.x(right) - x - 0.5), height: Math.max(0, this.y(low) - y),
    });
  }
}
