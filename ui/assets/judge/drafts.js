// What was begun and not yet sent, by task: places, comment, region. Kept in this browser for the last tasks of one person, so that a
// reload loses nothing and an undo brings it back.

const STORE = "hfi-drafts";
const MOST = 20;

let owner = "";
let drafts = {};

// Takes up the drafts of this person; those of anybody else are thrown away.
export function openDrafts(person) {
  if (person === owner) return;
  [owner, drafts] = [person, {}];
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    if (kept?.owner === person) drafts = kept.drafts;
    else localStorage.removeItem(STORE);
  } catch { /* none, or no place to keep any */ }
}

// `groups`: places of the images, most of the concept first, tied ones together; `history`: what `groups` was before, step by step
export const draftOf = (token) => ({ groups: [], history: [], comment: "", region: null, ...drafts[token] });

export function keepDraft(token, draft) {
  delete drafts[token]; // last in line again
  drafts[token] = draft;
  for (const old of Object.keys(drafts).slice(0, -MOST)) delete drafts[old];
  try { localStorage.setItem(STORE, JSON.stringify({ owner, drafts })); } catch { /* for as long as this page is open, then */ }
}
