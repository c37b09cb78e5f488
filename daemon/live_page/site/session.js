// The present session as curves over time: outcomes, throughput, mean dose, removed noise, hot pixels; outliers.

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

  /** `open(id)` is called when the user picks an outlier. */
  constructor(open) {
    this.open = open;
    this.root = document.querySelector("#session");
    new ResizeObserver(() => this.#draw()).observe(this.root);
  }

  show(visible) {
    this.visible = visible;
    this.root.hidden = !visible;
    if (visible) this.refresh(this.#stale);
  }

  /** Draw the curves again if anything is new and they are visible, at most every 5 s. */
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
      this.#stale = true; // no answer: the page shows that, and refreshes after the next one
    } finally {
      this.#asking = false;
    }
  }

  #draw() {
    const session = this.#found;
    if (!session || !this.visible) return;
    if (!session.micrographs) {
      this.root.replaceChildren(element("p", "", "No micrograph has been finished yet."));
      return;
    }
    const span = session.end - session.begin;
    const counts = Object.entries(session.counts).map(([name, count]) => `${count} ${name}`).join(", ");
    const charts = element("div", "charts");
    this.root.replaceChildren(
      element("h2", "", `${session.micrographs} micrographs in ${duration(Math.max(1, span))}`),
      element("p", "", `${time(session.begin)} to ${time(session.end)}: ${counts}. A session begins after a pause of 4 hours.`),
      charts,
    );
    const edges = session.per_hour.map((_, bin) => session.begin + bin * session.bin_seconds);
    const axis = { low: session.begin, high: session.begin + session.per_hour.length * session.bin_seconds, name: (at) => time(at, false).slice(-5), ticks: this.#hours(session) };
    const middles = (values) => values.map((value, bin) => [edges[bin] + session.bin_seconds / 2, value]);
    const curve = (title, unit, values, tone, far) => this.#curve(charts, axis, title, unit, middles(values), tone, far);
    const { outliers } = session;
    const all = [
      this.#outcomes(charts, session, edges, axis),
      curve("Throughput", "micrographs per hour", session.per_hour, "var(--accent)"),
      curve("Mean dose", `counts per pixel; ${number(session.mean_dose)} on average`, session.dose, "var(--good)", outliers.dose),
      curve("Removed noise", `times the expected; ${number(session.mean_removed_noise)} on average`, session.removed_noise, "var(--quarantined)", outliers.removed_noise),
      curve("Hot pixels and X-ray hits", `per million pixels; ${number(session.mean_spikes)} on average`, session.spikes, "var(--check)", outliers.spikes),
    ];
    for (const draw of all) draw(); // after all are placed, because the layout decides their size
  }

  /** Round times of day within the session, as ticks. */
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

  /** `outliers`: single micrographs far from the others, to click on. */
  #curve(parent, axis, title, unit, points, tone, outliers = []) {
    const known = points.map(([, value]) => value).filter((value) => value !== null);
    const most = Math.max(...known, 0);
    const high = Math.max(most, Math.min(3 * most, Math.max(...outliers.map((one) => one.value), 0)));
    const made = this.#chart(parent, title, unit, axis, high * 1.08 || 1);
    return () => {
      const chart = made();
      chart.curve(points, tone);
      chart.dots(points, tone);
      for (const { id, at, value } of outliers) {
        chart.spot(at, value, `${time(at)}: ${number(value)}. Click to see this micrograph.`, tone, () => this.open(id));
      }
    };
  }

  #outcomes(parent, session, edges, axis) {
    const sums = edges.map((_, bin) => Object.values(session.outcomes).reduce((sum, one) => sum + one[bin], 0));
    const legend = element("span", "legend");
    for (const name of Object.keys(session.outcomes)) legend.append(element("span", "", name, { "data-outcome": name }));
    const made = this.#chart(parent, "Outcomes", `micrographs in ${duration(session.bin_seconds)}`, axis, Math.max(...sums, 1), [legend]);
    return () => {
      const chart = made();
      edges.forEach((edge, bin) => {
        let below = 0;
        for (const [name, counts] of Object.entries(session.outcomes)) {
          if (counts[bin]) chart.block(edge, edge + session.bin_seconds, below, below + counts[bin], name);
          below += counts[bin];
        }
      });
    };
  }
}
