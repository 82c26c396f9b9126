// Orders on their way to the storefront. Each has a key, made when somebody decides to order: it is sent until it is
// taken, and however often it is sent, it is one order.

/** A browser keeps few connections to a host, and the feed and the switches need theirs. */
const AT_ONCE = 3;
const ANSWER_MAX = 8000;
/** The longest reason that is shown. */
const SAID_MAX = 200;
const WAIT_MIN = 500;
const WAIT_MAX = 4000;
/** A key that is held down clicks again and again; so fast it is one intention. */
const HELD_MAX = 500;

/** Orders that are not taken yet, and what the storefront said of them last. */
export const waiting = { orders: 0, problem: null };

const PRICES = { tea: 1900, lamp: 4900, kettle: 3500, chair: 8900, atlas: 2900 };

export const FATES = [
  { name: "goes through", order: {} },
  { name: "card is declined", order: { card: "card-declined" } },
  { name: "is out of stock", order: { sku: "moon-rock" } },
  { name: "carrier refuses", order: { address: "Atlantis" } },
];

/** Something to buy. */
export function basket(style, fate) {
  const skus = Object.keys(PRICES);
  const sku = skus[Math.floor(Math.random() * skus.length)];
  const quantity = 1 + Math.floor(Math.random() * 2);
  return { style, sku, quantity, cents: PRICES[sku] * quantity, ...fate.order };
}

/** Tells apart a second click from a second order: the browser counts clicks as fast as its user double-clicks. */
export function intention() {
  let last = -Infinity, key = null, clicks = 0;
  return ({ detail, timeStamp }) => {
    // A click without a number is that of a key.
    const goesOn = detail > 1 || (detail === 0 && timeStamp - last <= HELD_MAX);
    if (clicks === 0 || !goesOn) {
      key = uuid7();
      clicks = 0;
    }
    last = timeStamp;
    clicks += 1;
    return { key, clicks };
  };
}

/** A UUID of version 7 (RFC 9562): the time, then chance. */
export function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let now = Date.now();
  for (let at = 5; at >= 0; at -= 1) {
    bytes[at] = now % 256;
    now = Math.floor(now / 256);
  }
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

const queue = [];
let sending = 0;

/** What is not taken yet stays with the tab, so that a reload goes on with it: the same order by the same key. */
const LEFT = "order ";

/** Orders that this tab wanted before it was loaded again, the oldest first: each to be placed once more. */
export function left() {
  try {
    const names = Object.keys(sessionStorage).filter((name) => name.startsWith(LEFT)).sort();
    return names.map((name) => ({ key: name.slice(LEFT.length), order: JSON.parse(sessionStorage.getItem(name)) }));
  } catch {
    return [];
  }
}

/** A browser that keeps nothing, or whose space is full, still has the order in the page. */
function keepInTab(key, order) {
  try {
    if (order) sessionStorage.setItem(LEFT + key, JSON.stringify(order));
    else sessionStorage.removeItem(LEFT + key);
  } catch {
    // Then a reload forgets it.
  }
}

/** Places an order; answers with `{ order, saga }` once it is taken, and throws where it never will be. */
export function place(order, key = uuid7()) {
  waiting.orders += 1;
  keepInTab(key, order);
  const placed = new Promise((resolve, reject) => queue.push({ order, key, resolve, reject }));
  send();
  return placed.finally(() => {
    waiting.orders -= 1;
    keepInTab(key, null);
    if (waiting.orders === 0) waiting.problem = null;
  });
}

function send() {
  while (sending < AT_ONCE && queue.length) {
    const next = queue.shift();
    sending += 1;
    post(next.order, next.key).then(next.resolve, next.reject).finally(() => {
      sending -= 1;
      send();
    });
  }
}

/** Why it was not taken: what refuses a key says so in a bare text, whatever its content-type. */
function reason(text, status) {
  try {
    const said = JSON.parse(text)?.problem;
    if (typeof said === "string") return said;
  } catch {
    if (text.trim()) return text.trim().slice(0, SAID_MAX);
  }
  return `it answers with ${status}`;
}

async function post(order, key) {
  for (let wait = WAIT_MIN; ; wait = Math.min(WAIT_MAX, wait * 2)) {
    try {
      const answer = await fetch("/api/orders", {
        method: "POST", body: JSON.stringify(order), signal: AbortSignal.timeout(ANSWER_MAX),
        headers: { "content-type": "application/json", "idempotency-key": key },
      });
      if (answer.ok) return await answer.json();
      const said = reason(await answer.text(), answer.status);
      // Repeating it would not make it better. 409: the same key is just being worked at.
      if (answer.status < 500 && answer.status !== 409) throw Object.assign(new Error(said), { final: true });
      waiting.problem = said;
    } catch (error) {
      if (error.final) throw error;
      waiting.problem = "the storefront does not answer";
    }
    await new Promise((wake) => setTimeout(wake, wait));
  }
}
