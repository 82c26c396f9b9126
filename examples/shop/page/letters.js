// What consumers have set aside, dead letters and parked messages, with a way back. A server that knows of no such list
// has none here.

import { $, el, keep, mark, put } from "/page/elements.js";
import { and, clock, count, many } from "/page/words.js";

const LOOK_EVERY_MS = 2000;
const SHOWN = 8;
/** A service tells at most so many. */
const TOLD_MAX = 100;

/** How many wait for a person, and whether a service may have more of them than it tells. */
export const aside = { dead: 0, more: false };

let missing = false, asking = false, looked = -Infinity, seen = false;
/** What was listed last, and whether all of it is just being tried again. */
let listed = [], retrying = false;

/** Looks at them while there is reason to. */
export async function letters(figures) {
  const of = (name) => figures.filter((it) => it.name === name).reduce((sum, it) => sum + it.value, 0);
  const reason = of("tailrace_consumer_dead_lettered_total") + of("tailrace_consumer_parked_keys") > 0;
  if (missing || asking || !(reason || seen) || performance.now() - looked < LOOK_EVERY_MS) return;
  asking = true;
  looked = performance.now();
  try {
    const answer = await fetch("/api/dead-letters", { signal: AbortSignal.timeout(4000) });
    missing = answer.status === 404;
    if (answer.ok) show(await answer.json());
  } catch {
    // The next state asks again.
  } finally {
    asking = false;
  }
}

/** Dead ones wait for a person, the others for their time only. */
const needsSomebody = ({ state = "dead" }) => state === "dead" || state === "stuck";

function show(found) {
  seen = seen || found.length > 0;
  $("letters").hidden = !seen;
  const dead = found.filter(needsSomebody);
  aside.dead = dead.length;
  aside.more = [...new Set(dead.map((it) => it.service))].some((service) => found.filter((it) => it.service === service).length >= TOLD_MAX);
  const sorted = [...found].sort((a, b) => needsSomebody(b) - needsSomebody(a) || a.at_ms - b.at_ms);
  put($("letters-title"), found.length ? `Set aside: ${many(found.length, "message")}` : "Set aside: nothing any more");
  keep($("letters-list"), sorted.slice(0, SHOWN), (it) => `${it.service} ${it.id}`, item, update);
  listed = found;
  $("letters-all").hidden = dead.length === 0 && !retrying;
  put($("letters-more"), sorted.length > SHOWN ? `and ${count(sorted.length - SHOWN)} more` : "");
}

function item({ service, id, topic, partition, offset, at_ms: at }) {
  const retry = el("button", { type: "button", class: "push", "aria-label": `Retry ${id} of ${service}` }, "Retry");
  retry.addEventListener("click", async () => {
    if (retry.getAttribute("aria-disabled")) return;
    retry.setAttribute("aria-disabled", "true");
    put($("letters-said"), (await again(service, id)) ?? `The message of ${service} is tried again.`);
    retry.removeAttribute("aria-disabled");
    looked = -Infinity;
  });
  return el("li", {}, el("div", {}, el("strong"), el("br"),
    el("span", { class: "soft small" }, `${topic}, partition ${partition}, offset ${offset}, since ${clock(new Date(at))}`)), retry);
}

/** Has all that wait for a person tried again: one after the other of each service, the services side by side. */
async function all() {
  if (retrying) return;
  retrying = true;
  const button = $("letters-all"), dead = listed.filter(needsSomebody), more = aside.more;
  button.setAttribute("aria-disabled", "true");
  const services = [...new Set(dead.map((it) => it.service))], refused = new Map();
  let asked = 0, taken = 0;
  put($("letters-said"), `Retrying ${many(dead.length, "message")}.`);
  await Promise.all(services.map(async (service) => {
    for (const { id } of dead.filter((it) => it.service === service)) {
      const problem = await again(service, id);
      if (problem === null) taken += 1;
      else refused.set(`${service}: ${problem}`, (refused.get(`${service}: ${problem}`) ?? 0) + 1);
      asked += 1;
      if (asked % 10 === 0) put($("letters-said"), `${count(asked)} of ${many(dead.length, "message")} are asked for.`);
    }
  }));
  const said = [`${many(taken, "message")} of ${and(services)} ${taken === 1 ? "is" : "are"} tried again.`];
  for (const [problem, times] of refused) said.push(`${count(times)} of ${problem}`);
  if (more) said.push("More may be listed now.");
  put($("letters-said"), said.join(" "));
  button.removeAttribute("aria-disabled");
  retrying = false;
  looked = -Infinity;
}

$("letters-all").addEventListener("click", all);

/** The codes that stand where a consumer gave no sentence of its own. */
const REASONS = {
  undecodable: "its payload cannot be read", rejected: "its handler rejected it", failed: "its handler failed", later: "its handler wants it later",
  waits: "it waits for another message", unhandled: "no handler is there for its type", too_old: "it is older than claims are kept",
  future: "its id is from the future", broken_off: "its call was broken off, and how it ended is not known", discarded: "somebody gave it up",
};
const STATES = { dead: "dead letter", stuck: "waits for a person", discard: "given up, becomes a dead letter", calling: "its call is under way" };

function update(li, { service, reason: code, state = "dead", attempts, behind }) {
  const reason = REASONS[code] ?? code;
  const says = STATES[state] ?? `is tried again by itself${attempts ? `, ${many(attempts, "attempt")} so far` : ""}`;
  const more = behind ? `, ${many(behind, "message")} of its key behind it` : "";
  const title = li.querySelector("strong"), text = `${service}: ${reason}. ${says}${more}`;
  if (title.dataset.said === text) return;
  title.dataset.said = text;
  const look = needsSomebody({ state }) ? "bad" : "wait";
  title.replaceChildren(mark(look), ` ${service}: ${reason} `, el("span", { class: "soft" }, `(${says}${more})`));
}

/** Has one tried again; answers with why it is not, or null. */
async function again(service, id) {
  try {
    const path = `/api/dead-letters/${encodeURIComponent(service)}/${encodeURIComponent(id)}/retry`;
    const answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(8000) });
    if (answer.ok) return null;
    if (answer.status === 409) return "It was applied meanwhile, or was retried too often already.";
    return `It cannot be retried now: the answer is ${answer.status}.`;
  } catch {
    return "It cannot be retried now: the storefront does not answer.";
  }
}
