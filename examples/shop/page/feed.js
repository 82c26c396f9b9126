// What the storefront tells, again and again; when it does not, the page asks anew, less and less often.

const WAIT_MIN = 500;
const WAIT_MAX = 5000;
/** A connection that says nothing for so long is none: with Postgres paused a state takes a few seconds. */
const SILENT_MAX = 12_000;

/** Calls `told(state)` with each state, and `lost(tries)` whenever there is no connection. */
export function follow(url, { told, lost }) {
  let source = null, again = null, silent = null, tries = 0;

  function connect() {
    clearTimeout(again);
    source?.close();
    source = new EventSource(url);
    source.addEventListener("state", (event) => {
      tries = 0;
      listen();
      told(JSON.parse(event.data));
    });
    source.onerror = retry;
    listen();
  }

  function listen() {
    clearTimeout(silent);
    silent = setTimeout(retry, SILENT_MAX);
  }

  function retry() {
    clearTimeout(silent);
    clearTimeout(again);
    source.close();
    // Not all pages of an audience at the same moment.
    const wait = Math.min(WAIT_MAX, WAIT_MIN * 1.6 ** tries) * (0.8 + 0.4 * Math.random());
    tries += 1;
    again = setTimeout(connect, wait);
    lost(tries);
  }

  // Who comes back to the page does not wait.
  const hurry = () => {
    if (!document.hidden && source.readyState === EventSource.CLOSED) connect();
  };
  document.addEventListener("visibilitychange", hurry);
  addEventListener("online", hurry);
  connect();
}
