// The judging page in the browser. The server decides what is shown and what was judged; this draws it and sends answers: one at a
// time, the next only after the last is kept, and each under a name of its own (`once`), so that sending it twice counts once.

import { draftOf, keepDraft, openDrafts } from "./drafts.js";
import * as keys from "./keys.js";
import { looking, openSettings } from "./look.js";
import * as order from "./order.js";
import * as pages from "./pages.js";
import { regionBox } from "./region.js";
import { ask, sleep } from "./server.js";
import { learn, say, sayAll } from "./words.js";

const UNSEEN = new Set(["skip", "disturbing"]); // may be said of an image that is hidden or does not load
const GUARD_MS = 150; // after a change of image: sooner than anyone can have looked at it
const HOLD_MS = 300; // a finger that rests on an image
const CAMPAIGN = new URLSearchParams(location.search).get("campaign");
const API = `/api/campaigns/${encodeURIComponent(CAMPAIGN)}`;

const $ = (id) => document.getElementById(id);
const memory = { // comforts of this tab, lost without harm
  get: (key) => { try { return JSON.parse(sessionStorage.getItem(`hfi-${key}`)); } catch { return null; } },
  set: (key, value) => { try { sessionStorage.setItem(`hfi-${key}`, JSON.stringify(value)); } catch { /* a private tab */ } },
};

let state = null; // the server's last answer
let about = null; // what is asked, of the whole campaign
let once = ""; // the name of the answer to come
let ready = false; // the images of the task in hand are on the screen
let busy = false; // something is on its way to the server
let failed = false; // an image of the task in hand does not load
let hidden = memory.get("hidden") === true; // images are hidden, until asked to show them
let covered = false; // this one is: it was found too disturbing before
let draft = null; // what was begun for the task in hand
let latest = -1; // the image that was given a place last
let seen = { start: 0, since: 0, ms: 0 }; // time for which the task was in sight
const loaded = new Map(); // src -> <img>, of this task and the next
const pace = memory.get(`pace-${CAMPAIGN}`) || []; // ms of the last judgments
const look = looking(() => refresh());
const region = regionBox((box) => {
  change({ region: box });
  hear(region.layer.getAttribute("aria-label"));
});

const away = () => hidden || covered;
const task = () => state && state.task;
const kind = () => about.kind;

// --- talking to the server ---

const talk = (path, body) => ask(path, body, {
  down: (why) => {
    if (body !== undefined) saved(say("unsaved"), "waiting");
    trouble(say(`server.${why}`));
  },
  up: () => trouble(""),
});

async function send(path, body, said) {
  if (busy) return;
  busy = true;
  paint();
  try {
    const before = state.done;
    const next = await talk(path, body);
    busy = false;
    await show(next, said(next, before));
  } catch (problem) { // refused: nothing was kept; the server knows where we are
    busy = false;
    if (await refetch()) trouble(say("refused", { why: problem.message }).trim());
  }
}

// The verdict and ranking behind an answer's name.
function meaning(name) {
  const rankings = { ranked: draft.groups, left: [[0], [1]], right: [[1], [0]], same: [[0, 1]] };
  return name in rankings ? { verdict: "ranked", ranking: rankings[name] } : { verdict: name };
}

function answer(name) {
  const may = task() && !busy && (ready ? !away() || UNSEEN.has(name) : failed && UNSEEN.has(name));
  if (!may) {
    if (ready && away() && !busy) saved(say("look-first", { key: keys.label("reveal") }), "waiting");
    return;
  }
  if (performance.now() - seen.start < GUARD_MS || (name === "same" && !about.ties)) return;
  if (name === "ranked" && draft.groups.flat().length < task().images.length) {
    saved(say("place-all"), "waiting");
    return;
  }
  const elapsed = Math.min(Math.round(inSight()), 86400000);
  const body = { token: task().token, once, elapsed_ms: elapsed, ...meaning(name), ...look.sofar() };
  if (draft.comment.trim()) body.comment = draft.comment.trim();
  if (name === "shows" && region.box()) body.region = region.box();
  change({ history: [] });
  document.querySelector(`[data-kind="${kind()}"] [data-answer="${name}"], .hfi-answers > [data-answer="${name}"]`).classList.add("hfi-sent");
  send("/api/judge", body, () => {
    pace.push(elapsed);
    pace.splice(0, pace.length - 20);
    memory.set(`pace-${CAMPAIGN}`, pace);
    const words = name === "none" && kind() === "compare" ? "neither" : name;
    return name === "disturbing" ? say("saved.disturbing") : say("saved", { said: say(`said.${words}`) });
  });
}

