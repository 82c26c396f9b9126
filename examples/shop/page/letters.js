// What consumers have set aside, dead letters and parked messages, with a way back. A server that knows of no such list
// has none here.

import { $, el, keep, mark, put } from "/page/elements.js";
import { clock, count, many } from "/page/words.js";

const LOOK_EVERY_MS = 2000;
const SHOWN = 8;
/** A service tells at most so many. */
const TOLD_MAX = 100;

/** How many wait for a person, and whether a service may have more of them than it tells. */
export const aside = { dead: 0, more: false };

let missing = false, asking = false, looked = -Infinity, seen = false;

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
  put($("letters-more"), sorted.length > SHOWN ? `and ${count(sorted.length - SHOWN)} more` : "");
}

function item({ service, id, topic, partition, offset, at_ms: at }) {
  const retry = el("button", { type: "button", class: "push", "aria-label": `Retry ${id} of ${service}` }, "Retry");
  retry.addEventListener("click", async () => {
    if (retry.getAttribute("aria-disabled")) return;
    retry.setAttribute("aria-disabled", "true");
    put($("letters-said"), await again(service, id));
    retry.removeAttribute("aria-disabled");
    looked = -Infinity;
  });
  return el("li", {}, el("div", {}, el("strong"), el("br"),
    el("span", { class: "soft small" }, `${topic}, partition ${partition}, offset ${offset}, since ${clock(new Date(at))}`)), retry);
}

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

/** Has one tried again; answers with what came of it. */
async function again(service, id) {
  try {
    const path = `/api/dead-letters/${encodeURIComponent(service)}/${encodeURIComponent(id)}/retry`;
    const answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(8000) });
    if (answer.ok) return `The message of ${service} is tried again.`;
    if (answer.status === 409) return "It was applied meanwhile, or was retried too often already.";
    return `It cannot be retried now: the answer is ${answer.status}.`;
  } catch {
    return "It cannot be retried now: the storefront does not answer.";
  }
}
