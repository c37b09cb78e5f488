// The live page: asks the daemon for news and passes them to the parts of the page.

import { act, ask, pictures } from "./api.js";
import { Contrast } from "./contrast.js";
import { showFacts, showRefusal } from "./facts.js";
import { element, number } from "./format.js";
import { Histogram } from "./histogram.js";
import { keys } from "./keys.js";
import { LineProfile } from "./line.js";
import { SessionView } from "./session.js";
import { SpectrumView } from "./spectrum.js";
import { Strip } from "./strip.js";
import { Table } from "./table.js";
import { Viewer } from "./viewer.js";

const PULSE = 400;
const PULSE_HIDDEN = 5000; // milliseconds, while the page is hidden
const find = (name) => document.querySelector(name);

class Page {
  following = true;
  #changed = null;
  #version = null;
  #view = "compare";
  #selected = null; // the displayed micrograph, as the daemon described it
  #wanted = null; // the number of the one that was requested last
  #timer = 0;
  #token = null; // with which the page may change something

  constructor() {
    const root = find("#viewer");
    const contrast = new Contrast();
    this.viewer = new Viewer(root, contrast);
    this.histogram = new Histogram(this.viewer, contrast);
    this.spectrum = new SpectrumView(root);
    this.session = new SessionView((id) => {
      this.pick({ id });
      this.view("compare");
    });
    this.line = new LineProfile(this.viewer);
    this.strip = new Strip((micrograph) => this.pick(micrograph));
    this.table = new Table((micrograph) => this.pick(micrograph), () => this.view("compare"));
    this.viewer.onchange = () => this.#onDrawn();
    this.spectrum.onzoom = () => this.#showScale();
    pictures.onbusy = (busy) => (find("#busy").hidden = !busy);
    for (const one of document.querySelectorAll("[data-view]")) one.addEventListener("click", () => this.view(one.dataset.view));
    for (const one of document.querySelectorAll("[data-do]")) one.addEventListener("click", () => this.zoom(one.dataset.do));
    find("#follow").addEventListener("click", () => this.follow(!this.following));
    find("#help-open").addEventListener("click", () => this.help());
    document.addEventListener("visibilitychange", () => document.hidden || this.#pulse());
    keys(this);
    this.view("compare");
    this.#pulse();
  }

  get helping() {
    return find("#help").open;
  }

  help() {
    find("#help").showModal();
  }

  // Actions of the user

  view(name) {
    this.#view = name;
    if (name !== "compare" && name !== "residual" && this.line.open) this.line.close();
    for (const one of document.querySelectorAll("[data-view]")) one.setAttribute("aria-pressed", one.dataset.view === name);
    const image = name === "compare" || name === "residual";
    find("#viewer").hidden = find("#zoom").hidden = name === "session" || name === "table";
    find("#line").disabled = !image;
    find("#contrast-open").disabled = name !== "compare";
    if (name !== "compare") this.histogram.close();
    if (image) this.viewer.setView(name);
    this.session.show(name === "session");
    this.table.show(name === "table");
    this.#showSpectrum();
  }

  toggleLine() {
    if (this.#view === "compare" || this.#view === "residual") this.line.toggle();
  }

  toggleContrast() {
    if (this.#view === "compare") this.histogram.toggle();
  }

  zoom(what) {
    if (this.#view === "spectrum") {
      const factors = { in: 1.25, out: 0.8 };
      this.spectrum.setZoom(what in factors ? this.spectrum.zoom * factors[what] : 1);
      return;
    }
    ({ in: this.viewer.larger, out: this.viewer.smaller, fit: () => this.viewer.fit(), full: this.viewer.full })[what]();
  }

  /** The user picks a micrograph: it stays until another is picked. */
  pick(micrograph) {
    this.#setFollowing(false);
    window.scrollTo(0, 0); // on a narrow screen the image is above
    this.#select(micrograph.id);
  }

  follow(on) {
    this.#setFollowing(on);
    if (!on) return;
    this.#changed = null;
    this.strip.newest();
    this.#pulse();
  }

  #setFollowing(on) {
    this.following = on;
    find("#follow").setAttribute("aria-pressed", on);
  }

  // News from the daemon

  async #pulse() {
    clearTimeout(this.#timer);
    const begun = performance.now();
    try {
      await this.#take(await ask("data/state"));
    } catch (error) {
      this.#away(error);
    }
    clearTimeout(this.#timer);
    const pause = document.hidden ? PULSE_HIDDEN : Math.max(100, PULSE - (performance.now() - begun));
    this.#timer = setTimeout(() => this.#pulse(), pause);
  }

  async #take(state) {
    if (this.#version !== null && this.#version !== state.version) location.reload();
    this.#version = state.version;
    this.#token = state.token;
    this.#figures(state);
    if (state.changed === this.#changed) return;
    if (this.following) {
      if (state.newest) await this.#select(state.newest.id, state.newest.place);
      else this.#none(state.counts.quarantined);
    }
    await this.strip.refresh();
    await this.#again();
    this.session.refresh();
    this.table.refresh();
    this.#changed = state.changed;
  }

  #figures({ health, counts, problems, waiting, per_hour: rate }) {
    const shown = find("#health");
    shown.dataset.state = health.state;
    const words = health.state === "ok" ? `running, ${health.backend.split(",")[0]}` : `${health.state}: ${health.detail}`;
    if (shown.lastElementChild.textContent !== words) shown.lastElementChild.textContent = words;
    shown.title = [health.detail, health.backend].filter(Boolean).join("; ");
    find("#waiting").textContent = waiting;
    find("#rate").textContent = number(rate);
    find("#done").textContent = counts.done;
    find("#problems").textContent = problems;
    this.#warn(health.state === "degraded" || health.state === "failed" ? words : ""); // in full: the header may cut it
  }

  #away(error) {
    if (error.status === 401) location.reload(); // the token has changed: the daemon asks for it
    find("#health").dataset.state = "away";
    find("#health").lastElementChild.textContent = "no answer";
    const why = error.status === undefined ? "The daemon does not answer; this page continues automatically when it does." : `The daemon reports: ${error.message}`;
    this.#warn(why);
    this.#changed = null;
  }

  #warn(words) {
    const banner = find("#banner");
    if (banner.textContent !== words) banner.textContent = words;
    banner.hidden = !words;
  }

  #none(quarantined) {
    showRefusal(find("#refusal"), null);
    const others = quarantined ? ` ${quarantined} quarantined: pick one below to see the reason.` : "";
    this.viewer.show(null, `No micrograph yet. The first result appears here.${others}`);
    find("#facts").replaceChildren(element("p", "where", "Nothing has been denoised yet."));
  }

