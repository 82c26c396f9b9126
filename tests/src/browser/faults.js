// What keeps people from reading a page and axe-core does not see: WCAG 2.2, level AA. Answers with a sentence for each
// fault.
const faults = [];

// Red, green, blue from 0 to 255 and alpha from 0 to 1; computed colours are rgb() or rgba().
function colour(text) {
  const [red, green, blue, alpha = 1] = (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  return [red, green, blue, alpha];
}

function over(top, ground) {
  return [0, 1, 2].map((at) => top[at] * top[3] + ground[at] * (1 - top[3])).concat(1);
}

function ground(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const layer = colour(getComputedStyle(at).backgroundColor);
    if (layer[3] > 0) layers.push(layer);
    if (layer[3] === 1) break;
  }
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
  return layers.reverse().reduce((under, layer) => over(layer, under), canvas);
}

function luminance([red, green, blue]) {
  const [r, g, b] = [red, green, blue].map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(text, element) {
  let front = colour(text);
  for (let at = element; at; at = at.parentElement) front[3] *= Number(getComputedStyle(at).opacity);
  const under = ground(element);
  const [one, other] = [luminance(over(front, under)), luminance(under)].sort((a, b) => b - a);
  return (one + 0.05) / (other + 0.05);
}

function name(element) {
  const id = element.id ? "#" + element.id : "";
  return element.localName + id + " " + JSON.stringify((element.textContent ?? "").trim().slice(0, 40));
}

// Success criterion 1.4.3: text, also where it is drawn, which axe-core leaves out.
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  const written = texts.currentNode.data.trim() && !["SCRIPT", "STYLE"].includes(element.tagName);
  if (!written || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
  const style = getComputedStyle(element);
  const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
  const least = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
  const found = contrast(element instanceof SVGElement ? style.fill : style.color, element);
  if (found < least) faults.push(`${name(element)} has a contrast of ${found.toFixed(2)}, not ${least}`);
  if (size < 11) faults.push(`${name(element)} is written in ${size} px`);
}

// 1.4.11: what a graphic consists of.
for (const line of document.querySelectorAll("polyline, path")) {
  const found = contrast(getComputedStyle(line).stroke, line);
  if (found < 3) faults.push(`a line of ${name(line.closest("svg"))} has a contrast of ${found.toFixed(2)}, not 3`);
}

// 1.4.10: no second direction to scroll in.
const page = document.scrollingElement;
if (page.scrollWidth > innerWidth) {
  const wide = [...document.body.querySelectorAll("*")].find((one) => one.getBoundingClientRect().right > innerWidth + 1);
  faults.push(`the page is ${page.scrollWidth} px wide and the window ${innerWidth}: ${wide ? name(wide) : ""}`);
}

// 2.5.8: room for a finger, but for links within a sentence.
for (const target of document.querySelectorAll("a[href], button, input, select, summary")) {
  const box = target.getBoundingClientRect();
  const inline = getComputedStyle(target).display === "inline";
  if (!inline && box.width > 0 && (box.height < 24 || box.width < 24)) {
    faults.push(`${name(target)} is ${Math.round(box.width)} by ${Math.round(box.height)} px`);
  }
}

// 1.3.1: what points to a part of the page finds it, and one alone.
if (document.querySelectorAll("h1").length !== 1) faults.push("the document has not one h1");
const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`two elements have the id ${id}`);
for (const one of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")) {
  const of = one.getAttribute("aria-labelledby") ?? one.getAttribute("aria-describedby") ?? one.htmlFor;
  for (const id of of.split(/\s+/)) if (!document.getElementById(id)) faults.push(`${name(one)} points to #${id}, which is not there`);
}
return [...new Set(faults)];
