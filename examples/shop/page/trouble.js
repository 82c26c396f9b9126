// Switches for what can go wrong, and the breaker that answers to one of them.

import { $, el, keep, mark, put, set } from "/page/elements.js";
import { clock } from "/page/words.js";

const WORDS = {
  "provider-slow": ["Payment provider slow", "It answers after 3 s, and payments waits 0.4 s. The breaker opens; small amounts are lent meanwhile."],
  duplicates: ["Every record twice", "A second producer writes each record again, with the same id."],
  "relay-crash": ["Crash the relays", "SIGKILL to all four, one after the other. Each resumes where Kafka's last checkpoint says."],
  "payments-crash": ["Crash payments in mid-transaction", "At its next payment it is killed between the write and the commit. The control lane is killed too."],
  "postgres-paused": ["Pause Postgres", "SIGSTOP to the server: its connections stay open, and nobody answers."],
  poison: ["Faulty handler", "The one that credits points refuses every order: dead letters, to be retried below once it is mended."],
  "kafka-stopped": ["Stop Kafka", "Orders are taken all the same; what services have to say waits in Postgres."],
};
/** What has been done by a blow, since nothing of it is left to be seen. */
const DONE = {
  "relay-crash": "All four relays were killed. They are started again at once.",
  "payments-crash": "Payments will not survive its next payment: place an order.",
};

const BREAKER = [
  { name: "closed", look: "good", says: "Every payment asks the provider." },
  { name: "half open", look: "wait", says: "Two payments try whether the provider is back." },
  { name: "open", look: "bad", says: "Nobody asks the provider. After 1.5 s the next payment tries again." },
];

/** Troubles as people read them. */
export const title = (name) => WORDS[name]?.[0] ?? name;

/** Shows the switches as they stand. */
export function troubles(found) {
  keep($("troubles"), found, (it) => it.name, (it) => item(it), (li, it) => {
    const button = li.firstElementChild, knob = button.lastElementChild;
    set(button, "aria-disabled", it.changing ? "true" : null);
    if (it.at_once) return put(knob, it.changing ? "…" : "now");
    set(button, "aria-pressed", it.on);
    put(knob, it.changing ? (it.on ? "ends …" : "begins …") : it.on ? "on" : "off");
    button.dataset.on = it.on;
  });
}

function item({ name, at_once: atOnce }) {
  const [text, does] = WORDS[name] ?? [name, ""];
  const id = `does-${name}`;
  const button = el("button", { type: "button", class: "switch", id: `trouble-${name}`, "aria-describedby": id },
    el("span", {}, text), el("span", { class: atOnce ? "hit" : "knob", "aria-hidden": "true" }));
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    flip(name, atOnce ? true : button.dataset.on !== "true", atOnce);
  });
  return el("li", {}, button, el("p", { class: "does", id }, does));
}

async function flip(name, on, atOnce) {
  const say = (text) => put($("trouble-said"), text);
  try {
    const answer = await fetch(`/api/troubles/${name}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ on }), signal: AbortSignal.timeout(8000),
    });
    if (!answer.ok) throw new Error(answer.status === 409 ? "it is just being switched" : `the answer is ${answer.status}`);
    say(atOnce ? `${clock(new Date())} ${DONE[name] ?? "Done."}` : "");
  } catch (error) {
    say(`${title(name)}: not possible now, ${error.message}.`);
  }
}

/** Shows where the breaker stands. */
export function breaker(state) {
  keep($("breaker"), BREAKER, (it) => it.name, (it) => el("li", {}, it.name), (li, it) => {
    const is = BREAKER[state] === it;
    set(li, "aria-current", is ? "true" : null);
    set(li, "class", is ? it.look : "");
    if (is !== Boolean(li.querySelector("svg"))) li.replaceChildren(...(is ? [mark(it.look), " "] : []), it.name);
  });
  put($("breaker-says"), BREAKER[state]?.says ?? "");
}
