// The page of the shop. Everything that it shows comes with each state of the feed; what does not come stays as it was.

import { books } from "/page/books.js";
import { $, el, keep, mark, put, set } from "/page/elements.js";
import { follow } from "/page/feed.js";
import { lanes } from "/page/lanes.js";
import { letters } from "/page/letters.js";
import { note, tell } from "/page/notices.js";
import { plots, sample } from "/page/plots.js";
import { breaker, troubles } from "/page/trouble.js";
import { count, many, spoken } from "/page/words.js";

/** `heard`: who has ever answered. */
const view = { state: null, at: null, lost: false, heard: { shop: false, stage: false } };
const showShop = lanes();

function told(state) {
  view.state = state;
  view.at = new Date();
  view.lost = false;
  view.heard.shop ||= Boolean(state.shop);
  view.heard.stage ||= Boolean(state.stage);
  sample(state, performance.now());
  if (state.shop) showShop(state.shop);
  if (state.stage) showStage(state.stage);
  if (!state.staged) alone();
  note(view);
  tell(view);
  plots();
}

function lost() {
  view.lost = true;
  // What nobody can look at now is not shown as if it were well.
  books(null);
  note(view);
  tell(view);
}

function showStage(stage) {
  const sum = (name) => stage.figures.filter((it) => it.name === name).reduce((sum, it) => sum + it.value, 0);
  troubles(stage.troubles);
  breaker(sum("shop_provider_breaker_state"));
  books(stage.books);
  letters(stage.figures);
  counters([
    ["records written twice", stage.copies],
    ["duplicates suppressed", sum("tailrace_consumer_duplicates_total")],
    ["records applied", sum("tailrace_consumer_processed_total")],
    ["keys parked now", sum("tailrace_consumer_parked_keys")],
    ["dead letters", sum("tailrace_consumer_dead_lettered_total")],
  ]);
  keep($("processes"), stage.processes ?? [], (it) => it.name, () => el("li", { class: "process" }), process);
}

/** Each process was started by itself: what only the stage knows of is not there. */
function alone() {
  for (const it of document.querySelectorAll("[data-stage]")) it.hidden = true;
  $("no-stage").hidden = false;
}

function counters(rows) {
  const list = $("counters");
  keep(list, rows, ([name]) => name, ([name]) => el("div", {}, el("dt", {}, name), el("dd")), (row, [, value]) => put(row.lastElementChild, count(value)));
}

function process(li, { name, answers, restarts }) {
  const key = `${answers} ${restarts}`;
  if (li.dataset.shown === key) return;
  li.dataset.shown = key;
  set(li, "class", `process ${answers ? "" : "bad"}`);
  li.replaceChildren(mark(answers ? "good" : "bad"), el("span", {}, spoken(name)),
    el("span", { class: "soft" }, answers ? (restarts ? many(restarts, "restart") : "up") : "no answer"));
}

// An error of the page is one that nobody sees: it says so rather than to look as if all were well.
addEventListener("error", () => { $("link").textContent = "broken"; });
follow("/api/feed", { told, lost });
// What is told for a while only has to go when its time is over, also while nothing comes.
setInterval(() => tell(view), 1000);
