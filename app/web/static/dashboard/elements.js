// Makes and finds elements. Text of events is only ever set as text.

/**
 * The element of the page with this id.
 * @param {string} id
 * @returns {any}
 */
export const byId = (id) => document.getElementById(id);

/**
 * @param {string} name
 * @param {Record<string, any>} properties such as `className`; those with a hyphen are attributes
 * @param {(Node | string)[]} children
 * @returns {any}
 */
export function element(name, properties = {}, ...children) {
  const made = /** @type {any} */ (document.createElement(name));
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/**
 * An element of a picture.
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 * @param {Node[]} children
 */
export function drawing(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/**
 * Replace what is in an element, unless that is the same already or somebody is about to use it.
 * @param {Element} parent
 * @param {Element[]} children
 */
export function fill(parent, children) {
  const wrapped = element("div", {}, ...children);
  if (parent.innerHTML === wrapped.innerHTML) return false;
  const focused = /** @type {any} */ (document.activeElement);
  const key = parent.contains(focused) ? focused.dataset?.key : undefined;
  parent.replaceChildren(...wrapped.childNodes);
  if (!key) return true;
  for (const one of /** @type {any} */ (parent.querySelectorAll("[data-key]"))) if (one.dataset.key === key) one.focus();
  return true;
}
