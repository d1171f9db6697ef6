// Finds elements of the page.

/**
 * The first element that matches.
 * @template {string} Selector
 * @param {Selector} selector
 * @param {ParentNode} parent
 * @returns {Selector extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Selector] : HTMLElement}
 * @throws {Error} None does.
 */
export function find(selector, parent = document) {
  const found = parent.querySelector(selector);
  if (!found) throw new Error(`Nothing on the page is ${selector}.`);
  return /** @type {any} */ (found);
}
