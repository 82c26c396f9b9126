// Both lanes: where orders are placed, how many there are, the latest of them, and the story of one.

import { $, el, keep, mark, put, set } from "/page/elements.js";
import { FATES, basket, intention, left, place } from "/page/place.js";
import { Story } from "/page/story.js";
import { NONE, count, euro, many, short, time } from "/page/words.js";

const LANES = [
  { style: "choreography", look: "one", title: "Choreography",
    what: "Nobody is in charge: each service reacts to what the others say, and undoes its part when it hears of a refusal." },
  { style: "orchestration", look: "two", title: "Orchestration",
    what: "The orders service asks one service after the other, and has them undo their parts when one refuses." },
];
const SHOWN = 6;
/** What the second button places; `/?many=20` has it place less, on a machine that is busy with something else. */
const MANY_MAX = 1000;
const asked = Math.trunc(Number(new URLSearchParams(location.search).get("many")));
const MANY = asked >= 1 ? Math.min(MANY_MAX, asked) : 100;
const MANY_SAID = MANY === 100 ? "a hundred" : count(MANY);

let fate = FATES[0];

function fates() {
  const fieldset = $("fates");
  FATES.forEach((it, at) => {
    const input = el("input", { type: "radio", name: "fate", value: it.name, checked: at === 0 ? "" : null });
    input.addEventListener("change", () => { fate = it; });
    fieldset.append(el("label", { class: "fate" }, input, el("span", {}, it.name)));
  });
}

class Lane {
  #said;
  #stats;
  #list;
  #empty;
  #story;
  /** Orders that were taken from this page, and that the read model has not heard of yet. */
  #taken = new Map();
  #latest = [];
  #chosen = null;

