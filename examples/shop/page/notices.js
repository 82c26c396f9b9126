// What is going on, in words: what stands in the way now at the top of the page, and what has happened in a list.

import { $, el, keep, mark } from "/page/elements.js";
import { aside } from "/page/letters.js";
import { waiting } from "/page/place.js";
import { title } from "/page/trouble.js";
import { and, bytes, clock, many, spoken } from "/page/words.js";

const TROUBLES = {
  "kafka-stopped": ["bad", "Kafka is stopped. Orders are still taken: what services have to say waits in Postgres until it is back."],
  "postgres-paused": ["bad", "Postgres is paused: nobody reads or writes. Orders wait in this page, and are placed once it is back."],
  "provider-slow": ["wait", "The payment provider is slow: the breaker keeps payments from waiting for it."],
  poison: ["wait", "The handler that credits points is faulty: switch that off, then retry what it has set aside, below."],
  duplicates: ["wait", "Every record is delivered twice: the services suppress the second one, the control lane does not."],
};
/** A restart is told for so long at the top. */
const RESTART_TOLD_MS = 8000;
/** Relays that are further behind than both catch up: other databases write into the same log, so bytes alone say little. */
const BEHIND_BYTES = 256 * 1024, BEHIND_SECONDS = 1;
/** Who has never answered is taken to be starting for so long. */
const STARTING_MAX_MS = 30_000;
const NOTICES_MAX = 3;
const LOGGED = 30, SHOWN = 7;

const restarted = new Map();
/** Processes that were started again, and have not answered since. */
const starting = new Set();
const log = [];
const opened = Date.now();
let before = null;

/** What is so now, the worst first: `[look, text]`. Pure but for the clock. */
function notices(view, now) {
  const { shop, stage } = view.state ?? {};
  const troubles = stage?.troubles ?? [];
  const stopped = troubles.some((it) => (it.on || it.changing) && it.name === "kafka-stopped");
  const paused = troubles.some((it) => it.on && it.name === "postgres-paused");
  const away = view.lost ? null : view.state?.kafka_away_since_ms;
  const found = [];
  if (view.lost) found.push(["bad", view.state
    ? `The storefront does not answer: trying again by itself. What you see is from ${clock(view.at)}.`
    : "The storefront does not answer: trying again by itself."]);
  if (!view.lost && view.state?.staged && !stage) found.push(silence(view.heard.stage, now, "Whoever started the shop", "troubles, figures and books"));
  found.push(...switched(troubles));
  if (away && !stopped) found.push(["bad", `Kafka has not answered since ${clock(new Date(away))}. Orders are still taken: what services have to say waits in Postgres until it does.`]);
  if (!view.lost && view.state && !shop && !paused) found.push(silence(view.heard.shop, now, "The read model", "orders and counts"));
  const silent = view.lost ? [] : (stage?.processes ?? []).filter((it) => !it.answers).map((it) => it.name);
  found.push(...processes(silent, now));
  if (!view.lost) found.push(...faults(stage?.books?.shop));
  if (waiting.orders > 3 || waiting.problem) found.push(["wait", `${many(waiting.orders, "order")} ${waiting.orders === 1 ? "waits" : "wait"} in this page until taken${waiting.problem ? `: ${waiting.problem}, trying again` : ""}. Keep its tab open.`]);
  if (!stopped && !away && !paused) found.push(...catching(stage?.figures ?? [], silent));
  found.sort(([a], [b]) => (a === b ? 0 : a === "bad" ? -1 : 1));
  const more = found.splice(NOTICES_MAX).length;
  if (more) found.push(["soft", `and ${more} more.`]);
  if (found.length === 0) {
    const orders = (shop?.counts ?? []).reduce((sum, it) => sum + it.orders, 0);
    found.push(["good", orders ? "All is well: everything runs, and orders go through." : "All is well, and nobody has ordered yet: place an order."]);
  }
  return found;
}

/** Somebody does not answer: what is shown is from before only if there is a before. */
function silence(heard, now, who, what) {
  if (heard) return ["bad", `${who} does not answer: ${what} are from before.`];
  if (now - opened < STARTING_MAX_MS) return ["wait", `Starting: ${who.toLowerCase()} has not answered yet.`];
  return ["bad", `${who} has not answered since this page was opened: ${what} are not known.`];
}

function switched(troubles) {
  const found = [];
  for (const { name, on, changing, failed } of troubles) {
    if (changing && name === "kafka-stopped") found.push(["bad", on ? "Kafka is being started: that takes some seconds." : "Kafka is being stopped: that takes some seconds."]);
    else if (on && TROUBLES[name]) found.push(TROUBLES[name]);
    if (failed) found.push(["wait", `${title(name)}: it could not be switched. Try again.`]);
  }
  return found;
}

