// The keyboard. Some keys differ while a line profile is open; fields and dialogs keep theirs.

const LINE_TURN = 5;
const LINE_LONGER = 1.1;

/** Whether a field uses this key itself. */
function keeps(field, key) {
  if (!(field instanceof HTMLInputElement)) return false;
  if (key === "Escape") return false;
  return { checkbox: key === " ", range: key.startsWith("Arrow") || key.startsWith("Page") }[field.type] ?? true;
}

/** `page`: the object whose methods the keys call. */
export function keys(page) {
  const { viewer, line, strip } = page;
  const pan = (x, y) => viewer.pan((x * viewer.canvas.width) / 8, (y * viewer.canvas.height) / 8);
  const always = {
    n: () => page.follow(!page.following),
    c: () => page.view("compare"),
    r: () => page.view("residual"),
    f: () => page.view("spectrum"),
    t: () => page.view("session"),
    b: () => page.view("table"),
    l: () => page.toggleLine(),
    h: () => page.toggleContrast(),
    a: () => page.histogram.contrast.auto(),
    v: () => strip.nextFilter(),
    m: () => viewer.setSplit(0.5),
    ",": () => viewer.setSplit(viewer.split - 0.02),
    ".": () => viewer.setSplit(viewer.split + 0.02),
    " ": () => viewer.setSplit(viewer.split > 0.5 ? 0 : 1),
    "+": () => page.zoom("in"),
    "=": () => page.zoom("in"),
    "-": () => page.zoom("out"),
    0: () => page.zoom("fit"),
    1: () => page.zoom("full"),
    "?": () => page.help(),
    PageDown: () => strip.older(),
    PageUp: () => strip.newer(),
    Escape: () => (line.open ? line.close() : page.histogram.close()),
    "Shift ArrowLeft": () => pan(1, 0),
    "Shift ArrowRight": () => pan(-1, 0),
    "Shift ArrowUp": () => pan(0, 1),
    "Shift ArrowDown": () => pan(0, -1),
  };
  const browsing = { ArrowRight: () => strip.step(1), ArrowLeft: () => strip.step(-1) };
  const measuring = {
    ArrowLeft: () => line.move(-1, 0),
    ArrowRight: () => line.move(1, 0),
    ArrowUp: () => line.move(0, -1),
    ArrowDown: () => line.move(0, 1),
    "[": () => line.change(-LINE_TURN, 1),
    "]": () => line.change(LINE_TURN, 1),
    "{": () => line.change(0, 1 / LINE_LONGER),
    "}": () => line.change(0, LINE_LONGER),
    w: () => line.widen(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || page.helping) return;
    const target = event.target;
    if (target instanceof HTMLSelectElement || keeps(target, event.key)) return;
    if (event.key === " " && target instanceof HTMLButtonElement) return;
    const name = event.shiftKey && event.key.startsWith("Arrow") ? `Shift ${event.key}` : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = (line.open ? measuring : browsing)[name] ?? always[name];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