function undo() {
  if (!state || busy || state.rest || state.stopped) return;
  if (ready && draft.history.length) { // first the places given so far
    change({ groups: draft.history.at(-1), history: draft.history.slice(0, -1) });
    paint();
    return;
  }
  if (!state.done) { saved(say("undo.nothing"), "waiting"); return; }
  send(`${API}/undo`, { done: state.done }, (next, before) => (
    next.done === before ? say("undo.nothing") : say(next.covered ? "undo.hidden" : "undo.done")));
}

// --- drawing ---

function picture(src) {
  if (!loaded.has(src)) {
    const img = new Image();
    img.draggable = false;
    img.src = src;
    loaded.set(src, img);
  }
  return loaded.get(src);
}

const isPlain = (img) => !new URL(img.src).search;

async function show(next, words = "") {
  state = next;
  about = next.campaign ?? about;
  openDrafts(next.person);
  look.open(next.person);
  ready = failed = false;
  once = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  covered = next.covered === true;
  latest = -1;
  draft = task() ? draftOf(task().token) : draftOf("");
  look.begin();
  const firsts = (one) => (one ? one.images.map(look.veiled) : []);
  const wanted = [...firsts(next.task), ...firsts(next.ahead)];
  for (const src of loaded.keys()) if (!wanted.includes(src)) loaded.delete(src);
  for (const button of document.querySelectorAll(".hfi-sent")) button.classList.remove("hfi-sent");
  $("hfi-page").dataset.mode = task() ? "task" : "done";
  $("hfi-words").value = draft.comment;
  comment(false);
  trouble("");
  dress();
  facts();
  if (words) saved(words);
  if (!task()) {
    const page = next.stopped ? pages.stopped : next.rest ? pages.rest : pages.done;
    page($("hfi-done"), next, kind());
    paint();
    return;
  }
  pages.nothing($("hfi-done"));
  const pictures = task().images.map(look.veiled).map(picture);
  $("hfi-frame").dataset.kind = kind();
  $("hfi-frame").replaceChildren(...pictures.map(cell));
  region.begin(kind() === "binary" ? draft.region : null);
  if (kind() === "binary") $("hfi-frame").querySelector(".hfi-pane").append(region.layer);
  paint();
  try {
    await Promise.all(pictures.map((img) => img.decode()));
    if (state !== next) return;
    $("hfi-frame").classList.toggle("hfi-tiny", pictures.every((img) => Math.max(img.naturalWidth, img.naturalHeight) < 200));
    ready = true;
    hear(say(next.total === null ? "next.many" : "next", { number: next.done + 1, total: next.total }));
  } catch {
    if (state !== next) return;
    fail(pictures);
  }
  const now = performance.now();
  seen = { start: now, since: 0, ms: 0 };
  clock();
  refresh();
  if (next.ahead) next.ahead.images.map(look.veiled).forEach((src) => picture(src).decode().catch(() => loaded.delete(src)));
}

function fail(pictures) {
  failed = true;
  pictures.forEach((img) => loaded.delete(img.getAttribute("src")));
  trouble(say("unloaded"));
}

function cell(img, place) {
  const ranking = kind() === "ranking";
  const made = document.createElement(ranking ? "button" : "div");
  made.className = "hfi-cell";
  made.dataset.place = place;
  const pane = document.createElement("div");
  pane.className = "hfi-pane";
  pane.append(img);
  made.append(pane);
  if (ranking) {
    const badge = document.createElement("span");
    badge.className = "hfi-rank";
    const key = document.createElement("kbd");
    key.textContent = place + 1;
    made.append(badge, key);
  }
  made.addEventListener("pointermove", (event) => { // moved, that is: an image that comes under a resting pointer stays as it is
    if (event.pointerType !== "mouse" || !look.settings.hover || !ready || away() || !(event.movementX || event.movementY)) return;
    if (isPlain(pane.querySelector("img")) || event.buttons) return;
    look.reveal([place]);
  });
  made.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && look.settings.hover) look.cover(); });
  return made;
}

