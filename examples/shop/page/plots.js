// Lines over the last five minutes, as the relay's status page draws them; each is said in words as well.

import { $, draw, el, keep, put, set } from "/page/elements.js";
import { NONE, bytes, count, spoken, time } from "/page/words.js";

const KEPT_MS = 300_000;
/** Of a page that was just opened the plots show a minute. */
const SPAN_MIN_MS = 60_000;
/** Rates are taken over this time: from one state to the next they would jump. */
const RATE_OVER_MS = 2500;

const LANES = [["choreography", "one"], ["orchestration", "two"]];
const samples = [];

/** Takes in a state. */
export function sample(state, at) {
  const one = { at };
  if (state.shop) {
    for (const [style] of LANES) {
      const ended = state.shop.counts.filter((it) => it.style === style && it.state !== "placed");
      one[`ended ${style}`] = ended.reduce((sum, it) => sum + it.orders, 0);
      const recent = state.shop.recent?.find((it) => it.style === style);
      one[`p50 ${style}`] = recent?.p50_ms ?? null;
      one[`p99 ${style}`] = recent?.p99_ms ?? null;
    }
  }
  if (state.stage) {
    const figures = state.stage.figures;
    const of = (name) => figures.filter((it) => it.name === name);
    const answers = (process) => state.stage.processes?.find((it) => it.name === process)?.answers ?? true;
    one.published = of("cdc_relay_messages_total").reduce((sum, it) => sum + it.value, 0);
    one.breaker = of("shop_provider_breaker_state")[0]?.value ?? 0;
    one.relays = of("cdc_relay_lag_seconds").map((it) => it.process);
    for (const { process, value } of of("cdc_relay_lag_seconds")) one[`lag ${process}`] = answers(process) ? value * 1000 : null;
    for (const { process, value } of of("cdc_relay_lag_bytes")) one[`bytes ${process}`] = value;
  }
  for (const name of ["ended choreography", "ended orchestration", "published"]) one[`rate ${name}`] = rate(one, name);
  samples.push(one);
  while (samples.length && at - samples[0].at > KEPT_MS) samples.shift();
}

function rate(one, name) {
  const then = samples.findLast((it) => one.at - it.at >= RATE_OVER_MS && it[name] !== undefined) ?? null;
  if (one[name] === undefined || !then || one.at - then.at > 4 * RATE_OVER_MS) return null;
  return Math.max(0, (one[name] - then[name]) / ((one.at - then.at) / 1000));
}

/** Draws everything anew. */
export function plots() {
  if (document.hidden || samples.length === 0) return;
  const last = samples.at(-1);
  const perSecond = (value) => (value < 10 ? value.toFixed(1) : count(Math.round(value)));
  const sum = (one) => LANES.reduce((sum, [style]) => sum + (one[`rate ended ${style}`] ?? 0), 0);
  put($("now-ended"), last["rate ended choreography"] === null ? NONE : perSecond(sum(last)));
  plot("plot-ended", LANES.map(([style, look]) => ({ of: `rate ended ${style}`, look })), (v) => `${perSecond(v)}/s`, "Orders ended per second", 1);
  const half = LANES.map(([style]) => last[`p50 ${style}`]).filter((v) => v !== null && v !== undefined);
  const most = LANES.map(([style]) => last[`p99 ${style}`]).filter((v) => v !== null && v !== undefined);
  put($("now-latency"), half.length ? time(Math.max(...half)) : NONE);
  put($("now-latency-high"), most.length ? `p50 · p99 ${time(Math.max(...most))}` : "p50 of the last 10 s");
  plot("plot-latency", [
    ...LANES.map(([style, look]) => ({ of: `p50 ${style}`, look })),
    ...LANES.map(([style, look]) => ({ of: `p99 ${style}`, look: `${look} high` })),
  ], time, "Time from order to outcome, half and 99 % dashed", 100);
  put($("now-published"), last["rate published"] === null ? NONE : perSecond(last["rate published"]));
  plot("plot-published", [{ of: "rate published", look: "one" }], (v) => `${perSecond(v)}/s`, "Records published per second", 1);
  plot("breaker-plot", [{ of: "breaker", look: "two", steps: true }], (v) => ["closed", "half open", "open"][v] ?? "", "State of the breaker", 2);
  relays(last.relays ?? []);
}

