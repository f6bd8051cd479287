// How images are shown: through a filter first, as this person chose it, and without it while they ask for that. Keeps count of it.

const DEFAULT = { blur: true, strength: 2, grey: true, hover: false, again: 30, size: "medium" }; // again: seconds until the filter is back, 0: never

// `changed()` is called whenever another picture is to be seen.
export function looking(changed) {
  const settings = { ...DEFAULT };
  let owner = "";
  let bare = new Set(); // places of images without their filter
  let timer = 0;
  let count = null; // of the task in hand: see begin()

  const filter = () => (settings.blur ? (settings.grey ? "both" : "blur") : settings.grey ? "grey" : "none");

  // The address of an image as it comes at first.
  function veiled(plain) {
    const view = filter();
    return view === "none" ? plain : `${plain}?view=${view}&strength=${settings.strength}`;
  }

  function cover() {
    clearTimeout(timer);
    if (!bare.size) return;
    bare = new Set();
    changed();
  }

  function reveal(places) {
    bare = new Set([...bare, ...places]);
    clearTimeout(timer);
    if (settings.again) timer = setTimeout(cover, settings.again * 1000);
    changed();
  }

  return {
    settings, // of one person in this browser: change them through `set`
    filter,
    veiled,
    cover,
    reveal,
    source: (plain, place) => (bare.has(place) ? plain : veiled(plain)),
    revealed: () => bare.size > 0,

    // Takes up what this person chose. Whoever sits down after somebody else starts with the filters on.
    open(person) {
      if (person === owner) return;
      owner = person;
      Object.assign(settings, DEFAULT);
      try { Object.assign(settings, JSON.parse(localStorage.getItem(`hfi-view ${owner}`))); } catch { /* none, or no place to keep any */ }
    },

    set(name, value) {
      settings[name] = value;
      try { localStorage.setItem(`hfi-view ${owner}`, JSON.stringify(settings)); } catch { /* for as long as this page is open, then */ }
      changed();
    },

    begin() { // another task
      clearTimeout(timer);
      bare = new Set();
      count = { filter: filter(), reveals: 0, ms: 0, since: 0 };
    },

    // Says whether a picture is on the screen now without the filter with which it came.
    tally(seen) {
      if (!count || count.filter === "none") return;
      const now = performance.now();
      if (seen && !count.since) {
        count.reveals += 1;
        count.since = now;
      } else if (!seen && count.since) {
        count.ms += now - count.since;
        count.since = 0;
      }
    },

    sofar: () => ({
      filter: count.filter,
      reveals: count.reveals,
      revealed_ms: Math.round(Math.min(count.ms + (count.since ? performance.now() - count.since : 0), 86400000)),
    }),
  };
}

// The form in which the settings are changed.
export function openSettings(look) {
  const dialog = document.getElementById("hfi-settings");
  const fields = dialog.querySelector("form").elements;
  const paint = () => { fields.strength.disabled = !look.settings.blur; };
  for (const [name, value] of Object.entries(look.settings)) {
    const field = fields[name];
    if (field.type === "checkbox") field.checked = value;
    else field.value = value;
    field.onchange = () => {
      if (field.type === "checkbox") look.set(name, field.checked);
      else if (name === "size") look.set(name, field.value);
      else look.set(name, field.validity.valid ? Math.round(Number(field.value)) : look.settings[name]);
      if (field.type !== "checkbox") field.value = look.settings[name];
      paint();
    };
  }
  paint();
  dialog.showModal();
}