// The pictures that are to be seen now. A filter comes back at once; what is without one comes when it is loaded.
function refresh() {
  if (!task()) { paint(); return; }
  const now = state;
  for (const made of $("hfi-frame").children) {
    const place = Number(made.dataset.place);
    const src = look.source(task().images[place], place);
    const [img, shown] = [picture(src), made.querySelector("img")];
    if (img === shown) continue;
    if (!isPlain(img) || img.complete) { shown.replaceWith(img); continue; }
    img.decode().then(() => {
      if (state !== now || look.source(task().images[place], place) !== src) return;
      made.querySelector("img").replaceWith(img);
      paint();
    }).catch(() => { if (state === now) { loaded.delete(src); look.cover(); trouble(say("unloaded")); } });
  }
  paint();
}

// What stands on the page for as long as the campaign is the same.
function dress() {
  document.title = `${about.title} · hfi`;
  $("hfi-title").textContent = about.title;
  $("hfi-question").textContent = say(`question.${kind()}`, { title: about.title });
  $("hfi-simulated").hidden = !about.simulated;
  $("hfi-leave").textContent = say(about.accounts ? "sign-out" : "leave");
  $("hfi-guideline-text").innerHTML = about.guideline || `<p>${say("guideline.none")}</p>`; // HTML in it was made text by the server
  for (const set of document.querySelectorAll("[data-kind]")) if (set.id !== "hfi-frame") set.hidden = set.dataset.kind !== kind();
  document.querySelector('[data-answer="same"]').hidden = !about.ties;
  $("hfi-tie").hidden = !about.ties;
  $("hfi-region").hidden = kind() !== "binary";
  $("hfi-hint").hidden = kind() !== "ranking";
}

function paint() {
  const open = Boolean(task());
  const filter = look.filter();
  const pictures = [...$("hfi-frame").querySelectorAll(".hfi-cell img")];
  const bare = open && !away() && pictures.some(isPlain);
  if (open) look.tally(bare);
  $("hfi-page").dataset.size = look.settings.size;
  for (const button of document.querySelectorAll("[data-answer]")) {
    const unseen = UNSEEN.has(button.dataset.answer);
    const able = open && !busy && (ready ? !away() || unseen : failed && unseen);
    button.setAttribute("aria-disabled", String(!able)); // not `disabled`: that would throw the focus away at every image
  }
  $("hfi-undo").setAttribute("aria-disabled", String(busy || !state || (!state.done && !(draft && draft.history.length))));
  $("hfi-stage").classList.toggle("hfi-hidden", away());
  $("hfi-stage").classList.toggle("hfi-wait", open && !ready && !failed);
  $("hfi-frame").inert = away();
  $("hfi-cover").inert = !away();
  $("hfi-hide").setAttribute("aria-pressed", String(away()));
  $("hfi-region").setAttribute("aria-pressed", String(region.on()));
  $("hfi-comment").classList.toggle("hfi-has", Boolean(draft && draft.comment.trim()));
  $("hfi-veil").hidden = filter === "none" || away();
  $("hfi-veil-says").textContent = say(look.revealed() || filter === "none" ? "veil.off" : `veil.${filter}`);
  $("hfi-reveal-says").textContent = say(look.revealed() ? "cover" : "reveal");
  if (!open) return;
  const hint = { key: keys.label("reveal") };
  for (const made of $("hfi-frame").children) {
    const [img, place] = [made.querySelector("img"), Number(made.dataset.place)];
    const plain = isPlain(img) && !away();
    if (kind() !== "ranking") {
      const name = kind() === "binary" ? say("image") : say(place ? "image.right" : "image.left");
      img.alt = plain ? name : kind() === "binary" ? say("image.hidden", hint) : say("image.hidden.of", { ...hint, name });
      continue;
    }
    img.alt = "";
    const at = order.placeOf(draft.groups, place);
    made.classList.toggle("hfi-ranked", at > 0);
    made.classList.toggle("hfi-tied", order.tied(draft.groups, place));
    made.querySelector(".hfi-rank").textContent = at || "";
    const name = say("image.of", { number: place + 1 });
    const whole = at ? say(order.tied(draft.groups, place) ? "image.tied" : "image.placed", { name, at }) : say("image.unplaced", { name });
    made.setAttribute("aria-label", plain ? whole : say("image.hidden.of", { ...hint, name: whole }));
  }
  if (kind() === "ranking") {
    const given = draft.groups.flat().length;
    const left = task().images.length - given;
    $("hfi-hint").textContent = !left ? say("hint.full", { key: keys.label("ranked") }) : given ? say("hint.more", { left }) : say("hint.start");
  }
}

