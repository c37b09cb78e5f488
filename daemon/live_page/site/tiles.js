// Tiles of micrographs: those in the browser's memory, and those requested.

import { pictures } from "./api.js";

const KEPT = 120;

export class Tiles {
  #bitmaps = new Map(); // by name, the latest used at the end; null where the daemon has no tile
  #coming = new Set();
  #wanted = new Set();

  /** `changed` is called when a tile has arrived, `refused` with its name and the daemon's message if there is none. */
  constructor(changed, refused) {
    this.changed = changed;
    this.refused = refused;
  }

  /** The bitmap of a tile, or null. */
  get(name) {
    const found = this.#bitmaps.get(name);
    if (found) {
      this.#bitmaps.delete(name);
      this.#bitmaps.set(name, found);
    }
    return found ?? null;
  }

  /** Whether all of these have arrived or were refused. */
  has(names) {
    return names.every((name) => this.#bitmaps.has(name));
  }

  /** Request these tiles, in this order, and no others from now on: [{name, path}, ...]. */
  want(tiles) {
    this.#wanted = new Set(tiles.map((tile) => tile.name));
    tiles.forEach((tile, at) => {
      if (!this.#bitmaps.has(tile.name) && !this.#coming.has(tile.name)) this.#fetch(tile, at);
    });
  }

  async #fetch({ name, path }, urgency) {
    this.#coming.add(name);
    let bitmap = null;
    try {
      const blob = await pictures.get(path, urgency, () => this.#wanted.has(name));
      if (blob === null) return;
      bitmap = await createImageBitmap(blob);
    } catch (error) {
      this.refused(name, error.message);
    } finally {
      this.#coming.delete(name);
    }
    this.#bitmaps.set(name, bitmap);
    for (const [oldest, one] of this.#bitmaps) {
      if (this.#bitmaps.size <= KEPT) break;
      if (this.#wanted.has(oldest)) continue;
      this.#bitmaps.delete(oldest);
      one?.close();
    }
    this.changed();
  }
}