  constructor({ style, look, title, what }) {
    this.style = style;
    const number = (name) => el("div", {}, el("dt", {}, name), el("dd", { "data-of": name }, NONE));
    this.#said = el("p", { class: "said", role: "status" });
    this.#stats = el("dl", { class: "stats" }, ...["running", "completed", "rejected", "p50", "p99"].map(number));
    this.#empty = el("p", { class: "empty" }, "None yet. The first one takes the longest.");
    this.#list = el("ol");
    this.#story = new Story(style);
    const latest = el("h4", { id: `latest-${style}` }, "Latest orders: choose one for its story");
    set(this.#list, "aria-labelledby", latest.id);
    this.element = el("article", { class: `lane card ${look}`, id: `lane-${style}`, "aria-labelledby": `title-${style}` },
      el("h3", { id: `title-${style}` }, title), el("p", { class: "what" }, what),
      el("div", { class: "actions" }, this.#one(title), this.#many(title)), this.#said, this.#stats,
      el("div", { class: "latest" }, latest, this.#empty, this.#list), this.#story.element);
  }

  #one(title) {
    const button = el("button", { type: "button", class: "push main one-order", "aria-label": `Place an order by ${title.toLowerCase()}` }, "Place an order");
    const intend = intention();
    let order = null, first = null;
    button.addEventListener("click", (event) => {
      const { key, clicks } = intend(event);
      if (clicks === 1) {
        order = basket(this.style, fate);
        first = this.#place(order, key, clicks);
        return;
      }
      // A second click sends the same order with the same key, as soon as the first is answered: that makes one of them.
      first = first.then(() => this.#place(order, key, clicks));
    });
    return button;
  }

  async #place(order, key, clicks) {
    try {
      const taken = await place(order, key);
      this.#took(order, taken);
      this.#chosen = taken.saga;
      put(this.#said, clicks === 1 ? `Order ${short(taken.order)} is taken.`
        : `${clicks} clicks, one order: each was sent with the same idempotency key, and answered with ${short(taken.order)}.`);
      this.#render();
    } catch (error) {
      put(this.#said, `It is not taken: ${error.message}.`);
    }
  }

  #many(title) {
    const button = el("button", { type: "button", class: "push many", "aria-label": `Place ${MANY_SAID} orders by ${title.toLowerCase()}` }, `Place ${MANY_SAID}`);
    const intend = intention();
    button.addEventListener("click", async (event) => {
      if (intend(event).clicks > 1) return;
      const failed = await this.#placeAll(Array.from({ length: MANY }, () => ({ order: basket(this.style, fate) })));
      put(this.#said, failed ? `${many(failed, "order")} of ${MANY} are not taken.` : `All ${MANY} are taken.`);
    });
    return button;
  }

  /** Places these, each by its key if it has one; answers with how many of them are refused. */
  async #placeAll(wanted) {
    let taken = 0, failed = 0;
    await Promise.all(wanted.map(async ({ order, key }) => {
      try {
        this.#took(order, await place(order, key));
        taken += 1;
        if (taken % 10 === 0) put(this.#said, `${taken} of ${wanted.length} are taken.`);
      } catch {
        failed += 1;
      }
    }));
    return failed;
  }

  /** Goes on with what the page waited for when it was loaded again. */
  async resume(wanted) {
    if (wanted.length === 0) return;
    const failed = await this.#placeAll(wanted);
    const are = (number) => `${many(number, "order")} from before the page was loaded again ${number === 1 ? "is" : "are"}`;
    put(this.#said, failed ? `${are(failed)} not taken.` : `${are(wanted.length)} taken.`);
  }

  #took(order, { order: id, saga, trace }) {
    this.#taken.set(id, { ...order, id, saga, trace, state: "placed", taken_at: performance.now() });
  }

  /** Takes in what the read model says. */
  show(shop) {
    this.#latest = shop.orders.filter((it) => it.style === this.style);
    for (const { id } of this.#latest) this.#taken.delete(id);
    // Of a hundred the list shows the latest only: those before were heard of, and pushed out.
    const oldest = this.#latest.at(-1)?.id;
    for (const id of this.#taken.keys()) if (oldest && id < oldest) this.#taken.delete(id);
    const of = (state) => shop.counts.find((it) => it.style === this.style && it.state === state);
    const completed = of("completed");
    const now = { running: count(of("placed")?.orders ?? 0), completed: count(completed?.orders ?? 0), rejected: count(of("rejected")?.orders ?? 0),
      p50: time(completed?.p50_ms), p99: time(completed?.p99_ms) };
    for (const dd of this.#stats.querySelectorAll("dd")) put(dd, now[dd.dataset.of]);
    this.#render();
  }

  #render() {
    // Ids begin with their time: the largest is the newest.
    const taken = [...this.#taken.values()];
    const orders = [...taken, ...this.#latest].sort((a, b) => (a.id < b.id ? 1 : -1));
    const shown = orders.slice(0, SHOWN);
    this.#empty.hidden = orders.length > 0;
    const chosen = orders.find((it) => it.saga === this.#chosen) ?? (this.#chosen === null ? orders[0] : null);
    if (chosen) {
      this.#chosen = chosen.saga;
      this.#story.show(chosen);
    }
    keep(this.#list, shown, (it) => it.id, (it) => this.#item(it), (item, it) => this.#update(item.firstElementChild, it));
  }

  #item({ saga }) {
    const button = el("button", { type: "button", class: "order" });
    button.addEventListener("click", () => {
      this.#chosen = saga;
      this.#render();
    });
    return el("li", {}, button);
  }

  #update(button, it) {
    set(button, "aria-pressed", it.saga === this.#chosen);
    const look = { completed: "good", rejected: "bad" }[it.state] ?? "wait";
    const how = it.state === "rejected" ? it.reason ?? "rejected" : it.taken_at ? "taken, not heard of yet" : it.state === "placed" ? "running" : it.state;
    const took = it.ended_at_ms ? time(it.ended_at_ms - it.placed_at_ms) : "";
    const key = JSON.stringify([how, took]);
    if (button.dataset.shown === key) return;
    button.dataset.shown = key;
    const goods = el("span", { class: "goods" }, el("b", { class: look }, how), el("span", { class: "soft" }, ` ${it.quantity} × ${it.sku}, € ${euro(it.cents)}`));
    button.replaceChildren(mark(look), goods, el("span", { class: "took" }, took || short(it.id)));
  }
}

/** Builds both lanes; the answer takes in what the read model says. */
export function lanes() {
  fates();
  const both = LANES.map((it) => new Lane(it));
  $("lanes").append(...both.map((it) => it.element));
  const wanted = left();
  for (const lane of both) lane.resume(wanted.filter(({ order }) => order?.style === lane.style));
  return (shop) => both.forEach((it) => it.show(shop));
}