function facts() {
  const { person, done, total } = state;
  $("hfi-person").textContent = say("person", { person });
  $("hfi-count").textContent = total ? say("count", { done, total }) : total === null ? say("many", { done }) : "";
  const bar = $("hfi-progress");
  bar.hidden = total === null; // more than the server counts
  bar.setAttribute("aria-valuenow", done);
  bar.setAttribute("aria-valuemax", total);
  bar.firstElementChild.style.width = `${total ? (100 * done) / total : 0}%`;
  let words = "";
  if (pace.length >= 3 && done < total) {
    const middle = [...pace].sort((a, b) => a - b)[Math.floor(pace.length / 2)] / 1000;
    const left = (middle * (total - done)) / 60;
    const seconds = middle < 10 ? middle.toFixed(1) : Math.round(middle);
    words = left < 1 ? say("pace.last", { seconds }) : left < 90 ? say("pace.minutes", { seconds, left: Math.round(left) })
      : say("pace.hours", { seconds, left: (left / 60).toFixed(1) });
  }
  $("hfi-pace").textContent = words;
}

function saved(text, how = "kept") {
  const mark = $("hfi-saved");
  mark.className = how;
  mark.textContent = text;
  mark.classList.remove("hfi-flash");
  void mark.offsetWidth; // lets the animation start again
  mark.classList.add("hfi-flash");
}

function trouble(text) {
  $("hfi-trouble").hidden = !text;
  $("hfi-trouble").textContent = text;
}

const hear = (text) => { $("hfi-heard").textContent = text; };

// --- what one can do ---

function change(parts) {
  if (!task()) return;
  draft = { ...draft, ...parts };
  keepDraft(task().token, draft);
}

function hide(value) {
  hidden = value;
  covered = false;
  memory.set("hidden", hidden);
  clock();
  look.cover();
  paint();
}

function reveal() {
  if (!task()) return;
  if (away()) hide(false);
  else if (look.filter() === "none") hide(true);
  else if (look.revealed()) look.cover();
  else if (ready) {
    look.reveal(task().images.map((_, place) => place));
    hear(say("veil.off"));
  }
}

const orders = () => kind() === "ranking" && ready && !busy && !away();

// Changes the ranking by one of the functions of order.js.
function rank(how, place, ...more) {
  if (!orders() || place < 0 || place >= task().images.length) return;
  const next = how(draft.groups, place, ...more);
  if (JSON.stringify(next) === JSON.stringify(draft.groups)) return;
  change({ groups: next, history: [...draft.history, draft.groups].slice(-50) });
  latest = place;
  paint();
  hear($("hfi-frame").children[place].getAttribute("aria-label"));
}

// The image that keys speak of: the one that has the focus, or was given a place last.
function current() {
  const focused = document.activeElement?.closest?.(".hfi-cell");
  return focused ? Number(focused.dataset.place) : latest >= 0 ? latest : draft.groups.flat().at(-1) ?? -1;
}

function comment(open) {
  if ($("hfi-note").hidden === !open) return;
  $("hfi-note").hidden = !open;
  $("hfi-comment").setAttribute("aria-expanded", String(open));
  if (open) $("hfi-words").focus();
  else $("hfi-words").blur();
}

function inSight() {
  return seen.ms + (seen.since ? performance.now() - seen.since : 0);
}

// Lets the clock go on, unless the tab is in the back or images are hidden, for a break perhaps.
function clock() {
  seen = { ...seen, ms: inSight(), since: document.hidden || hidden ? 0 : performance.now() };
}

// Whether the campaign is there for this person.
async function refetch() {
  let found;
  try {
    found = await talk(`${API}/state`);
  } catch (problem) {
    $("hfi-page").dataset.mode = "refused";
    trouble(say("refused.campaign", { why: problem.message }));
    return false;
  }
  await show(found);
  return true;
}

