// Where in the image the concept is: one box, [x, y, width, height] in parts of the image, drawn by mouse, pen or finger, or by keys.

import { say } from "./words.js";

const LEAST = 0.01; // smaller is a click, not a box
const STEP = 0.02;
const FIRST = [0.25, 0.25, 0.5, 0.5]; // where a box begins that is made by keys

const within = (value, most = 1) => Math.min(Math.max(value, 0), most);
const tidy = (box) => box.map((value) => Math.round(value * 1e4) / 1e4);

// The box that spans two points.
const spanned = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.abs(ax - bx), Math.abs(ay - by)];
const moved = ([x, y, w, h], dx, dy) => [within(x + dx, 1 - w), within(y + dy, 1 - h), w, h];
const resized = ([x, y, w, h], dw, dh) => [x, y, Math.max(LEAST * 2, within(w + dw, 1 - x)), Math.max(LEAST * 2, within(h + dh, 1 - y))];

// `changed(box)` is told of every box that stands, null for none.
export function regionBox(changed) {
  let box = null;
  let on = false; // whether it can be drawn now
  let held = null; // a pointer that draws: { from, was }
  const layer = document.createElement("div");
  layer.className = "hfi-draw";
  layer.setAttribute("role", "application");
  const frame = document.createElement("div");
  frame.className = "hfi-box";
  layer.append(frame);

  function paint() {
    layer.classList.toggle("hfi-on", on);
    if (on) layer.tabIndex = 0;
    else layer.removeAttribute("tabindex");
    layer.setAttribute("aria-label", box ? say("region.at", Object.fromEntries(
      ["x", "y", "width", "height"].map((name, i) => [name, Math.round(box[i] * 100)]))) : say("region.none"));
    frame.hidden = !box;
    if (box) ["left", "top", "width", "height"].forEach((side, i) => { frame.style[side] = `${box[i] * 100}%`; });
  }

  function set(next) {
    box = next && tidy(next);
    paint();
    changed(box);
  }

  function at(event) {
    const area = layer.getBoundingClientRect();
    return [within((event.clientX - area.left) / area.width), within((event.clientY - area.top) / area.height)];
  }

  const inside = ([x, y]) => box && x > box[0] && x < box[0] + box[2] && y > box[1] && y < box[1] + box[3];

  layer.addEventListener("pointerdown", (event) => {
    if (!on || event.button || held) return;
    event.stopPropagation();
    layer.setPointerCapture(event.pointerId);
    const from = at(event);
    held = { id: event.pointerId, from, was: box, moving: inside(from) };
  });
  layer.addEventListener("pointermove", (event) => {
    if (!held || event.pointerId !== held.id) return;
    const to = at(event);
    box = held.moving ? moved(held.was, to[0] - held.from[0], to[1] - held.from[1]) : spanned(held.from, to);
    paint();
  });
  const end = (event) => {
    if (!held || event.pointerId !== held.id) return;
    const { was } = held;
    held = null;
    set(event.type === "pointerup" && box && Math.min(box[2], box[3]) >= LEAST ? box : was);
  };
  layer.addEventListener("pointerup", end);
  layer.addEventListener("pointercancel", end);

  return {
    layer,
    on: () => on,
    box: () => box,

    // For another image, with the box that was drawn on it before.
    begin(known) {
      [box, on, held] = [known, false, null];
      paint();
    },

    toggle() {
      on = !on;
      held = null;
      paint();
      if (on) layer.focus({ preventScroll: true });
      else layer.blur();
    },

    // Whether the key changes the box: arrows move it, with Shift they change its size, Delete takes it away.
    key(key, shift) {
      const way = { arrowleft: [-STEP, 0], arrowright: [STEP, 0], arrowup: [0, -STEP], arrowdown: [0, STEP] }[key];
      if (!on || (!way && key !== "delete")) return false;
      if (!way) set(null);
      else if (!box) set(FIRST);
      else set(shift ? resized(box, ...way) : moved(box, ...way));
      return true;
    },
  };
}
