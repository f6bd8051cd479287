// Keys for deciding: they press the page's own buttons. Images stay blurred until pointed at, or revealed for one case. What a handler
// refuses comes up as a note: Gradio's page shows mistakes of queued calls alone, and these are not queued (office.py).
(() => {
  "use strict";
  const BUTTONS = { KeyJ: "m-decide-shows", KeyF: "m-decide-clean", KeyU: "m-decide-unsure", Space: "m-reveal", KeyZ: "m-back" };
  const GUARD = 250; // ms after a new case came, within which a key was meant for the one before
  const TOLD = 12000; // ms that a note stays, and on while it is pointed at
  const SIGNED_OUT = "You are not signed in any more, or no manager: load this page again.";
  let shown = "", since = 0;

  const stage = () => document.getElementById("m-stage");
  const typing = (node) => node?.closest?.("input, textarea, select, [contenteditable]");

  function reveal(on) {
    stage()?.classList.toggle("m-revealed", on);
  }

  function watch() {
    const found = stage()?.querySelector(".m-case")?.dataset.case ?? "";
    if (found === shown) return;
    shown = found;
    since = performance.now();
    reveal(false); // the next image does not jump at anybody
  }

  function tell(words) {
    const page = document.querySelector(".gradio-container") ?? document.body;
    const notes = document.getElementById("m-alerts") ?? page.appendChild(Object.assign(document.createElement("div"), { id: "m-alerts" }));
    for (const old of notes.children) if (old.firstChild.textContent === words) old.remove();
    const one = document.createElement("div");
    one.role = "alert";
    const close = Object.assign(document.createElement("button"), { type: "button", textContent: "×", ariaLabel: "Close", onclick: () => one.remove() });
    one.append(Object.assign(document.createElement("p"), { textContent: words }), close);
    notes.append(one);
    const over = () => (one.matches(":hover, :focus-within") ? setTimeout(over, 1000) : one.remove());
    setTimeout(over, TOLD);
  }

  const ask = window.fetch;
  window.fetch = async (...call) => {
    const answer = await ask(...call);
    if (!answer.ok && answer.url.includes("/gradio_api/run/")) {
      const found = await answer.clone().json().catch(() => ({}));
      const signedOut = answer.status === 401 || answer.status === 403;
      const said = [found.error, found.detail].find((words) => typeof words === "string"); // FastAPI's detail may be a list
      tell(signedOut ? SIGNED_OUT : said ?? `The server did not do this (${answer.status}).`);
    }
    return answer;
  };

  document.addEventListener("keydown", (event) => {
    const id = BUTTONS[event.code];
    if (!id || event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (typing(event.target) || document.querySelector("dialog[open]")) return;
    if (event.code === "Space" && event.target.closest?.("button, a")) return; // that presses the button
    const button = document.getElementById(id);
    if (!button || button.disabled || !button.offsetParent) return; // another tab is open
    event.preventDefault();
    if (id !== "m-reveal" && performance.now() - since < GUARD) return;
    button.click();
  });

  document.addEventListener("click", (event) => {
    if (event.detail) event.target.closest?.('#m-stage button, [role="tab"]')?.blur(); // a mouse: Space then reveals, and presses no button
    if (event.target.closest?.("#m-reveal")) reveal(!stage()?.classList.contains("m-revealed"));
  });
  document.addEventListener("visibilitychange", () => document.hidden && reveal(false));
  new MutationObserver(watch).observe(document.documentElement, { childList: true, subtree: true });
})();