const DO = {
  undo,
  reveal,
  hide: () => hide(!away()),
  panic: () => hide(true),
  comment: () => task() && comment($("hfi-note").hidden),
  region: () => {
    if (!task() || kind() !== "binary" || away()) return;
    region.toggle();
    if (region.on()) hear(say("region.how"));
    paint();
  },
  tie: () => about.ties && rank(order.tie, current()),
  settings: () => openSettings(look),
  keys: () => keys.open(kind(), about.ties, paint),
  stop: () => send(`${API}/stop`, {}, () => ""),
  "go-on": () => send(`${API}/go-on`, {}, () => ""),
  back: refetch,
};

// --- hands ---

function typing(target) {
  const field = target instanceof Element && target.closest("input, textarea, select, [contenteditable]:not([contenteditable='false'])");
  return Boolean(field) && !field.closest("dialog:not([open])"); // one that was just closed keeps the focus until the next frame
}

function onKey(event) {
  if (event.defaultPrevented || event.repeat || event.isComposing || event.keyCode === 229) return;
  const target = event.composedPath()[0];
  if (event.ctrlKey || event.altKey || event.metaKey || typing(target)) return;
  if (document.querySelector("dialog[open], [aria-modal='true']")) return;
  const key = keys.keyOf(event);
  const pressed = target instanceof Element && target.closest("button, a, summary");
  if (pressed && (key === "enter" || key === "space")) return; // that presses the button
  const way = { arrowleft: -1, arrowright: 1 }[key];
  if (region.key(key, event.shiftKey)) {
    // done
  } else if (kind() === "ranking" && /^[1-9]$/.test(key)) {
    rank(order.toggle, Number(key) - 1);
  } else if (kind() === "ranking" && way) {
    rank(order.move, current(), way);
  } else {
    const action = keys.actionOf(kind(), key);
    if (!action) return;
    if (DO[action]) DO[action]();
    else answer(action);
  }
  event.preventDefault();
}

function onClick(event) {
  const target = event.target instanceof Element ? event.target : null;
  const button = target?.closest("button");
  if (button && event.detail && !button.closest("dialog")) button.blur(); // a mouse: keys then mean what they say, and press no button
  if (button?.dataset.answer) answer(button.dataset.answer);
  else if (button?.dataset.do) DO[button.dataset.do]();
  else if (button?.dataset.place) {
    if (event.detail < 2) rank(order.toggle, Number(button.dataset.place)); // not by the second of a double click
  } else if (target?.closest(".hfi-cell") && event.pointerType === "mouse" && !region.on()) reveal();
}

function onVisibility() {
  clock();
  if (document.hidden) look.cover();
}

function writing() {
  const field = $("hfi-words");
  field.addEventListener("input", () => { change({ comment: field.value }); paint(); });
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || !(event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey)))) return;
    event.preventDefault(); // an Esc that leaves the field hides nothing
    comment(false);
  });
}

// A finger that rests on an image takes the filter off, for as long as it does.
function holding() {
  const frame = $("hfi-frame");
  let timer = 0;
  let held = false;
  frame.addEventListener("pointerdown", (event) => {
    const made = event.target.closest(".hfi-cell");
    if (event.pointerType !== "touch" || !made || region.on() || !ready || away() || look.filter() === "none") return;
    clearTimeout(timer);
    timer = setTimeout(() => { held = true; look.reveal([Number(made.dataset.place)]); }, HOLD_MS);
  });
  for (const type of ["pointerup", "pointercancel"]) {
    frame.addEventListener(type, (event) => {
      if (event.pointerType !== "touch") return;
      clearTimeout(timer);
      if (held) look.cover();
      setTimeout(() => { held = false; }, 100); // after the click, if there is one
    });
  }
  frame.addEventListener("click", (event) => { if (held) event.stopPropagation(); }, true); // to look at an image is not to rank it
  frame.addEventListener("contextmenu", (event) => { if (event.pointerType !== "mouse") event.preventDefault(); });
}

async function start() {
  if (!CAMPAIGN) { location.replace("/work"); return; }
  while (!$("hfi-page")) await sleep(20); // Gradio puts it there
  await learn();
  sayAll();
  keys.load();
  keys.paint();
  if (!(await refetch())) return;
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  document.addEventListener("visibilitychange", onVisibility);
  writing();
  holding();
  order.draggable($("hfi-frame"), orders, (place, other) => rank(order.insert, place, other));
}

start();
