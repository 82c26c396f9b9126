// The books: of the shop, and of the control lane beside it.

import { $, el, keep, mark, put, set } from "/page/elements.js";
import { clock, count, euro, many } from "/page/words.js";

const DATABASES = {
  orders: ["orders", "euro"], payments: ["payments", "euro"], stock: ["stock", "pieces"], shipping: ["shipping", "euro"],
  storefront: ["storefront", "points"], control: ["orders", "euro"], control_payments: ["payments", "euro"],
};
/** From where something goes out for an order; what is not here is on its way, or has arrived. */
const FROM = ["customers", "cards", "stock", "postage-budget", "points-issued"];

let readAt = null;

/** Shows books, or that they cannot be read: then those from before stay, and say so. */
export function books(found) {
  if (!found) {
    for (const name of ["shop", "control"]) {
      const text = readAt ? `cannot be read now; below is from ${clock(readAt)}` : "not read yet";
      verdict(name, "wait", text);
      tile(name, "wait", name === "shop" ? "The shop's books" : "The control lane's books", readAt ? "cannot be read now" : "have not been read yet");
    }
    return;
  }
  readAt = new Date();
  shop(found.shop);
  control(found.control);
}

function shop({ ended, running, wrong, settling, faults, ledgers }) {
  const look = ended === 0 ? "soft" : wrong ? "bad" : "good";
  const word = { soft: "nothing to check yet", bad: `red: ${many(wrong, "fault")}`, good: "green" }[look];
  verdict("shop", look, word);
  const late = settling ? `, ${many(settling, "posting")} of the last minute on the way` : "";
  const detail = ended === 0 ? "place an order to begin"
    : wrong ? `${many(wrong, "fault")} in ${many(ended, "order")}` : `${many(ended, "order")} ended${running ? `, ${count(running)} running` : ""}${late}`;
  tile("shop", look, { soft: "The shop's books: empty", bad: "The shop's books are wrong", good: "The shop's books add up" }[look], detail);
  cards("ledgers-shop", ledgers, (it) => (it.wrong && wrong ? "bad" : isEmpty(it) ? "soft" : "good"), (it) =>
    isEmpty(it) ? "nothing booked yet" : it.wrong ? (wrong ? `${many(it.wrong, "order")} wrong` : `${many(it.wrong, "order")} of the last minute on the way`) : "every ended order is right");
  $("faults").hidden = !wrong;
  keep($("faults"), wrong ? faults : [], (it) => it, (it) => el("li", {}, it));
}

function control({ orders, completed, lost, doubled, late, ledgers }) {
  // What was placed a moment ago is under way, and not lost.
  const gone = lost - late, wrong = gone + doubled;
  const look = orders === 0 ? "soft" : wrong ? "bad" : "good";
  const words = [gone && `${count(gone)} lost`, doubled && `${count(doubled)} paid twice`].filter(Boolean).join(", ");
  verdict("control", look, { soft: "nothing to check yet", bad: `red: ${words}`, good: "green, so far: it has not met with trouble" }[look]);
  tile("control", look, { soft: "The control lane's: empty", bad: "The control lane's do not", good: "The control lane's do too" }[look],
    wrong ? `${words} of ${count(orders)}` : orders ? `${count(completed)} paid; make trouble` : "payments without Tailrace");
  cards("ledgers-control", ledgers, (it) => (it.wrong > late ? "bad" : isEmpty(it) ? "soft" : "good"), (it) =>
    isEmpty(it) ? "nothing booked yet" : it.wrong > late ? `${many(it.wrong, "order")} wrong` : it.wrong ? `${many(it.wrong, "order")} under way` : "every order is right");
}

const isEmpty = ({ accounts }) => Object.keys(accounts).length === 0;

function verdict(name, look, text) {
  const element = $(`books-${name}`);
  if (element.dataset.said === look + text) return;
  element.dataset.said = look + text;
  element.className = `verdict ${look}`;
  element.replaceChildren(mark(look), ` ${text}`);
}

function tile(name, look, title, detail) {
  const element = $(`tile-${name}`);
  if (element.dataset.said === look + title + detail) return;
  element.dataset.said = look + title + detail;
  element.className = `tile ${look}`;
  element.replaceChildren(mark(look), el("strong", {}, title), el("span", {}, detail));
}

function cards(id, ledgers, look, says) {
  keep($(id), ledgers ?? [], (it) => it.database, () => el("div", { class: "card ledger" }, el("h4"), el("dl"), el("p")), (card, it) => {
    const state = JSON.stringify(it) + look(it);
    if (card.dataset.state === state) return;
    card.dataset.state = state;
    const [title, dl, text] = card.children, [name, unit] = DATABASES[it.database] ?? [it.database, ""];
    const amount = unit === "euro" ? euro : (number) => count(number).replace("-", "−");
    set(card, "class", `card ledger ${look(it)}`);
    title.replaceChildren(name, el("span", { class: "soft" }, unit));
    const rank = (account) => (FROM.includes(account) ? 0 : account === "in-transit" ? 1 : 2);
    const accounts = Object.entries(it.accounts).sort(([a], [b]) => rank(a) - rank(b));
    dl.replaceChildren(
      ...accounts.flatMap(([account, sum]) => [el("dt", {}, account.replace("-", " ")), el("dd", {}, amount(sum))]),
      el("dt", { class: "sum" }, "together"), el("dd", { class: "sum" }, amount(it.balance)));
    set(text, "class", look(it));
    text.replaceChildren(mark(look(it)), ` ${says(it)}`);
  });
}
