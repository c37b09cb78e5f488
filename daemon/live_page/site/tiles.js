// Tiles of micrographs: those in the browser's memory, and those requested.

import { pictures } from "./api.js";

const KEPT = 120;
const HEAD = 36; // bytes

/** A tile of 16-bit codes (see `deep.py`), drawn in one contrast at a time. */
class DeepTile {
  #canvas = null;
  #table = null; // with which the canvas was drawn

  constructor(buffer) {
    const head = new DataView(buffer);
    this.width = head.getUint16(0, true);
    this.height = head.getUint16(2, true);
    this.shared = [head.getFloat64(4, true), head.getFloat64(12, true)];
    this.own = [head.getFloat64(20, true), head.getFloat64(28, true)];
    this.codes = new Uint16Array(buffer, HEAD, this.width * this.height);
  }

  /** What to draw on a canvas; `table`: the grey of each code. */
  picture(table) {
    if (this.#table !== table) {
      this.#canvas ??= new OffscreenCanvas(this.width, this.height);
      const image = new ImageData(this.width, this.height);
      const pixels = new Uint32Array(image.data.buffer);
      const { codes } = this;
      for (let at = 0; at < codes.length; at += 1) pixels[at] = table[codes[at]];
      this.#canvas.getContext("2d", { alpha: false }).putImageData(image, 0, 0);
      this.#table = table;
    }
    return this.#canvas;
  }

  /** Keep the codes only. */
  rest() {
    this.#canvas = null;
    this.#table = null;
  }

  close() {
    this.rest();
  }
}

/** A tile that is a picture, the same in any contrast. */
class FlatTile {
  constructor(bitmap) {
    this.bitmap = bitmap;
    this.width = bitmap.width;
    this.height = bitmap.height;
  }

  picture() {
    return this.bitmap;
  }

  rest() {}

  close() {
    this.bitmap.close();
  }
}

async function opened(blob) {
  return blob.type === "image/png" ? new FlatTile(await createImageBitmap(blob)) : new DeepTile(await blob.arrayBuffer());
}

export class Tiles {
  #tiles = new Map(); // by name, the latest used at the end; null where the daemon has no tile
  #coming = new Set();
  #wanted = new Set();

  /** `changed` is called when a tile has arrived, `refused` with its name and the daemon's message if there is none. */
  constructor(changed, refused) {
    this.changed = changed;
    this.refused = refused;
  }

  /** A tile, or null. */
  get(name) {
    const found = this.#tiles.get(name);
    if (found) {
      this.#tiles.delete(name);
      this.#tiles.set(name, found);
    }
    return found ?? null;
  }

  /** Whether all of these have arrived or were refused. */
  has(names) {
    return names.every((name) => this.#tiles.has(name));
  }

  /** Request these tiles, in this order, and no others from now on: [{name, path}, ...]. */
  want(tiles) {
    const before = this.#wanted;
    this.#wanted = new Set(tiles.map((tile) => tile.name));
    for (const name of before) if (!this.#wanted.has(name)) this.#tiles.get(name)?.rest();
    tiles.forEach((tile, at) => {
      if (!this.#tiles.has(tile.name) && !this.#coming.has(tile.name)) this.#fetch(tile, at);
    });
  }

  async #fetch({ name, path }, urgency) {
    this.#coming.add(name);
    let tile = null;
    try {
      const blob = await pictures.get(path, urgency, () => this.#wanted.has(name));
      if (blob === null) return;
      tile = await opened(blob);
    } catch (error) {
      this.refused(name, error.message);
    } finally {
      this.#coming.delete(name);
    }
    this.#tiles.set(name, tile);
    for (const [oldest, one] of this.#tiles) {
      if (this.#tiles.size <= KEPT) break;
      if (this.#wanted.has(oldest)) continue;
      this.#tiles.delete(oldest);
      one?.close();
    }
    this.changed();
  }
}