/** Who was started again is known by its restarts; one that hangs is not, and nobody starts it again. */
function processes(silent, now) {
  const again = silent.filter((name) => starting.has(name)).map(spoken);
  const hang = silent.filter((name) => !starting.has(name)).map(spoken);
  const back = [...restarted].filter(([name, at]) => now - at < RESTART_TOLD_MS && !silent.includes(name)).map(([name]) => spoken(name));
  const found = [];
  if (hang.length) found.push(["bad", `${and(hang)} ${hang.length > 1 ? "do" : "does"} not answer.`]);
  if (again.length) found.push(["bad", `${and(again)} died and ${again.length > 1 ? "are" : "is"} being started again.`]);
  if (back.length) found.push(["wait", `${and(back)} died and ${back.length > 1 ? "have" : "has"} been started again.`]);
  return found;
}

/** What waits for a person, and books that are red; one of them is mostly why the other is so. */
function faults(books) {
  const wrong = books?.wrong ?? 0;
  if (aside.dead) {
    const one = aside.dead === 1 && !aside.more;
    const what = `${many(aside.dead, "message")}${aside.more ? " or more" : ""} ${one ? "is" : "are"} set aside: retry ${one ? "it" : "them"} below`;
    return [["bad", wrong ? `${what}; the books are red until then.` : `${what}.`]];
  }
  return wrong ? [["bad", `The shop's books are red: ${many(wrong, "fault")}, listed below with the books.`]] : [];
}

function catching(figures, silent) {
  const late = new Set(figures.filter((it) => it.name === "cdc_relay_lag_seconds" && it.value > BEHIND_SECONDS).map((it) => it.process));
  const behind = figures.filter((it) => it.name === "cdc_relay_lag_bytes" && it.value > BEHIND_BYTES && late.has(it.process) && !silent.includes(it.process));
  if (behind.length === 0) return [];
  const most = bytes(Math.max(...behind.map((it) => it.value)));
  return [["wait", behind.length === 1 ? `The ${spoken(behind[0].process)} catches up: ${most} of log to go.` : `${behind.length} relays catch up: at most ${most} of log to go.`]];
}

/** Shows what is going on; a sentence that stays is not said again. */
export function tell(view) {
  if (!view.state && !view.lost) return;
  const now = Date.now();
  keep($("notices"), notices(view, now), ([look, text]) => look + text, ([look, text]) =>
    el("p", { class: `notice ${look}` }, mark(look), el("span", {}, text)));
  const link = $("link"), [look, text] = view.lost ? ["bad", "no answer"] : ["good", "live"];
  if (link.textContent !== text) {
    link.className = `badge ${look}`;
    link.textContent = text;
  }
}

/** Notes what is other than before. */
export function note(view) {
  const now = { lost: view.lost, away: Boolean(view.state?.kafka_away_since_ms), breaker: null, troubles: {}, restarts: {} };
  const stage = view.state?.stage ?? (view.state?.staged ? null : { troubles: [], figures: [] });
  if (!stage) return;
  for (const { name, on } of stage.troubles) now.troubles[name] = on;
  for (const { name, restarts, answers } of stage.processes ?? []) {
    now.restarts[name] = restarts;
    if (answers) starting.delete(name);
  }
  now.breaker = stage.figures.find((it) => it.name === "shop_provider_breaker_state")?.value ?? 0;
  if (before) {
    if (before.lost && !now.lost) add("good", "The storefront answers again.");
    if (!before.lost && now.lost) add("bad", "The storefront does not answer.");
    if (now.away !== before.away) add(now.away ? "bad" : "good", now.away ? "Kafka does not answer." : "Kafka answers again.");
    for (const [name, on] of Object.entries(now.troubles)) {
      if (on !== (before.troubles[name] ?? false)) add(on ? "bad" : "good", `${title(name)}: ${on ? "on" : "over"}`);
    }
    const died = Object.keys(now.restarts).filter((name) => now.restarts[name] > (before.restarts[name] ?? 0));
    for (const name of died) {
      restarted.set(name, Date.now());
      starting.add(name);
    }
    if (died.length) add("wait", `${and(died.map(spoken))} died and ${died.length > 1 ? "were" : "was"} started again`);
    // That it tries again and again while it is open is drawn, and would push out all else here.
    if (now.breaker !== 0 && before.breaker === 0) add("bad", "The breaker opens");
    if (now.breaker === 0 && before.breaker !== 0) add("good", "The breaker is closed again");
  }
  before = now;
}

function add(look, text) {
  log.unshift({ at: new Date(), look, text, key: `${Date.now()} ${text}` });
  log.splice(LOGGED);
  $("log-empty").hidden = true;
  keep($("log"), log.slice(0, SHOWN), (it) => it.key, (it) =>
    el("li", {}, el("time", { datetime: it.at.toISOString() }, clock(it.at)), el("span", {}, mark(it.look), ` ${it.text}`)));
}