function relays(names) {
  keep($("relays"), names, (name) => name, (name) => {
    const svg = draw("svg", { class: "plot", role: "img", id: `plot-${name}` });
    return el("div", { class: "relay" }, el("span", {}, spoken(name).replace(" relay", "")), svg, el("b"));
  }, (row, name) => {
    const last = samples.at(-1), lag = last[`lag ${name}`], behind = last[`bytes ${name}`];
    const now = row.lastElementChild;
    const text = lag === null || lag === undefined ? "no answer" : time(lag);
    const log = behind === undefined ? "" : bytes(behind);
    if (now.dataset.said !== text + log) {
      now.dataset.said = text + log;
      now.replaceChildren(text, el("small", {}, log));
    }
    plot(`plot-${name}`, [{ of: `lag ${name}`, look: "one" }], time, `How far the ${spoken(name)} is behind`, 1000);
  });
}

/** A plot that is at least `least` high, so that noise does not look like a storm. */
function plot(id, lines, label, what, least) {
  const svg = $(id);
  const width = Math.max(40, svg.clientWidth), height = Math.max(20, svg.clientHeight);
  set(svg, "viewBox", `0 0 ${width} ${height}`);
  const newest = samples.at(-1).at;
  const span = Math.min(KEPT_MS, Math.max(SPAN_MIN_MS, newest - samples[0].at));
  const known = lines.flatMap((line) => samples.map((one) => one[line.of])).filter((v) => v !== null && v !== undefined);
  const top = Math.max(least, ...known);
  // A sparkline has no room for words; the number beside it says what is now.
  const bare = height < 60;
  const head = bare ? 3 : 18, foot = bare ? height - 3 : height - 18, right = width - 5;
  const across = (at) => right - ((newest - at) / span) * right;
  const up = (value) => foot - (value / top) * (foot - head);
  const steps = lines[0].steps;
  const children = [draw("line", { class: "axis", x1: 0, x2: width, y1: foot, y2: foot })];
  if (!bare) {
    children.push(
      draw("line", { class: "axis", x1: 0, x2: width, y1: head, y2: head }),
      draw("text", { x: 0, y: head - 5 }, label(top)),
      draw("text", { x: 0, y: height - 4 }, `${time(span)} ago`),
      draw("text", { x: width, y: height - 4, "text-anchor": "end" }, "now"));
    if (steps) children.push(draw("text", { x: 0, y: foot - 4 }, label(0)));
  }
  for (const line of lines) {
    for (const points of pieces(line, across, up)) {
      children.push(draw("polyline", { class: line.look, points: points.map((xy) => xy.map((v) => v.toFixed(1)).join()).join(" ") }));
    }
    const last = samples.at(-1)[line.of];
    if (last !== null && last !== undefined && !line.look.includes("high")) {
      children.push(draw("circle", { class: line.look, cx: right.toFixed(1), cy: up(last).toFixed(1), r: bare ? 2.5 : 3.5 }));
    }
  }
  svg.replaceChildren(...children);
  const now = samples.at(-1)[lines[0].of];
  set(svg, "aria-label", known.length
    ? `${what} over the last ${time(span)}: at most ${label(Math.max(...known))}${now === null || now === undefined ? "" : `, now ${label(now)}`}`
    : `${what}: nothing to show yet`);
}

/** A line is broken where nothing is known. */
function pieces(line, across, up) {
  const found = [];
  let piece = null, before = null;
  for (const one of samples) {
    const value = one[line.of];
    if (value === null || value === undefined || (before && one.at - before.at > 5000)) piece = null;
    before = one;
    if (value === null || value === undefined) continue;
    if (!piece) found.push(piece = []);
    else if (line.steps) piece.push([across(one.at), piece.at(-1)[1]]);
    piece.push([across(one.at), up(value)]);
  }
  return found;
}
