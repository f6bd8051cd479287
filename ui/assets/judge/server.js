// Asking the server, again and again while it cannot be reached: nothing that was said to it is lost, and nothing is skipped.

const WAITS_MS = [500, 1000, 2000, 4000]; // between tries

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

// The answer to GET `path`, or to POST `path` with `body`. `down(why)` is told of each vain try ("away" or "broken"), `up()` of the end.
// Throws an Error with the server's sentence where the request is refused.
export async function ask(path, body, { down = () => {}, up = () => {} } = {}) {
  for (let tries = 0; ; tries += 1) {
    let answer = null;
    try {
      answer = await fetch(path, body === undefined ? { cache: "no-store" } : {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
      });
    } catch { /* out of reach: the same again, later */ }
    if (answer && answer.status < 500) {
      up();
      if (answer.status === 401) { location.assign("/"); return new Promise(() => {}); }
      const found = await answer.json();
      if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : "");
      return found;
    }
    down(answer ? "broken" : "away");
    await sleep(WAITS_MS[Math.min(tries, WAITS_MS.length - 1)]);
  }
}
