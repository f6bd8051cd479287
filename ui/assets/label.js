// The labeling page in the browser. The server decides what is shown and what was judged; this draws it and sends answers:
// one at a time, the next only after the last is kept, and each under a name of its own (`once`), so that sending it twice counts once.
(() => {
  "use strict";

  const SAID = {
    shows: "shows it", clean: "does not", unsure: "unsure", skip: "skipped", disturbing: "too disturbing",
    ranked: "ranked", none: "none shows it",
  };
  const BINARY = { j: "shows", 1: "shows", f: "clean", 2: "clean", u: "unsure", s: "skip", x: "disturbing" };
  const RANKING = { enter: "ranked", n: "none", u: "unsure", s: "skip", x: "disturbing" };
  const COMMON = { z: "undo", backspace: "undo", escape: "panic", h: "hide", "?": "keys" };
  const HELP = {
    binary: [["J or 1", "Shows it"], ["F or 2", "Does not"]],
    ranking: [["1 to 5", "Put this image next; again: take it out"], ["Enter", "Save this order"], ["N", "None shows it"]],
    common: [["U", "Unsure"], ["S", "Skip"], ["X", "Too disturbing"], ["Z or Backspace", "Undo, as often as you like"],
      ["Esc", "Hide at once"], ["H", "Hide, show again"], ["?", "This list"]],
  };
  const UNSEEN = new Set(["skip", "disturbing"]); // may be said of an image that is hidden or does not load
  const GUARD_MS = 150; // after a change of image: sooner than anyone can have looked at it
  const WAITS_MS = [500, 1000, 2000, 4000]; // between tries while the server cannot be reached

  const $ = (id) => document.getElementById(id);
  const memory = { // comforts of this tab, lost without harm
    get: (key) => { try { return JSON.parse(sessionStorage.getItem(`hfi-${key}`)); } catch { return null; } },
    set: (key, value) => { try { sessionStorage.setItem(`hfi-${key}`, JSON.stringify(value)); } catch { /* a private tab */ } },
  };

  let state = null; // the server's last answer
  let once = ""; // the name of the answer to come
  let ready = false; // the images of the task in hand are on the screen
  let busy = false; // something is on its way to the server
  let failed = false; // an image of the task in hand does not load
  let hidden = memory.get("hidden") === true; // images are hidden, until asked to show them
  let covered = false; // this one is: it was found too disturbing before
  let ranks = []; // places of the images in the order given so far
  let seen = { since: 0, ms: 0 }; // time for which the task was in sight
  const loaded = new Map(); // src -> <img>, of this task and the next
  const pace = memory.get("pace") || []; // ms of the last judgments

  const away = () => hidden || covered;
  const campaign = `/api/campaigns/${new URLSearchParams(location.search).get("campaign")}`;
  const ranking = () => Boolean(document.querySelector('[data-verdict="ranked"]'));

  // --- talking to the server ---

  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

  async function ask(path, body) {
    for (let tries = 0; ; tries += 1) {
      let answer = null;
      try {
        answer = await fetch(path, body === undefined ? { cache: "no-store" } : {
          method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
        });
      } catch { /* out of reach: the same again, later */ }
      if (answer && answer.status < 500) {
        trouble("");
        if (answer.status === 401) { location.assign("/"); return new Promise(() => {}); }
        const found = await answer.json();
        if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : "the server did not take this answer");
        return found;
      }
      if (body !== undefined) saved("Not saved yet", "waiting");
      trouble(answer
        ? "The server has a problem, so nothing moves on until your answer is kept. Trying again; the terminal says more."
        : "The server cannot be reached. Your answer is kept here and sent as soon as it is back.");
      await sleep(WAITS_MS[Math.min(tries, WAITS_MS.length - 1)]);
    }
  }

  async function send(path, body, said) {
    if (busy) return;
    busy = true;
    paint();
    try {
      const before = state.done;
      const next = await ask(path, body);
      busy = false;
      await show(next);
      saved(said(next, before));
    } catch (problem) { // refused: nothing was kept; the server knows where we are
      busy = false;
      const next = await ask(`${campaign}/state`);
      await show(next);
      trouble(`${problem.message[0].toUpperCase()}${problem.message.slice(1)}.`);
    }
  }

  function judge(verdict) {
    const may = state && state.task && !busy && (ready ? !away() || UNSEEN.has(verdict) : failed && UNSEEN.has(verdict));
    if (!may) {
      if (ready && away() && !busy) saved("Hidden: press H to look first", "waiting");
      return;
    }
    if (performance.now() - seen.start < GUARD_MS) return;
    if (verdict === "ranked" && ranks.length < state.task.images.length) {
      saved("Give every image a place first", "waiting");
      return;
    }
    const elapsed = Math.min(Math.round(inSight()), 86400000);
    const body = { token: state.task.token, verdict, once, elapsed_ms: elapsed };
    if (verdict === "ranked") body.ranking = ranks;
    const button = document.querySelector(`[data-verdict="${verdict}"]`);
    if (button) button.classList.add("hfi-sent");
    send("/api/judge", body, (next) => {
      pace.push(elapsed);
      pace.splice(0, pace.length - 20);
      memory.set("pace", pace);
      facts(next);
      return `Saved: ${SAID[verdict]}`;
    });
  }

  function undo() {
    if (!state || busy) return;
    if (ranks.length && ready) { // first the places given so far
      ranks.pop();
      paint();
      return;
    }
    if (!state.done) { saved("Nothing to undo", "waiting"); return; }
    send(`${campaign}/undo`, { done: state.done }, (next, before) => (
      next.done === before ? "Nothing to undo" : next.covered ? "Taken back, and hidden" : "Taken back: judge it again"));
  }

  // --- drawing ---

  function picture(src) {
    if (!loaded.has(src)) {
      const img = new Image();
      img.alt = "";
      img.draggable = false;
      img.src = src;
      loaded.set(src, img);
    }
    return loaded.get(src);
  }

  async function show(next) {
    state = next;
    ready = failed = false;
    once = crypto.randomUUID();
    ranks = [];
    covered = next.covered === true;
    const task = next.task;
    const wanted = [...(task ? task.images : []), ...(next.ahead ? next.ahead.images : [])];
    for (const src of loaded.keys()) if (!wanted.includes(src)) loaded.delete(src);
    for (const button of document.querySelectorAll(".hfi-sent")) button.classList.remove("hfi-sent");
    facts(next);
    $("hfi-stage").hidden = !task;
    $("hfi-done").hidden = Boolean(task);
    if (!task) { finish(next); paint(); return; }
    const pictures = task.images.map(picture);
    $("hfi-frame").replaceChildren(...pictures.map((img, place) => cell(img, place, pictures.length)));
    paint();
    try {
      await Promise.all(pictures.map((img) => img.decode()));
      if (state !== next) return;
      const small = pictures.every((img) => Math.max(img.naturalWidth, img.naturalHeight) < 200);
      $("hfi-frame").classList.toggle("hfi-small", small);
      const kept = memory.get("ranks");
      if (kept && kept.token === task.token && ranking()) ranks = kept.ranks;
      ready = true;
    } catch {
      if (state !== next) return;
      failed = true;
      task.images.forEach((src) => loaded.delete(src));
      trouble("This image does not load. Skip it, or reload the page to try again.");
    }
    const now = performance.now();
    seen = { start: now, since: document.hidden ? 0 : now, ms: 0 };
    paint();
    if (next.ahead) next.ahead.images.forEach((src) => picture(src).decode().catch(() => loaded.delete(src)));
  }

  function cell(img, place, count) {
    if (count === 1) {
      img.alt = "The image to judge";
      return img;
    }
    img.alt = `Image ${place + 1} of ${count}`;
    const button = document.createElement("button");
    button.className = "hfi-cell";
    button.dataset.place = place;
    const badge = document.createElement("span");
    badge.className = "hfi-rank";
    const key = document.createElement("kbd");
    key.textContent = place + 1;
    button.append(img, badge, key);
    return button;
  }

  function paint() {
    const open = Boolean(state && state.task);
    for (const button of document.querySelectorAll("[data-verdict]")) {
      const unseen = UNSEEN.has(button.dataset.verdict);
      const able = open && !busy && (ready ? !away() || unseen : failed && unseen);
      button.setAttribute("aria-disabled", String(!able)); // not `disabled`: that would throw the focus away at every image
    }
    $("hfi-undo").setAttribute("aria-disabled", String(busy || !state || (!state.done && !ranks.length)));
    $("hfi-stage").classList.toggle("hfi-hidden", away());
    $("hfi-stage").classList.toggle("hfi-wait", open && !ready && !failed);
    $("hfi-frame").inert = away();
    $("hfi-cover").inert = !away();
    const hide = $("hfi-hide");
    hide.setAttribute("aria-pressed", String(away()));
    hide.firstChild.textContent = `${away() ? "Show" : "Hide"} ${ranking() ? "images" : "image"} `;
    for (const button of document.querySelectorAll(".hfi-cell")) {
      const rank = ranks.indexOf(Number(button.dataset.place));
      button.classList.toggle("hfi-ranked", rank >= 0);
      button.querySelector(".hfi-rank").textContent = rank < 0 ? "" : `${rank + 1}`;
      button.setAttribute("aria-label", `Image ${Number(button.dataset.place) + 1}${rank < 0 ? "" : `, place ${rank + 1}`}`);
    }
    const hint = $("hfi-hint");
    if (ranking() && state && state.task) {
      const left = state.task.images.length - ranks.length;
      hint.textContent = !left ? "Every image has a place: save the order with Enter."
        : ranks.length ? `Now the one that shows it most of the ${left} left.` : "Start with the one that shows it most: click it, or press its number.";
      memory.set("ranks", ready ? { token: state.task.token, ranks } : memory.get("ranks"));
    }
  }

  function facts({ person, done, total }) {
    $("hfi-person").textContent = `Judging as ${person}`;
    $("hfi-count").textContent = total ? `${done} of ${total}` : "";
    const bar = $("hfi-progress");
    bar.setAttribute("aria-valuenow", done);
    bar.setAttribute("aria-valuemax", total);
    bar.firstElementChild.style.width = `${total ? (100 * done) / total : 0}%`;
    let words = "";
    if (pace.length >= 3 && done < total) {
      const middle = [...pace].sort((a, b) => a - b)[Math.floor(pace.length / 2)] / 1000;
      const left = (middle * (total - done)) / 60;
      words = `${middle < 10 ? middle.toFixed(1) : Math.round(middle)} s each, `
        + (left < 1 ? "less than a minute left" : `about ${left < 90 ? `${Math.round(left)} min` : `${(left / 60).toFixed(1)} h`} left`);
    }
    $("hfi-pace").textContent = words;
  }

  function finish({ done, total, verdicts, next }) {
    const box = $("hfi-done");
    const add = (tag, text, parent = box) => {
      const made = document.createElement(tag);
      made.textContent = text;
      parent.append(made);
      return made;
    };
    box.replaceChildren();
    if (!done) {
      add("h2", "Nothing is left to judge");
      add("p", "Enough people have judged every image of this campaign. Thank you for coming.");
    } else {
      add("h2", "All done");
      add("p", `You judged ${done === 1 ? "one item" : `all ${total}`}. Thank you.`);
      const list = add("dl", "");
      for (const [verdict, said] of Object.entries(SAID)) {
        if (verdicts[verdict]) { add("dt", said, list); add("dd", verdicts[verdict], list); }
      }
    }
    add("p", "Next, in the terminal:");
    add("code", next);
    if (done) add("p", "Second thoughts? Undo brings the last one back.");
  }

  function saved(text, kind = "kept") {
    const mark = $("hfi-saved");
    mark.className = kind;
    mark.textContent = text;
    mark.classList.remove("hfi-flash");
    void mark.offsetWidth; // lets the animation start again
    mark.classList.add("hfi-flash");
  }

  function trouble(text) {
    $("hfi-trouble").hidden = !text;
    $("hfi-trouble").textContent = text;
  }

  function hide(value) {
    hidden = value;
    covered = false;
    memory.set("hidden", hidden);
    paint();
  }

  function place(number) {
    if (!ready || busy || away() || number >= state.task.images.length) return;
    ranks = ranks.includes(number) ? ranks.filter((other) => other !== number) : [...ranks, number];
    paint();
  }

  function inSight() {
    return seen.ms + (seen.since ? performance.now() - seen.since : 0);
  }

  function help() {
    const list = $("hfi-keys-list");
    list.replaceChildren();
    for (const [keys, does] of [...HELP[ranking() ? "ranking" : "binary"], ...HELP.common]) {
      const dt = document.createElement("dt");
      dt.append(...keys.split(/( or | to )/).map((part, i) => {
        if (i % 2) return part;
        const key = document.createElement("kbd");
        key.textContent = part;
        return key;
      }));
      const dd = document.createElement("dd");
      dd.textContent = does;
      list.append(dt, dd);
    }
    $("hfi-keys").showModal();
  }

  // --- hands ---

  const ACTIONS = { undo, keys: help, panic: () => hide(true), hide: () => hide(!away()) };

  function typing(target) {
    return target instanceof Element && Boolean(target.closest("input, textarea, select, [contenteditable]:not([contenteditable='false'])"));
  }

  function onKey(event) {
    if (event.defaultPrevented || event.repeat || event.isComposing || event.keyCode === 229) return;
    if (event.ctrlKey || event.altKey || event.metaKey || typing(event.composedPath()[0])) return;
    if (document.querySelector("dialog[open], [aria-modal='true']")) return;
    let key = event.key.toLowerCase();
    if (!/^[\x21-\x7e]/.test(key)) key = event.code.replace(/^Key|^Digit/, "").toLowerCase(); // a keyboard of other letters
    const onButton = event.composedPath()[0] instanceof Element && event.composedPath()[0].closest("button, a, summary");
    if (key === "enter" && onButton) return; // that presses the button
    if (ranking() && /^[1-9]$/.test(key)) {
      place(Number(key) - 1);
    } else if (COMMON[key]) {
      ACTIONS[COMMON[key]]();
    } else {
      const verdict = (ranking() ? RANKING : BINARY)[key];
      if (!verdict) return;
      judge(verdict);
    }
    event.preventDefault();
  }

  function onClick(event) {
    const button = event.target instanceof Element && event.target.closest("button");
    if (!button) return;
    if (button.dataset.verdict) judge(button.dataset.verdict);
    else if (button.dataset.do) ACTIONS[button.dataset.do]();
    else if (button.dataset.place) {
      if (event.detail) button.blur(); // a mouse: Enter then saves the order, and does not press this image again
      place(Number(button.dataset.place));
    }
    else if (button.id === "hfi-keys-open") help();
  }

  function onVisibility() {
    const now = performance.now();
    if (document.hidden) seen = { ...seen, since: 0, ms: inSight() };
    else if (ready) seen = { ...seen, since: now };
  }

  async function start() {
    while (!["hfi-stage", "hfi-hint", "hfi-answers", "hfi-saved"].every($)) await sleep(20); // Gradio puts the page together piece by piece
    document.addEventListener("keydown", onKey);
    document.addEventListener("click", onClick);
    document.addEventListener("visibilitychange", onVisibility);
    await show(await ask(`${campaign}/state`));
  }

  start();
})();
