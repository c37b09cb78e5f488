// The present session as curves: outcomes, throughput, mean dose and hot pixels over time.

import { askPatiently } from "./api.js";
import { Chart } from "./chart.js";
import { drawing, duration, element, number, time } from "./format.js";

const AGAIN = 5000;

export class SessionView {
  visible = false;
  #at = 0;
  #asking = false;
  #stale = true;
  #found = null;

  constructor() {
    this.root = document.querySelector("#session");
    new ResizeObserver(() => this.#draw()).observe(this.root);
  }

  show(visible) {
    this.visible = visible;
    this.root.hidden = !visible;
    if (visible) this.refresh(this.#stale);
  }

  /** Something is new; what is seen is drawn again, but not too often. */
  async refresh(changed = true) {
    this.#stale ||= changed;
    if (!this.visible || !this.#stale || this.#asking) return;
    this.#asking = true;
    try {
      const rest = this.#at + AGAIN - Date.now();
      if (rest > 0 && this.#found) await new Promise((go) => setTimeout(go, rest));
      this.#stale = false;
      this.#found = (await askPatiently("data/session", () => this.visible)) ?? this.#found;
      this.#at = Date.now();
      this.#draw();
    } catch {
      this.#stale = true; // nobody answered: the page says so, and asks when somebody does
    } finally {
      this.#asking = false;
    }
  }

  #draw() {
    const told = this.#found;
    if (!told || !this.visible) return;
    if (!told.micrographs) {
      this.root.replaceChildren(element("p", "", "No micrograph has been finished yet."));
      return;
    }
    const span = told.end - told.begin;
    const counts = Object.entries(told.counts).map(([name, count]) => `${count} ${name}`).join(", ");
    const charts = element("div", "charts");
    this.root.replaceChildren(
      element("h2", "", `${told.micrographs} micrographs in ${duration(Math.max(1, span))}`),
      element("p", "", `${time(told.begin)} to ${time(told.end)}: ${counts}. A session begins after a pause of 4 hours.`),
      charts,
    );
    const edges = told.per_hour.map((_, bin) => told.begin + bin * told.bin_seconds);
    const axis = { low: told.begin, high: told.begin + told.per_hour.length * told.bin_seconds, name: (at) => time(at, false).slice(-5), ticks: this.#hours(told) };
    const middles = (values) => values.map((value, bin) => [edges[bin] + told.bin_seconds / 2, value]);
    const curve = (title, unit, values, tone) => this.#curve(charts, axis, title, unit, middles(values), tone);
    const all = [
      this.#outcomes(charts, told, edges, axis),
      curve("Throughput", "micrographs per hour", told.per_hour, "var(--accent)"),
      curve("Mean dose", `counts per pixel; ${number(told.mean_dose)} on average`, told.dose, "var(--good)"),
      curve("Hot pixels and X-ray hits", `per million pixels; ${number(told.mean_spikes)} on average`, told.spikes, "var(--check)"),
    ];
    for (const draw of all) draw(); // when all have their place, which decides their size
  }

  /** Times of day that are round. */
  #hours({ begin, per_hour: bins, bin_seconds: width }) {
    const span = bins.length * width;
    const step = [60, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400].find((one) => span / one <= 6) ?? 7 * 86400;
    const offset = new Date(begin * 1000).getTimezoneOffset() * 60;
    const first = Math.ceil((begin - offset) / step) * step + offset;
    return Array.from({ length: Math.floor((begin + span - first) / step) + 1 }, (_, at) => first + at * step);
  }

  #chart(parent, title, unit, axis, high, legend = []) {
    const box = element("section", "chart");
    const head = element("h3", "", title);
    head.append(element("small", "", unit), ...legend);
    const svg = drawing("svg", { role: "img", "aria-label": `${title}, ${unit}` });
    box.append(head, svg);
    parent.append(box);
    return () => new Chart(svg, axis, { low: 0, high });
  }

  #curve(parent, axis, title, unit, points, tone) {
    const known = points.map(([, value]) => value).filter((value) => value !== null);
    const made = this.#chart(parent, title, unit, axis, Math.max(...known, 0) * 1.08 || 1);
    return () => {
      const chart = made();
      chart.curve(points, tone);
      chart.dots(points, tone);
    };
  }

  #outcomes(parent, told, edges, axis) {
    const sums = edges.map((_, bin) => Object.values(told.outcomes).reduce((sum, one) => sum + one[bin], 0));
    const legend = element("span", "legend");
    for (const name of Object.keys(told.outcomes)) legend.append(element("span", "", name, { "data-outcome": name }));
    const made = this.#chart(parent, "Outcomes", `micrographs in ${duration(told.bin_seconds)}`, axis, Math.max(...sums, 1), [legend]);
    return () => {
      const chart = made();
      edges.forEach((edge, bin) => {
        let below = 0;
        for (const [name, counts] of Object.entries(told.outcomes)) {
          if (counts[bin]) chart.block(edge, edge + told.bin_seconds, below, below + counts[bin], name);
          below += counts[bin];
        }
      });
    };
  }
}
