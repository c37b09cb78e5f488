// Mouse, pen and touch on the micrograph: drag to move, wheel and pinch to zoom, and the divider.

const WHEEL = 0.0016;
const SLIDE = 0.02;

/** An event's point on the page, in pixels of the canvas. */
function on(viewer, event) {
  const box = viewer.canvas.getBoundingClientRect();
  const ratio = viewer.canvas.width / box.width;
  return { x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio };
}

export function gestures(viewer) {
  const { canvas } = viewer;
  const fingers = new Map();

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, on(viewer, event));
    canvas.classList.add("dragging");
    if (viewer.drawing && fingers.size === 1 && viewer.micrograph) viewer.begun = pixel(viewer, event);
  });

  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = on(viewer, event);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    fingers.set(event.pointerId, now);
    if (other) {
      viewer.begun = null;
      viewer.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
      viewer.zoom(distance(now, other) / Math.max(1, distance(before, other)), middle(now, other));
    } else if (viewer.begun) {
      viewer.setLine([...viewer.begun, ...pixel(viewer, event)]);
    } else {
      viewer.pan(now.x - before.x, now.y - before.y);
    }
  });

  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      fingers.delete(event.pointerId);
      viewer.begun = null;
      if (!fingers.size) canvas.classList.remove("dragging");
    });
  }

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 33 : 1;
    viewer.zoom(Math.exp(-event.deltaY * lines * WHEEL), on(viewer, event));
  }, { passive: false });

  canvas.addEventListener("dblclick", () => viewer.fit());
  slider(viewer);
}

function slider(viewer) {
  const { divider, canvas } = viewer;
  let held = false;
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    held = true;
  });
  divider.addEventListener("pointermove", (event) => {
    if (held) viewer.setSplit(on(viewer, event).x / canvas.width);
  });
  for (const end of ["pointerup", "pointercancel"]) divider.addEventListener(end, () => (held = false));
  divider.addEventListener("wheel", (event) => canvas.dispatchEvent(new WheelEvent("wheel", event)), { passive: true });
  divider.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -SLIDE, ArrowRight: SLIDE, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
    if (!(event.key in steps) || event.shiftKey) return;
    viewer.setSplit(viewer.split + steps[event.key]);
    event.preventDefault();
    event.stopPropagation();
  });
}

/** The pixel under the pointer, as [row, column] (whole numbers are the middles). */
function pixel(viewer, event) {
  const at = viewer.toImage(on(viewer, event));
  const { width, height } = viewer.micrograph.shown;
  const within = (value, side) => Math.min(side - 1, Math.max(0, value - 0.5));
  return [within(at.y, height), within(at.x, width)];
}

const distance = (one, other) => Math.hypot(one.x - other.x, one.y - other.y);
const middle = (one, other) => ({ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
