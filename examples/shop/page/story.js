// The story of an order, drawn as who told whom: services are columns, what they say are arrows, time goes down.

import { draw, el, keep, mark, put, set } from "/page/elements.js";
import { and, many, short, time } from "/page/words.js";

const SERVICES = ["orders", "stock", "shipping", "payments"];
const ROW = 34, HEAD = 40, FOOT = 10, GUTTER = 52;
/** What is drawn before there is anything to tell. */
const EMPTY_ROWS = 7;
/** Below this width, that of a phone, names are written smaller. */
const NARROW = 340;
/** What a choreography undoes may come after the end. */
const LATE_MS = 4000;
/** What is written in one transaction has times that are so near to each other, and the end comes last. */
const SAME_MS = 20;
/** Letters of the font are about so wide. */
const LETTER = 6.3;

const name = (source) => source.replace(/^\//, "");
const plain = (type) => type.replace(/\.v\d+$/, "");
const seconds = (ms) => (ms < 10_000 ? time(ms) : `${(ms / 1000).toFixed(1)} s`);

/** What an entry is: `command`, `reply` or `event`. */
function kind({ topic, outcome }) {
  if (outcome === null) return "command";
  return topic.endsWith(".replies") ? "reply" : "event";
}

/** An entry as a row of the picture: from where, to where, in which look, with which words. */
function row(entry, begun) {
  const from = name(entry.from), is = kind(entry), undo = entry.operation === "compensation";
  const refused = entry.outcome !== null && entry.outcome !== "done";
  const label = is === "reply"
    ? `${undo ? "undo " : ""}${entry.step}: ${entry.outcome}`
    : `${undo && is === "command" ? "undo " : ""}${plain(entry.type)}`;
  const to = (entry.to ?? []).filter((it) => it !== from);
  return { at: entry.at_ms, after: entry.at_ms - begun, from, to, is, undo, refused, label };
}

/** The rows of a story, with its beginning and its end where they belong. */
function rowsOf(entries, order) {
  const begun = Math.min(order?.placed_at_ms ?? Infinity, entries[0]?.at_ms ?? Infinity);
  const rows = entries.map((entry) => row(entry, begun));
  // What the service wrote first it did in the same transaction.
  const known = Boolean(order?.placed_at_ms);
  if (order) rows.unshift({ after: known ? 0 : null, from: "orders", is: "end", look: "start", label: known ? "order placed" : "order taken" });
  if (order?.ended_at_ms) {
    const good = order.state === "completed";
    const end = { after: order.ended_at_ms - begun, from: "orders", is: "end", look: good ? "good" : "bad",
      label: good ? "completed" : `rejected: ${order.reason ?? "it took too long"}` };
    const before = rows.findLastIndex((it) => it.is === "end" || it.at <= order.ended_at_ms + SAME_MS);
    rows.splice(before + 1, 0, end);
  } else if (order) rows.push({ after: null, from: "orders", is: "end", look: "waits", label: "under way" });
  return rows;
}

function outcome({ state, reason, placed_at_ms: placed, ended_at_ms: ended }) {
  if (state === "placed") return "under way";
  return state === "completed" ? `completed after ${seconds(ended - placed)}` : `rejected, ${reason ?? "it took too long"}`;
}

/** A row as a sentence. */
function sentence({ after, from, to = [], is, undo, refused, label }) {
  const when = after === null ? "" : `after ${seconds(after)}: `;
  if (is === "end") return `${when}${label}`;
  const undoes = undo ? " (this undoes)" : "";
  if (is === "command") return `${when}${from} asks ${and(to)}: ${label}${undoes}`;
  if (is === "reply") return `${when}${from} answers ${and(to)}: ${label}${undoes}`;
  return `${when}${from} says ${label}${refused ? " (a refusal)" : undoes}${to.length ? `, heard by ${and(to)}` : ""}`;
}

/** A story in a lane: a picture, a legend, and the same in words. */
export class Story {
  #title = el("h4");
  #state = el("span", { class: "small soft" });
  #svg = draw("svg", { class: "sequence", role: "img", "aria-label": "Nothing to tell yet" });
  #told = el("ol", { class: "told" });
  #words = el("details", {}, el("summary", {}, "The same in words"), this.#told);
  #trace = el("p", { class: "trace small soft" });
  #order = null;
  #drawn = "";
  #rows = 0;
  #asking = false;
  #entries = [];
  #changed = 0;

  constructor(style) {
    this.element = el("section", { class: "story", "aria-label": `A story of the ${style}` },
      el("header", {}, this.#title, this.#state), this.#svg, legend(style), this.#words, this.#trace);
    new ResizeObserver(() => this.#draw()).observe(this.element);
  }

  get saga() {
    return this.#order?.saga ?? null;
  }

  /** Tells the story of an order, or goes on with it. */
  show(order) {
    const other = order.saga !== this.saga;
    const grows = other || order.state === "placed" || order.state !== this.#order.state
      || performance.now() - this.#changed < LATE_MS;
    this.#order = order;
    if (other) {
      this.#entries = [];
      this.#rows = 0;
      this.#changed = performance.now();
    }
    if (grows) this.#ask();
    if (other) this.#draw();
  }

  async #ask() {
    if (this.#asking) return;
    this.#asking = true;
    const { saga } = this;
    try {
      const answer = await fetch(`/api/orders/${saga}/story`, { signal: AbortSignal.timeout(4000) });
      if (!answer.ok || saga !== this.saga) return;
      const { entries } = await answer.json();
      if (entries.length !== this.#entries.length) this.#changed = performance.now();
      this.#entries = entries;
      this.#draw();
    } catch {
      // The next state asks again; until then what is known stays.
    } finally {
      this.#asking = false;
    }
  }

  #draw() {
    const order = this.#order, width = Math.floor(this.#svg.clientWidth);
    if (width < 100) return;
    const rows = order ? rowsOf(this.#entries, order) : [];
    const key = JSON.stringify([width, rows, order?.trace]);
    if (key === this.#drawn) return;
    this.#drawn = key;
    put(this.#title, order ? `Order ${short(order.id)}` : "The story of an order");
    put(this.#state, order ? outcome(order) : "");
    this.#words.hidden = !order;
    put(this.#trace, order?.trace ? `Trace ${order.trace}` : "");
    const columns = SERVICES.map((service, at) => ({ service, x: GUTTER + ((at + 0.5) * (width - GUTTER)) / SERVICES.length }));
    const place = Object.fromEntries(columns.map(({ service, x }) => [service, x]));
    const height = HEAD + (rows.length || EMPTY_ROWS) * ROW + FOOT;
    set(this.#svg, "viewBox", `0 0 ${width} ${height}`);
    set(this.#svg, "height", height);
    set(this.#svg, "class", width < NARROW ? "sequence narrow" : "sequence");
    set(this.#svg, "aria-label", order
      ? `${many(this.#entries.length, "message")} between ${and(SERVICES)}; the same in words is below` : "Nothing to tell yet");
    const hint = [`Place an order, and watch`, `who tells whom, and when.`];
    this.#svg.replaceChildren(
      ...columns.map(({ x }) => draw("line", { class: "life", x1: x, x2: x, y1: 26, y2: height })),
      ...columns.map(({ service, x }) => who(service, x, width)),
      ...(order ? [] : hint.map((line, at) => draw("text", { class: "label hint", x: width / 2, y: height / 2 + at * 18, "text-anchor": "middle" }, line))),
      ...rows.map((it, at) => {
        const y = HEAD + at * ROW + 22;
        const drawn = it.is === "end" ? end(it, place[it.from], y, width) : arrows(it, place, y, width);
        const when = it.after === null ? "" : seconds(it.after);
        if (at >= this.#rows && this.#rows > 0) drawn.classList.add("new");
        drawn.append(draw("text", { class: "when", x: 0, y: y + 4 }, when));
        return drawn;
      }));
    this.#rows = rows.length;
    keep(this.#told, rows.filter((it) => it.after !== null), (it, at) => `${at} ${sentence(it)}`, (it) => el("li", {}, sentence(it)));
  }
}

function who(service, x, width) {
  const half = Math.min(42, (width - GUTTER) / SERVICES.length / 2 - 1);
  return draw("g", {},
    draw("rect", { class: "box", x: x - half, y: 3, width: 2 * half, height: 22, rx: 4 }),
    draw("text", { class: "who", x, y: 18, "text-anchor": "middle" }, service));
}

/** A text above a line, as near to the middle of it as the picture is wide. */
function label(text, x, y, width) {
  const half = (text.length * LETTER) / 2;
  const at = Math.max(GUTTER + half, Math.min(width - half, x));
  return draw("text", { class: "label", x: at, y, "text-anchor": "middle" }, text);
}

function beside(text, x, y, width) {
  const right = x + 12 + text.length * LETTER < width;
  return draw("text", { class: "label", x: right ? x + 12 : x - 12, y, "text-anchor": right ? "start" : "end" }, text);
}

function arrows({ from, to, is, undo, refused, label: text }, place, y, width) {
  const x = place[from] ?? GUTTER;
  const group = draw("g", { class: `${is}${undo ? " undo" : ""}${refused ? " refused" : ""}` });
  const ends = to.map((service) => place[service]).filter((it) => it !== undefined);
  if (ends.length === 0) {
    group.append(draw("circle", { class: "dot", cx: x, cy: y, r: 4.5 }), beside(text, x, y + 4, width));
    return group;
  }
  for (const end of ends) {
    const side = Math.sign(end - x);
    group.append(draw("path", { class: "arrow", d: `M${x} ${y}H${end - side * 3}` }), tip(end, y, side, is, refused));
  }
  if (is !== "reply") group.append(draw("circle", { class: "dot", cx: x, cy: y, r: 3 }));
  const far = ends.reduce((far, end) => (Math.abs(end - x) > Math.abs(far - x) ? end : far), x);
  group.append(label(`${undo ? "↶ " : ""}${refused ? "✗ " : ""}${text}`, (x + far) / 2, y - 6, width));
  return group;
}

/** What a look says by its colour, the end of its arrow says by its shape. */
function tip(x, y, side, is, refused) {
  if (refused) return draw("path", { class: "tip", d: `M${x - side * 9} ${y - 5}l${side * 9} 10m0 -10l${-side * 9} 10` });
  const shape = `M${x - side * 9} ${y - 5}L${x - side * 1} ${y}L${x - side * 9} ${y + 5}`;
  return draw("path", { class: `tip${is === "command" ? "" : " hollow"}`, d: is === "command" ? `${shape}Z` : shape });
}

function end({ look, label: text }, x, y, width) {
  const group = draw("g", { class: `end ${look}` }, draw("circle", { class: "ring", cx: x, cy: y, r: 8 }));
  const sign = { good: `M${x - 4} ${y}l3 3l5 -6`, bad: `M${x - 3} ${y - 3}l6 6m0 -6l-6 6`, start: `M${x - 3} ${y}h6m-3 -3v6` }[look];
  if (sign) group.append(draw("path", { class: "sign", d: sign }));
  group.append(beside(text, x, y + 4, width));
  return group;
}

function legend(style) {
  const sample = (of, text) => el("span", {}, draw("svg", { class: "sequence", viewBox: "0 0 26 12", "aria-hidden": "true" }, of), text);
  const line = (is, undo, refused) => {
    const group = draw("g", { class: `${is}${undo ? " undo" : ""}${refused ? " refused" : ""}` });
    group.append(draw("path", { class: "arrow", d: "M0 6H23" }), tip(26, 6, 1, is, refused));
    return group;
  };
  const own = style === "orchestration"
    ? [sample(line("command"), "command"), sample(line("reply"), "reply"), sample(line("command", true), "command to undo")]
    : [sample(line("event"), "event"), sample(line("event", true), "compensation")];
  return el("p", { class: "legend" }, ...own, sample(line("event", false, true), "refusal"));
}
