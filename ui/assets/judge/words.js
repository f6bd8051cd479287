// The page's words, which the server gives in the reader's language.

import { ask } from "./server.js";

let words = {};
export let lang = "en";

export async function learn() {
  const found = await ask("/api/messages");
  ({ words, lang } = found);
  document.documentElement.lang = lang;
  const select = document.getElementById("hfi-lang");
  select.replaceChildren(...Object.entries(found.languages).map(([code, name]) => new Option(name, code, false, code === lang)));
  select.addEventListener("change", () => {
    document.cookie = `hfi-lang=${select.value}; path=/; max-age=31536000; samesite=lax`;
    location.reload();
  });
}

export function say(key, values = {}) {
  const text = words[`judge.${key}`];
  if (text === undefined) throw new Error(`no words for judge.${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Fills in what the page's elements ask for: data-say is their text, data-label their name for those who do not see them.
export function sayAll(root = document) {
  for (const node of root.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
}
