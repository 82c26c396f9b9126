// What is going on, in words: what stands in the way now at the top of the page, and what has happened in a list.

import { $, el, keep, mark } from "/page/elements.js";
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
/** Relays that are further behind than that catch up. */
const BEHIND_BYTES = 256 * 1024;
const NOTICES_MAX = 3;
const LOGGED = 30, SHOWN = 7;

const restarted = new Map();
const log = [];
let before = null;

/** What is so now, the worst first: `[look, text]`. Pure but for the clock. */
function notices(view, now) {
  const found = [];
  if (view.lost) found.push(["bad", view.state
    ? `The storefront does not answer: trying again by itself. What you see is from ${clock(view.at)}.`
    : "The storefront does not answer: trying again by itself."]);
  const { shop, stage } = view.state ?? {};
  if (!view.lost && view.state?.staged && !stage) found.push(["bad", "Whoever started the shop does not answer: troubles, figures and books are from before."]);
  const troubles = stage?.troubles ?? [];
  for (const { name, on, changing, failed } of troubles) {
    if (changing && name === "kafka-stopped") found.push(["bad", on ? "Kafka is being started: that takes some seconds." : "Kafka is being stopped: that takes some seconds."]);
    else if (on && TROUBLES[name]) found.push(TROUBLES[name]);
    if (failed) found.push(["wait", `${title(name)}: it could not be switched. Try again.`]);
  }
  const stopped = troubles.some((it) => (it.on || it.changing) && it.name === "kafka-stopped");
  const away = view.lost ? null : view.state?.kafka_away_since_ms;
  if (away && !stopped) found.push(["bad", `Kafka has not answered since ${clock(new Date(away))}. Orders are still taken: what services have to say waits in Postgres until it does.`]);
  const paused = troubles.some((it) => it.on && it.name === "postgres-paused");
  if (!view.lost && view.state && !shop && !paused) found.push(["bad", "The read model does not answer: orders and counts are from before."]);
  const silent = view.lost ? [] : (stage?.processes ?? []).filter((it) => !it.answers).map((it) => spoken(it.name));
  if (silent.length) found.push(["bad", `${and(silent)} ${silent.length > 1 ? "do" : "does"} not answer: ${silent.length > 1 ? "they are" : "it is"} being started again.`]);
  const back = [...restarted].filter(([name, at]) => now - at < RESTART_TOLD_MS && !silent.includes(spoken(name))).map(([name]) => spoken(name));
  if (back.length) found.push(["wait", `${and(back)} died and ${back.length > 1 ? "have" : "has"} been started again.`]);
  if (waiting.orders > 3 || waiting.problem) found.push(["wait", `${many(waiting.orders, "order")} ${waiting.orders === 1 ? "waits" : "wait"} in this page until taken${waiting.problem ? `: ${waiting.problem}, trying again` : ""}.`]);
  const behind = (stage?.figures ?? []).filter((it) => it.name === "cdc_relay_lag_bytes").reduce((sum, it) => sum + it.value, 0);
  if (behind > BEHIND_BYTES && !stopped && !away && !paused) found.push(["wait", `The relays catch up: ${bytes(behind)} of log to go.`]);
  found.sort(([a], [b]) => (a === b ? 0 : a === "bad" ? -1 : 1));
  found.splice(NOTICES_MAX);
  if (found.length === 0) {
    const orders = (shop?.counts ?? []).reduce((sum, it) => sum + it.orders, 0);
    found.push(["good", orders ? "All is well: everything runs, and orders go through." : "All is well, and nobody has ordered yet: place an order."]);
  }
  return found;
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
  for (const { name, restarts } of stage.processes ?? []) now.restarts[name] = restarts;
  now.breaker = stage.figures.find((it) => it.name === "shop_provider_breaker_state")?.value ?? 0;
  if (before) {
    if (before.lost && !now.lost) add("good", "The storefront answers again.");
    if (!before.lost && now.lost) add("bad", "The storefront does not answer.");
    if (now.away !== before.away) add(now.away ? "bad" : "good", now.away ? "Kafka does not answer." : "Kafka answers again.");
    for (const [name, on] of Object.entries(now.troubles)) {
      if (on !== (before.troubles[name] ?? false)) add(on ? "bad" : "good", `${title(name)}: ${on ? "on" : "over"}`);
    }
    const died = Object.keys(now.restarts).filter((name) => now.restarts[name] > (before.restarts[name] ?? 0));
    for (const name of died) restarted.set(name, Date.now());
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
