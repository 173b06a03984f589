/* Search in pages that are opened as files: a browser refuses workers there, so the search's worker
   runs in a hidden frame. On a server this file does nothing. (The theme asks for a file of this name
   and would load its own from another host.) */

if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.early = []; // messages before the script runs
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      frame.onload = () => this.start(frame.contentWindow, String(url));
      document.body.append(frame);
    }

    start(inside, url) {
      const load = (address) =>
        new Promise((loaded, failed) => {
          const script = inside.document.createElement("script");
          script.src = address;
          script.onload = loaded;
          script.onerror = failed;
          inside.document.head.append(script);
        });
      inside.postMessage = (data) => {
        this.dispatchEvent(new MessageEvent("message", { data }));
      };
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      load(url).then(() => {
        this.postMessage = (data) => {
          inside.dispatchEvent(new MessageEvent("message", { data }));
        };
        this.early.forEach((data) => this.postMessage(data));
      });
    }

    postMessage(data) {
      this.early.push(data);
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
