"use strict";
/* A box on an image, drawn, moved and resized by mouse, touch and keyboard; in whole pixels of the image. */

// makeBox(stage, frame, changed): `stage` wraps the image, `frame` is the box, `changed` is called after each change
function makeBox(stage, frame, changed) {
  // Pixels on the screen: what is smaller was a click; what is little has no room for eight handles
  const LEAST = 8, LITTLE = 90;
  const KEYS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  let size = [0, 0], box = null, drag = null;

  const limit = (value, low, high) => Math.min(Math.max(value, low), high);

  function show() {
    frame.hidden = !box;
    if (box) {
      const area = stage.getBoundingClientRect();
      frame.classList.toggle("little", Math.min((box[2] - box[0]) * area.width / size[0],
                                                (box[3] - box[1]) * area.height / size[1]) < LITTLE);
      frame.style.left = 100 * box[0] / size[0] + "%";
      frame.style.top = 100 * box[1] / size[1] + "%";
      frame.style.width = 100 * (box[2] - box[0]) / size[0] + "%";
      frame.style.height = 100 * (box[3] - box[1]) / size[1] + "%";
    }
    changed(box);
  }

  // Corners in order, inside the image, at least a pixel apart
  function set(corners) {
    if (corners) {
      const [x1, x2] = [corners[0], corners[2]].sort((a, b) => a - b);
      const [y1, y2] = [corners[1], corners[3]].sort((a, b) => a - b);
      const left = limit(Math.round(x1), 0, size[0] - 1), top = limit(Math.round(y1), 0, size[1] - 1);
      corners = [left, top, limit(Math.round(x2), left + 1, size[0]), limit(Math.round(y2), top + 1, size[1])];
    }
    box = corners;
    show();
  }

  function move(by) {
    const dx = limit(by[0], -box[0], size[0] - box[2]), dy = limit(by[1], -box[1], size[1] - box[3]);
    set([box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy]);
  }

  function pixel(event) {
    const area = stage.getBoundingClientRect();
    return [(event.clientX - area.left) * size[0] / area.width, (event.clientY - area.top) * size[1] / area.height];
  }

  // What lies under the pointer: sides, such as "n" or "se"; "move", inside the box; "new", outside
  function grabbed(event) {
    if (!box) return "new";
    const area = frame.getBoundingClientRect(), x = event.clientX, y = event.clientY;
    const reach = frame.classList.contains("little") ? 5 : 12;
    if (x < area.left - reach || x > area.right + reach || y < area.top - reach || y > area.bottom + reach) return "new";
    const near = (at, low, high, names) => Math.min(Math.abs(at - low), Math.abs(at - high)) > reach ? ""
      : names[Number(Math.abs(at - high) < Math.abs(at - low))];
    return near(y, area.top, area.bottom, "ns") + near(x, area.left, area.right, "we") || "move";
  }

  stage.addEventListener("pointerdown", event => {
    if (event.button || drag) return;
    event.preventDefault();
    drag = {id: event.pointerId, from: pixel(event), before: box, edge: grabbed(event)};
    stage.setPointerCapture(event.pointerId);
  });

  stage.addEventListener("pointermove", event => {
    if (!drag || event.pointerId !== drag.id) return;
    const [x, y] = pixel(event), before = drag.before;
    if (drag.edge === "new") {
      set([drag.from[0], drag.from[1], x, y]);
    } else if (drag.edge === "move") {
      box = before;
      move([Math.round(x - drag.from[0]), Math.round(y - drag.from[1])]);
    } else {
      const edge = drag.edge;
      set([edge.includes("w") ? x : before[0], edge.includes("n") ? y : before[1],
           edge.includes("e") ? x : before[2], edge.includes("s") ? y : before[3]]);
    }
  });

  function end(event) {
    if (!drag || event.pointerId !== drag.id) return;
    const area = stage.getBoundingClientRect(), fresh = drag.edge === "new";
    drag = null;
    if (fresh && box && Math.max((box[2] - box[0]) * area.width / size[0],
                                 (box[3] - box[1]) * area.height / size[1]) < LEAST) set(null);
    if (box) frame.focus({preventScroll: true});
  }
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);

  frame.addEventListener("keydown", event => {
    const by = KEYS[event.key];
    if (by && box && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      const step = Math.max(1, Math.round(Math.max(...size) / 100));
      const [dx, dy] = [by[0] * step, by[1] * step];
      if (event.shiftKey) {
        set([box[0], box[1], Math.max(box[2] + dx, box[0] + 1), Math.max(box[3] + dy, box[1] + 1)]);
      } else move([dx, dy]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      set(null);
    }
  });

  return {
    get: () => box,
    set: set,
    clear: () => set(null),
    // Another image, of so many pixels
    reset: (width, height) => { size = [width, height]; drag = null; set(null); },
  };
}
