// The facts of one micrograph as text: verdict, result, acquisition, times, remarks.

import { element, MARKS, WORDS, duration, length, number, outcome, time } from "./format.js";

const STEPS = { read: "#5b8def", prepare: "#4fb3bf", network: "#8ecbff", judge: "#efb956", write: "#8f9aa6" };
const TAKEN = {
  voltage_kv: ["Voltage", (value) => `${number(value)} kV`],
  magnification: ["Magnification", (value) => `${number(value)} ×`],
  exposure_seconds: ["Exposure", (value) => `${number(value)} s`],
  electrons_per_pixel: ["Incident", (value) => `${number(value)} e⁻ per pixel`],
  microscope: ["Microscope", String],
  detector: ["Detector", String],
  recorded: ["Recorded", String],
};

/** `acknowledge()`: called by a button of a micrograph that is an open problem, if given. */
export function showFacts(root, micrograph, acknowledge = null) {
  root.replaceChildren(...[
    ...heading(micrograph),
    ...verdict(micrograph),
    ...seen(micrograph, acknowledge),
    ...image(micrograph),
    ...taken(micrograph),
    ...timings(micrograph),
    ...files(micrograph),
    ...remarks(micrograph),
  ]);
}

/** In place of the image: why there is none. `micrograph` null: nothing. `retry()`: called by a button, if given. */
export function showRefusal(root, micrograph, retry = null) {
  root.hidden = micrograph === null;
  if (micrograph === null) return;
  const word = outcome(micrograph);
  root.dataset.outcome = word;
  const next = word === "quarantined"
    ? "It is set aside until the file changes or is retried. The raw file was only read."
    : "It is tried again automatically.";
  root.replaceChildren(
    element("p", "badge", `${MARKS[word]} ${WORDS[word]}`),
    element("p", "reason", micrograph.error || "The ledger has no reason."),
    element("p", "remedy", `${micrograph.path}. ${next}`),
    ...(retry && word === "quarantined" ? [actor("retry", "Retry", "Try this micrograph again now", retry)] : []));
}

/** A button that has the daemon do something, and then states what came of it. */
function actor(kind, words, title, act) {
  const button = element("button", kind, words, { type: "button", title });
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = await act();
  });
  return button;
}

function seen(micrograph, acknowledge) {
  if (micrograph.acknowledged !== null) return [element("p", "where", `acknowledged ${time(micrograph.acknowledged)}`)];
  if (!acknowledge || !["reject", "quarantined"].includes(outcome(micrograph))) return [];
  return [actor("acknowledge", "Acknowledge", "Mark it as seen: it no longer counts as a problem", acknowledge)];
}

function heading({ path, revision, shown, updated, state }) {
  const parts = path.split("/");
  const name = element("h2", "", parts.pop() + (revision > 1 ? ` (revision ${revision})` : ""));
  const where = [parts.length ? parts.join("/") : "", `${state === "done" ? "done" : state} ${time(updated)}`].filter(Boolean);
  if (shown?.name && !shown.name.startsWith(name.textContent)) where.push(`as ${shown.name}`);
  return [name, element("p", "where", where.join(" · "))];
}

function verdict(micrograph) {
  const word = outcome(micrograph);
  const line = element("p", "verdict", "", { "data-outcome": word });
  line.append(element("i", "", MARKS[word], { "aria-hidden": "true" }), element("span", "", WORDS[word]));
  const own = micrograph.record?.verdict;
  const reasons = own?.reasons ?? micrograph.facts.reasons ?? [];
  const worst = micrograph.sections > 1 && own?.word ? [`the worst of ${micrograph.sections} sections; the one shown: ${own.word}`] : [];
  const found = word === "waiting" ? [] : [...worst, ...reasons];
  return [line, ...bullets([...(micrograph.error ? [micrograph.error] : []), ...found])];
}

function bullets(texts) {
  if (!texts.length) return [];
  const list = element("ul", "reasons");
  list.append(...texts.map((text) => element("li", "", text)));
  return [list];
}

