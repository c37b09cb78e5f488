// The tiles of micrographs that are in the browser's memory, and those that are on their way.

import { pictures } from "./api.js";

const KEPT = 120;

export class Tiles {
  #bitmaps = new Map(); // by name, those used last at the end; null where the daemon has none
  #coming = new Set();
  #wanted = new Set();

  /** `changed` is called when a tile has come, `refused` with the daemon's words when there is none. */
  constructor(changed, refused) {
    this.changed = changed;
    this.refused = refused;
  }

  /** The bitmap of a tile, if it is here. */
  get(name) {
    const found = this.#bitmaps.get(name);
    if (found) {
      this.#bitmaps.delete(name);
      this.#bitmaps.set(name, found);
    }
    return found ?? null;
  }

  /** Whether all of these are here. */
  has(names) {
    return names.every((name) => this.#bitmaps.has(name));
  }

  /** From now on these are wanted, the first most of all, and no others: [{name, path}, ...]. */
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
