// Dead letters, with a way back. A server that knows none of them has no such list.

import { $, el, keep, put } from "/page/elements.js";
import { clock } from "/page/words.js";

/** While there are some, others may have been retried elsewhere. */
const LOOK_EVERY_MS = 3000;

let missing = false, asking = false, looked = -Infinity, seen = 0;

/** Looks at them when there is reason to. */
export async function letters(figures) {
  const of = (name) => figures.filter((it) => it.name === name).reduce((sum, it) => sum + it.value, 0);
  const count = of("tailrace_consumer_dead_lettered_total");
  const now = performance.now();
  const due = count > seen || (!$("letters").hidden && now - looked > LOOK_EVERY_MS);
  if (missing || asking || !due || count === 0) return;
  asking = true;
  looked = now;
  try {
    const answer = await fetch("/api/dead-letters", { signal: AbortSignal.timeout(4000) });
    missing = answer.status === 404;
    if (!answer.ok) return;
    seen = count;
    show(await answer.json());
  } catch {
    // The next state asks again.
  } finally {
    asking = false;
  }
}

function show(found) {
  $("letters").hidden = false;
  if (found.length === 0) put($("letters-said"), "None is left.");
  keep($("letters-list"), found, (it) => `${it.service}/${it.id}`, item);
}

function item({ service, id, topic, partition, offset, reason, at_ms: at }) {
  const retry = el("button", { type: "button", class: "push", "aria-label": `Retry dead letter ${id} of ${service}` }, "Retry");
  retry.addEventListener("click", async () => {
    if (retry.getAttribute("aria-disabled")) return;
    retry.setAttribute("aria-disabled", "true");
    try {
      const path = `/api/dead-letters/${encodeURIComponent(service)}/${encodeURIComponent(id)}/retry`;
      const answer = await fetch(path, { method: "POST", signal: AbortSignal.timeout(8000) });
      put($("letters-said"), answer.ok ? `The dead letter of ${service} is tried again.` : `It cannot be retried now: the answer is ${answer.status}.`);
    } catch {
      put($("letters-said"), "It cannot be retried now: the storefront does not answer.");
    }
    retry.removeAttribute("aria-disabled");
    looked = -Infinity;
  });
  return el("li", {}, el("div", {},
    el("strong", {}, `${service}: ${reason}`), el("br"),
    el("span", { class: "soft small" }, `${topic}, partition ${partition}, offset ${offset}, at ${clock(new Date(at))}`)), retry);
}
