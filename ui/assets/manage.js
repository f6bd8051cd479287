// Keys for deciding: they press the page's own buttons. Images stay blurred until pointed at, or revealed for one case.
(() => {
  "use strict";
  const BUTTONS = { KeyJ: "m-decide-shows", KeyF: "m-decide-clean", KeyU: "m-decide-unsure", Space: "m-reveal", KeyZ: "m-back" };
  const GUARD = 250; // ms after a new case came, within which a key was meant for the one before
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
