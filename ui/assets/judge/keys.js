// Keys: what each does, and the list in which people change them. A change is kept in this browser.

import { say } from "./words.js";

const ALL = ["binary", "ranking", "compare"];
const ACTIONS = { // kinds of questions that know it, and its keys; the first is the one that buttons show and that can be changed
  shows: [["binary"], ["j", "1"]],
  clean: [["binary"], ["f", "2"]],
  left: [["compare"], ["f", "arrowleft"]],
  right: [["compare"], ["j", "arrowright"]],
  same: [["compare"], ["t"]],
  ranked: [["ranking"], ["enter"]],
  tie: [["ranking"], ["t"]],
  none: [["ranking", "compare"], ["n"]],
  unsure: [ALL, ["u"]],
  skip: [ALL, ["s"]],
  disturbing: [ALL, ["x"]],
  reveal: [ALL, ["space"]],
  hide: [ALL, ["h"]],
  panic: [ALL, ["escape"]],
  undo: [ALL, ["z", "backspace"]],
  comment: [ALL, ["c"]],
  region: [["binary"], ["r"]],
  settings: [ALL, ["v"]],
  keys: [ALL, ["?"]],
};
const FIXED = { binary: [], compare: [], ranking: ["1", "2", "3", "4", "5", "6", "7", "8", "9", "arrowleft", "arrowright"] };
const NAMED = ["space", "enter", "escape", "backspace", "delete", "insert", "home", "end", "pageup", "pagedown",
  "arrowleft", "arrowright", "arrowup", "arrowdown"]; // beside those that print one character
const STORE = "hfi-keys";

let mine = {}; // action -> the key that this person gave it

const keysOf = (action) => {
  const [first, ...others] = ACTIONS[action][1];
  return [mine[action] ?? first, ...others];
};
const ofKind = (kind) => Object.keys(ACTIONS).filter((action) => ACTIONS[action][0].includes(kind));

// What stands against giving this key to the action: the other action that has it (or "fixed"), or "" for nothing.
function rival(action, key) {
  for (const kind of ACTIONS[action][0]) {
    if (FIXED[kind].includes(key)) return "fixed";
    const other = ofKind(kind).find((one) => one !== action && keysOf(one).includes(key));
    if (other) return other;
  }
  return "";
}

export function load() {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(STORE)) ?? {}; } catch { /* none, or no place to keep any */ }
  mine = Object.fromEntries(Object.entries(kept).filter(([action, key]) => action in ACTIONS && typeof key === "string"));
  for (const action of Object.keys(mine)) if (rival(action, mine[action])) delete mine[action]; // kept by another version of the page
}

function keep() {
  try { localStorage.setItem(STORE, JSON.stringify(mine)); } catch { /* for as long as this page is open, then */ }
}

// The key of an event, by the letter where it is a Latin one, else by its place on the keyboard.
export function keyOf(event) {
  const key = event.key.toLowerCase();
  return /^[\x21-\x7e]/.test(key) ? key : event.code.replace(/^Key|^Digit/, "").toLowerCase();
}

export const actionOf = (kind, key) => ofKind(kind).find((action) => keysOf(action).includes(key));

export const spell = (key) => (NAMED.includes(key) ? say(`key.${key}`) : key.toUpperCase());

export const label = (action) => spell(keysOf(action)[0]);

export function paint(root = document) {
  for (const mark of root.querySelectorAll("kbd[data-key]")) mark.textContent = label(mark.dataset.key);
}

// The list, of a campaign with or without `ties`. `changed()` is called after every change.
export function open(kind, ties, changed) {
  const [dialog, list, problem] = ["hfi-keys", "hfi-keys-list", "hfi-keys-problem"].map((id) => document.getElementById(id));
  let waiting = ""; // the action that the next key is for
  let took = false; // a key is down that was taken for one

  function draw() {
    list.replaceChildren(...ofKind(kind).filter((action) => ties || !["tie", "same"].includes(action)).map(line));
    if (kind === "ranking") list.append(hint("ranking"), hint("arrows"));
    paint();
    changed();
  }

  function line(action) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    name.textContent = say(`does.${action}`);
    const marks = document.createElement("span");
    for (const key of keysOf(action)) {
      const mark = document.createElement("kbd");
      mark.textContent = spell(key);
      marks.append(mark, " ");
    }
    const change = document.createElement("button");
    change.type = "button";
    change.className = "hfi-plain";
    change.dataset.action = action;
    change.textContent = say(waiting === action ? "keys.press" : "keys.change");
    change.setAttribute("aria-label", say("keys.change-of", { action: name.textContent }));
    change.addEventListener("click", () => wait(waiting === action ? "" : action));
    item.append(name, marks, change);
    return item;
  }

  function hint(name) {
    const item = document.createElement("li");
    item.textContent = say(`keys.${name}`);
    return item;
  }

  function wait(action) {
    const at = action || waiting;
    waiting = action;
    problem.textContent = action ? say("keys.waiting", { action: say(`does.${action}`), escape: spell("escape") }) : "";
    draw();
    list.querySelector(`[data-action="${at}"]`)?.focus();
  }

  function take(event) {
    if (!waiting || event.isComposing || ["Shift", "Control", "Alt", "Meta", "CapsLock", "Process"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    took = true;
    const [action, key] = [waiting, keyOf(event)];
    const own = keysOf(action).includes(key);
    if (key === "escape" && !own) { wait(""); return; }
    const against = event.ctrlKey || event.altKey || event.metaKey || !(key.length === 1 || NAMED.includes(key)) ? "odd" : rival(action, key);
    if (against) {
      problem.textContent = against === "odd" ? say("keys.odd") : say("keys.taken", {
        key: spell(key), action: against === "fixed" ? say("does.order") : say(`does.${against}`),
      });
      return;
    }
    if (!own) mine[action] = key;
    keep();
    wait("");
  }

  function lift(event) { // some browsers press a button when its space bar comes up
    if (took && event.key === " ") event.preventDefault();
    took = false;
  }

  function end() {
    dialog.removeEventListener("keydown", take, true);
    dialog.removeEventListener("keyup", lift, true);
    dialog.removeEventListener("close", end);
  }

  dialog.addEventListener("keydown", take, true);
  dialog.addEventListener("keyup", lift, true);
  dialog.addEventListener("close", end);
  document.getElementById("hfi-keys-reset").onclick = () => { mine = {}; keep(); wait(""); };
  problem.textContent = "";
  draw();
  dialog.showModal();
}
