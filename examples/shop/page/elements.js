// Elements, made and changed without ever reading text as markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; a child is an element or a text. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for what is drawn. */
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** One of the marks at the head of the document: what a colour says, a shape says too. */
export function mark(look) {
  return draw("svg", { class: `mark ${look}`, "aria-hidden": "true" }, draw("use", { href: `#mark-${look}` }));
}

/** Writes a text where it changed: what somebody selects stays selected, and a screen reader says it once. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute where it changed; null takes it away. */
export function set(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * Brings the children of a list in line with these things: an element stays as long as its key does, and with it the
 * focus of whoever is on it.
 */
export function keep(list, things, key, make, update) {
  const before = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let at = list.firstElementChild;
  for (const [index, thing] of things.entries()) {
    const name = String(key(thing, index));
    let child = before.get(name);
    if (child) before.delete(name);
    else {
      child = make(thing);
      child.dataset.key = name;
    }
    if (child === at) at = at.nextElementSibling;
    else list.insertBefore(child, at);
    update?.(child, thing);
  }
  for (const gone of before.values()) gone.remove();
}
