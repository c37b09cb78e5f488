// Which values are black and white: one state for the whole page, kept while the browser's tab is open.

const KEPT = "emdenoised contrast";
const GAMMAS = [0.2, 5];

/** A tile has `LEVELS` codes. They count from `ZERO`, in `RANGE` steps from its black to its white (see `deep.py`). */
export const LEVELS = 65536;
export const RANGE = 255 * 8;
export const ZERO = 12 * RANGE;

const finite = (pair) => Array.isArray(pair) && pair.length === 2 && pair.every(Number.isFinite) && pair[0] < pair[1];

export class Contrast {
  /** `manual`: [black, white] of each plane in the file's units; null: automatic. `locked`: raw is shown as denoised. */
  manual = { raw: null, denoised: null };
  locked = true;
  gamma = 1;
  onchange = () => {};
  #tables = new Map();

  constructor() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
      for (const plane of ["raw", "denoised"]) if (finite(kept.manual?.[plane])) this.manual[plane] = kept.manual[plane];
      if (kept.locked === false) this.locked = false;
      if (kept.gamma >= GAMMAS[0] && kept.gamma <= GAMMAS[1]) this.gamma = kept.gamma;
    } catch { // nothing was kept, or the browser keeps nothing
    }
  }

  get automatic() {
    return this.manual.raw === null && this.manual.denoised === null && this.gamma === 1;
  }

  /** [black, white] of a plane, for one of its tiles. */
  range(plane, tile) {
    return this.manual[this.locked ? "denoised" : plane] ?? (this.locked ? tile.shared : tile.own);
  }

  /** The user sets black and white of a plane; both, if they are locked. */
  set(plane, black, white) {
    this.manual[this.locked ? "denoised" : plane] = [black, white];
    this.#changed();
  }

  setGamma(gamma) {
    this.gamma = Math.min(GAMMAS[1], Math.max(GAMMAS[0], gamma));
    this.#changed();
  }

  lock(locked) {
    this.locked = locked;
    this.#changed();
  }

  auto() {
    this.manual = { raw: null, denoised: null };
    this.gamma = 1;
    this.#changed();
  }

  /** The grey of each code of a tile, as pixels of an ImageData; the same object for the same contrast. */
  table(plane, tile) {
    const [black, white] = this.range(plane, tile);
    const [low, high] = tile.shared;
    const from = (black - low) / (high - low);
    const span = Math.max(1e-6, (white - black) / (high - low));
    const name = `${from} ${span} ${this.gamma}`;
    if (!this.#tables.has(name)) {
      if (this.#tables.size > 3) this.#tables.clear();
      this.#tables.set(name, greys(from, span, this.gamma));
    }
    return this.#tables.get(name);
  }

  #changed() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify({ manual: this.manual, locked: this.locked, gamma: this.gamma }));
    } catch { // a browser that keeps nothing
    }
    this.onchange();
  }
}

function greys(from, span, gamma) {
  const table = new Uint32Array(LEVELS);
  for (let code = 0; code < LEVELS; code += 1) {
    const share = Math.min(1, Math.max(0, ((code - ZERO) / RANGE - from) / span));
    const grey = Math.floor(255 * (gamma === 1 ? share : share ** gamma) + 1e-6);
    table[code] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  return table;
}
