// Pages that come from the disk may start no worker, and the theme's search is one. There the worker's script runs in a hidden frame.

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>search</title>";
      frame.onload = () => {
        frame.onload = null;
        const inside = frame.contentWindow;
        inside.importScripts = (...scripts) => Promise.all(scripts.map((src) => this.load(inside, new URL(src, url))));
        inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        this.load(inside, url).then(() => {
          this.ready = inside;
          this.waiting.forEach((data) => this.postMessage(data));
        });
      };
      document.body.append(frame);
    }

    load(inside, src) {
      return new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        Object.assign(script, { src, onload: done, onerror: failed });
        inside.document.body.append(script);
      });
    }

    postMessage(data) {
      if (this.ready) this.ready.dispatchEvent(new MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