function table(title, rows) {
  const known = rows.filter(([, text]) => text);
  if (!known.length) return [];
  const list = element("dl", "table");
  for (const [name, text] of known) {
    const row = element("div");
    row.append(element("dt", "", name), element("dd", "", text));
    list.append(row);
  }
  return [element("h3", "", title), list];
}

function image({ facts, record, shown, state }) {
  if (state !== "done" && !shown) return [];
  const size = record?.pixel_size ?? facts.pixel_size;
  const pixel = size ? (size.x === size.y ? length(size.x, size.unit) : `${length(size.y, size.unit)} × ${length(size.x, size.unit)}`) : "unknown";
  const dose = record?.dose ?? facts.dose;
  const judged = record?.verdict ?? {};
  return table("Result", [
    ["Dose", dose === null || dose === undefined ? "unknown" : `${number(dose)} counts per pixel`],
    ["Profile", record?.profile?.why ?? record?.profile?.name],
    ["Pixel", pixel],
    ["Image", shown ? `${shown.width} × ${shown.height}${record?.dtype ? `, ${record.dtype}` : ""}` : ""],
    ["Mean", judged.mean_raw === undefined ? "" : `${number(judged.mean_raw, 4)} → ${number(judged.mean_denoised, 4)}`],
    ["Removed", judged.removed_noise === undefined ? "" : `${number(judged.removed_noise)} × expected noise`],
    ["Error", judged.evidence == null ? "" : `about ${number(judged.evidence.error_ratio)} × raw (squared)`],
    ["Hot pixels", facts.spikes === undefined ? "" : `${facts.spikes}`],
    ["Weights", record?.weights],
    ["Ran on", facts.backend ?? record?.backend],
  ]);
}

function taken({ record }) {
  const found = record?.acquisition ?? {};
  return table("Taken", Object.entries(TAKEN).map(([key, [name, words]]) =>
    [name, found[key] === undefined || found[key] === "unknown" ? "" : words(found[key])]));
}

function timings({ timings: ledger, record }) {
  const seconds = Object.entries({ ...record?.seconds, ...ledger }).filter(([, value]) => value > 0);
  if (!seconds.length) return [];
  const total = seconds.reduce((sum, [, value]) => sum + value, 0);
  const bar = element("div", "steps", "", { "aria-hidden": "true" });
  const legend = element("div", "legend");
  for (const [step, value] of seconds) {
    const part = element("i");
    part.style.flexBasis = `${(100 * value) / total}%`;
    const label = element("span", "", `${step} ${value < 1 ? `${Math.ceil(1000 * value)} ms` : duration(value)}`);
    for (const one of [part, label]) one.style.setProperty("--tone", STEPS[step] ?? "#66717d");
    bar.append(part);
    legend.append(label);
  }
  return [element("h3", "", `Time: ${duration(total)}`), bar, legend];
}

/** The result's files to save, and texts to copy. */
function files(micrograph) {
  const row = element("div", "files");
  if (micrograph.shown) {
    for (const [part, words] of [["image", "Image"], ["preview", "PNG"], ["record", "Record"]]) {
      row.append(element("a", "button", words, { href: `file/${micrograph.id}/${part}`, download: "", title: `Save the ${part}` }));
    }
  }
  const { files: places } = micrograph;
  if (places) row.append(copier("Copy path", places.result ?? places.raw));
  const why = [micrograph.error, ...(micrograph.record?.verdict?.reasons ?? micrograph.facts.reasons ?? [])].filter(Boolean);
  if (why.length) row.append(copier("Copy reason", why.join("\n")));
  return row.children.length ? [element("h3", "", "Files"), row] : [];
}

function copier(words, text) {
  const button = element("button", "", words, { type: "button", title: text });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser refuses";
    }
    setTimeout(() => (button.textContent = words), 1500);
  });
  return button;
}

function remarks({ record, warning, missing }) {
  const reasons = new Set(record?.verdict?.reasons ?? []);
  const texts = (record?.warnings ?? (warning ? [warning] : [])).filter((text) => !reasons.has(text));
  const all = [...(missing ? [missing] : []), ...texts];
  return all.length ? [element("h3", "", "Remarks"), ...bullets(all)] : [];
}
