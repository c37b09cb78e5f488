// Numbers, lengths, times and outcomes as text, and elements of the page.

const METRES = { m: 1, cm: 1e-2, mm: 1e-3, um: 1e-6, "µm": 1e-6, nm: 1e-9, angstrom: 1e-10, "Å": 1e-10, pm: 1e-12 };

/** Three significant digits, without an exponent where that is readable. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(digits - 1);
  return Math.abs(value) >= 10 ** digits ? Math.round(value).toString() : Number(value.toPrecision(digits)).toString();
}

/** A length in the file's unit, in the unit in which it is easiest to read: [value, unit]. */
export function readable(value, unit) {
  if (!(unit in METRES)) return [value, unit];
  const metres = value * METRES[unit];
  const [name, size] = [["mm", 1e-3], ["µm", 1e-6]].find(([, one]) => Math.abs(metres) >= one * 0.9999) ?? ["nm", 1e-9];
  return [metres / size, name];
}

/** The same as text. */
export function length(value, unit) {
  const [shown, name] = readable(value, unit);
  return `${number(shown)} ${name}`;
}

/** The longest of 1, 2 or 5 times a power of ten up to `most`. */
export function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most) + 1e-9);
  return [5, 2, 1].map((step) => step * power).find((value) => value <= most * (1 + 1e-9)) ?? power;
}

/** The pixel size {x, y, unit} of a micrograph; 1 px if it is unknown. */
export function pixelSize(micrograph) {
  const size = micrograph?.record?.pixel_size ?? micrograph?.facts?.pixel_size;
  return size && size.x > 0 && size.y > 0 ? size : { x: 1, y: 1, unit: "px" };
}

/** A line [y0, x0, y1, x1] in pixels as its length in pixels and in the file's unit, and its angle to the rows. */
export function distance([y0, x0, y1, x1], size) {
  const pixels = `${number(Math.hypot(y1 - y0, x1 - x0), 4)} px`;
  const [down, right] = [(y1 - y0) * size.y, (x1 - x0) * size.x];
  const angle = `${((Math.atan2(-down, right) * 180) / Math.PI).toFixed(1)}°`; // counter-clockwise from the right
  return size.unit === "px" ? [pixels, angle] : [pixels, length(Math.hypot(down, right), size.unit), angle];
}

/** Wall-clock seconds as the time of day; with the date unless that is today. */
export function time(seconds, withSeconds = true) {
  const at = new Date(seconds * 1000);
  const two = (value) => value.toString().padStart(2, "0");
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}${withSeconds ? `:${two(at.getSeconds())}` : ""}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return at.toDateString() === new Date().toDateString() ? clock : `${day} ${clock}`;
}

/** Seconds as a duration. */
export function duration(seconds) {
  if (seconds < 90) return `${number(seconds, 2)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${number(seconds / 3600, 2)} h`;
}

/** The outcome of a micrograph as one word, by which it is coloured and filtered. */
export function outcome(micrograph) {
  if (micrograph.state === "quarantined") return "quarantined";
  if (micrograph.state !== "done") return "waiting";
  return micrograph.verdict ?? "unjudged";
}

export const WORDS = {
  good: "Good", check: "Check", reject: "Reject", quarantined: "Quarantined", waiting: "Waiting", unjudged: "No verdict",
};
export const MARKS = { good: "✓", check: "!", reject: "✕", quarantined: "–", waiting: "…", unjudged: "?" };

/** An element with a class, text and attributes; text is never read as HTML. */
export function element(tag, kind = "", text = "", attributes = {}) {
  const one = document.createElement(tag);
  if (kind) one.className = kind;
  if (text !== "") one.textContent = text;
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  return one;
}

const SVG = "http://www.w3.org/2000/svg";

export function drawing(tag, attributes = {}, text = "") {
  const one = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  if (text !== "") one.textContent = text;
  return one;
}

/** A text on a canvas, on a dark box about a point; `corner`: the point is its upper left. */
export function tag(context, { x, y }, text, { corner = false, colour = "#8ecbff" } = {}) {
  const ratio = window.devicePixelRatio || 1;
  context.font = `${13 * ratio}px system-ui, "Segoe UI", "Noto Sans", sans-serif`;
  const width = context.measureText(text).width + 12 * ratio;
  const height = 22 * ratio;
  const [left, top] = corner ? [x, y] : [x - width / 2, y - height / 2];
  context.fillStyle = "rgba(11, 14, 17, 0.82)";
  context.beginPath();
  context.roundRect(left, top, width, height, 5 * ratio);
  context.fill();
  context.fillStyle = colour;
  context.textBaseline = "middle";
  context.fillText(text, left + 6 * ratio, top + height / 2 + ratio);
}
