// A ranking as groups of images, most of the concept first; images of one group share a place. Every function gives a new ranking.

const without = (groups, image) => groups.map((group) => group.filter((one) => one !== image)).filter((group) => group.length);
const groupOf = (groups, image) => groups.findIndex((group) => group.includes(image));

// 1 for the first; the place after two that share one is two later. 0 for an image that has none.
export function placeOf(groups, image) {
  const at = groupOf(groups, image);
  return at < 0 ? 0 : groups.slice(0, at).flat().length + 1;
}

export const tied = (groups, image) => (groups[groupOf(groups, image)] ?? []).length > 1;

// Gives the image the next place; takes it out where it has one.
export const toggle = (groups, image) => (groupOf(groups, image) < 0 ? [...groups, [image]] : without(groups, image));

// Gives the image the place of another, which moves back by one; the last place where the other has none.
export function insert(groups, image, other) {
  const rest = without(groups, image);
  const at = groupOf(rest, other);
  return at < 0 ? [...rest, [image]] : [...rest.slice(0, at), [image], ...rest.slice(at)];
}

// One place to the front (-1) or to the back (1); out of the place that it shares.
export function move(groups, image, by) {
  const at = groupOf(groups, image);
  const shared = tied(groups, image);
  if (at < 0 || (!shared && !groups[at + by])) return groups;
  const rest = without(groups, image);
  const to = shared ? at + (by > 0) : at + by;
  return [...rest.slice(0, to), [image], ...rest.slice(to)];
}

// Gives the image the place of the one before; again: a place of its own.
export function tie(groups, image) {
  const at = groupOf(groups, image);
  if (at < 0) return groups;
  if (tied(groups, image)) return move(groups, image, 1);
  if (!at) return groups;
  return [...groups.slice(0, at - 1), [...groups[at - 1], image], ...groups.slice(at + 1)];
}

// Lets the cells of `frame` be dragged onto one another, by mouse, pen or finger: `drop(place, other)`. `may()`: whether they can be now.
export function draggable(frame, may, drop) {
  const FAR = 8; // px: less is a click with an unsteady hand
  let from = null; // what is held: the cell, and where it was taken
  let target = null;

  const aim = (cell) => {
    target?.classList.remove("hfi-target");
    target = cell;
    target?.classList.add("hfi-target");
  };

  function end(done) {
    if (!from) return;
    const { cell, moved } = from;
    const other = target;
    aim(null);
    from = null;
    cell.classList.remove("hfi-dragged");
    cell.style.transform = "";
    if (!moved) return;
    cell.blur(); // the mouse gave it the focus, and Enter would press it
    frame.addEventListener("click", swallow, { capture: true, once: true }); // the click that ends a drag is none
    setTimeout(() => frame.removeEventListener("click", swallow, { capture: true }), 0);
    if (done && other) drop(Number(cell.dataset.place), Number(other.dataset.place));
  }

  function swallow(event) {
    event.stopPropagation();
    event.preventDefault();
  }

  frame.addEventListener("pointerdown", (event) => {
    const cell = event.target.closest("button.hfi-cell");
    if (!cell || event.button || from || !may()) return;
    from = { cell, id: event.pointerId, x: event.clientX, y: event.clientY, moved: false };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!from || event.pointerId !== from.id) return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (!from.moved && Math.hypot(x, y) < FAR) return;
    if (!may()) { end(false); return; }
    if (!from.moved) {
      from.moved = true;
      from.cell.setPointerCapture(event.pointerId);
      from.cell.classList.add("hfi-dragged");
    }
    from.cell.style.transform = `translate(${x}px, ${y}px)`;
    const under = document.elementsFromPoint(event.clientX, event.clientY).map((node) => node.closest("button.hfi-cell"));
    aim(under.find((cell) => cell && cell !== from.cell) ?? null);
  });
  frame.addEventListener("pointerup", (event) => { if (from?.id === event.pointerId) end(true); });
  frame.addEventListener("pointercancel", (event) => { if (from?.id === event.pointerId) end(false); });
}