  /** Request a micrograph and show it; its `place` changes when it is done again. */
  async #select(id, place = null) {
    if (this.#selected?.id === id && (place === null || this.#selected.place === place)) return;
    this.#wanted = id;
    this.strip.select(id);
    this.table.select(id);
    try {
      const micrograph = await ask(`data/micrograph/${id}`);
      if (this.#wanted === id) this.#show(micrograph);
    } catch (error) {
      if (error.status === undefined || error.busy) throw error;
      if (this.#wanted === id) this.viewer.show(null, error.message);
    }
  }

  /** Request the displayed micrograph again if the strip has a newer entry of it. */
  async #again() {
    const [now, known] = [this.strip.micrographs.find((one) => one.id === this.#selected?.id), this.#selected];
    if (now && (now.place !== known.place || now.acknowledged !== known.acknowledged)) await this.#select(now.id, "again");
  }

  #show(micrograph) {
    this.#selected = micrograph;
    try {
      showFacts(find("#facts"), micrograph, this.#token && (() => this.#act("acknowledge", micrograph.id, "Acknowledged")));
    } catch { // an edited record must not stop the page
      find("#facts").replaceChildren(
        element("h2", "", micrograph.path.split("/").pop()),
        element("p", "where", "The JSON beside this result is damaged and cannot be shown."));
    }
    const refused = micrograph.state === "quarantined" || (micrograph.state === "retry" && !micrograph.shown);
    if (micrograph.shown) this.viewer.show(micrograph);
    else this.viewer.show(null, micrograph.missing ?? (refused ? "" : "Not done yet."));
    showRefusal(find("#refusal"), refused && !micrograph.shown ? micrograph : null, this.#token && (() => this.#act("retry", micrograph.id, "It is tried again")));
    this.#showSpectrum();
  }

  /** Have the daemon do something with a micrograph; returns `done`, or why it did not. */
  async #act(name, id, done) {
    try {
      await act(`act/${name}/${id}`, this.#token);
      await this.#select(id, "again");
      return done;
    } catch (error) {
      return error.status === undefined ? "The daemon does not answer" : error.message;
    }
  }

  #showSpectrum() {
    this.spectrum.show(this.#selected?.shown ? this.#selected : null, this.#view === "spectrum");
    this.#showScale();
  }

  #showScale() {
    const percent = 100 * this.viewer.scale;
    const words = this.#view === "spectrum" ? `${number(this.spectrum.zoom)} ×` : `${number(percent, percent < 10 ? 2 : 3)} %`;
    find("#scale").textContent = this.viewer.micrograph ? words : "–";
  }

  #onDrawn() {
    this.#showScale();
    this.histogram.refresh();
    document.body.dataset.shown = this.viewer.micrograph?.id ?? "";
    document.body.dataset.settled = this.viewer.settled;
  }
}

new Page();
