// What stands in the image's place when there is none to judge: everything done, a break, the end of a day's work.

import { label } from "./keys.js";
import { lang, say } from "./words.js";

let clock = 0; // the countdown of a break

// Elements into `box`, whose heading takes the focus, so that it is read out.
function page(box, title) {
  clearInterval(clock);
  box.hidden = false;
  box.replaceChildren();
  const add = (tag, text, parent = box) => {
    const made = document.createElement(tag);
    made.textContent = text;
    parent.append(made);
    return made;
  };
  const heading = add("h2", title);
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  return add;
}

const today = ({ minutes, judgments }) => say(judgments === 1 ? "today.one" : "today.many", { judgments, minutes: Math.max(1, Math.round(minutes)) });

// What one can do next: buttons, as [action, words, class, action whose key they show], and the way to the list of campaigns.
function choices(add, ...buttons) {
  const line = add("div", "");
  line.className = "hfi-choices";
  const made = buttons.map(([action, key, kind, mark]) => {
    const button = add("button", `${say(key)} `, line);
    button.className = kind;
    button.dataset.do = action;
    if (mark) add("kbd", label(mark), button);
    return button;
  });
  add("a", say("home"), line).href = "/work";
  return made;
}

export function nothing(box) {
  clearInterval(clock);
  box.hidden = true;
  box.replaceChildren();
}

export function done(box, { done: count, verdicts, closed, next, today: sum }, kind) {
  const add = page(box, say(closed ? "closed.title" : count ? "done.title" : "nothing.title"));
  add("p", closed ? say("closed") : count ? say(count === 1 ? "done.one" : "done.many", { count }) : say("nothing"));
  if (count) {
    const list = add("dl", "");
    for (const [verdict, times] of Object.entries(verdicts)) {
      add("dt", say(`said.${verdict === "none" && kind === "compare" ? "neither" : verdict}`), list);
      add("dd", times, list);
    }
    add("p", today(sum));
  }
  if (next) {
    add("p", say("done.next"));
    add("code", next);
  }
  choices(add, ...(count && !closed ? [["undo", "done.undo", "hfi-plain", "undo"]] : []));
}

export function stopped(box, { today: sum }) {
  const add = page(box, say("stopped.title"));
  add("p", say("stopped"));
  if (sum.judgments) add("p", today(sum));
  choices(add, ["back", "stopped.back", "hfi-plain"]);
}

export function rest(box, { rest: { reason, seconds, may_end: free }, today: sum }) {
  const until = Date.now() + seconds * 1000;
  const add = page(box, say(`rest.${reason}.title`));
  add("p", say(`rest.${reason}`));
  add("p", today(sum));
  const left = add("p", free ? "" : say("rest.until", { time: new Date(until).toLocaleTimeString(lang, { hour: "numeric", minute: "2-digit" }) }));
  add("p", say("rest.tip")).className = "hfi-dim";
  if (!free) { choices(add); return; }
  left.className = "hfi-clock";
  left.setAttribute("role", "timer");
  const [go] = choices(add, ["go-on", "rest.early", "hfi-plain"], ["stop", "stop", "hfi-plain"]);
  const tick = () => {
    const more = Math.max(0, Math.ceil((until - Date.now()) / 1000));
    left.textContent = `${Math.floor(more / 60)}:${String(more % 60).padStart(2, "0")}`;
    if (more) return;
    clearInterval(clock);
    left.className = "";
    left.textContent = say("rest.over");
    go.textContent = say("rest.go-on");
    go.className = "hfi-primary";
  };
  tick();
  clock = setInterval(tick, 1000);
}
