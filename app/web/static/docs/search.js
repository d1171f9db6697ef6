// Shows only the operations and schemas that hold all words of the search.
import { find } from "./elements.js";

/**
 * @typedef {object} Entry
 * @property {HTMLElement} section
 * @property {string} text What is searched, in lower case.
 * @property {HTMLElement} item Its line in the contents.
 */

/** Filter the page as one types, and go to the search with the key `/`. */
export function search() {
  const form = find("[role=search]");
  const field = find("input", form);
  const entries = [...document.querySelectorAll("article")].map(entryOf);
  /** @type {NodeListOf<HTMLElement>} */
  const groups = document.querySelectorAll(".group, nav > details > ul > li");
  const inside = entries.flatMap(({ section, item }) => [section, item]);
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { section, text, item } of entries) {
      item.hidden = section.hidden = !words.every((word) => text.includes(word));
      for (const row of section.querySelectorAll(".parameters > div")) {
        row.classList.toggle("found", words.some((word) => textOf(row).includes(word)));
      }
    }
    for (const group of groups) {
      group.hidden = !inside.some((one) => !one.hidden && group.contains(one));
    }
    const found = entries.filter(({ section }) => !section.hidden).length;
    find("#found").textContent = words.length ? said(found, field.value) : "";
    if (words.length) scrollTo({ top: 0, behavior: "instant" });
    dispatchEvent(new Event("scroll")); // what is current may have moved
  };
  const clear = () => {
    field.value = "";
    filter();
  };

  field.addEventListener("input", filter);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    document.querySelector("article:not([hidden]) h3")?.querySelector("a")?.focus();
  });
  document.addEventListener("keydown", (event) => {
    const target = /** @type {Element} */ (event.target);
    const isTyping = target.closest("input, textarea, select, dialog");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    field.focus();
    field.select();
  });
  document.addEventListener("click", (event) => {
    /** @type {HTMLAnchorElement | null} */
    const link = /** @type {Element} */ (event.target).closest('a[href^="#"]');
    const target = link && document.getElementById(link.hash.slice(1));
    if (target?.closest("[hidden]")) clear(); // before the browser goes there
  });
  if (field.value) filter(); // the browser has kept it
}

/**
 * @param {HTMLElement} section
 * @returns {Entry}
 */
function entryOf(section) {
  const searched = [...section.querySelectorAll("h3, h3 + p, .parameters")].map(textOf);
  const item = find(`nav li:has(> a[href="#${CSS.escape(section.id)}"])`);
  return { section, text: [section.id, ...searched].join(" "), item };
}

/** @param {Element} element */
const textOf = (element) => element.textContent.toLowerCase();

/**
 * @param {number} found
 * @param {string} asked
 */
function said(found, asked) {
  if (!found) return `Nothing is called “${asked.trim()}”. Press Escape to see everything again.`;
  return found === 1 ? "1 is found." : `${found} are found.`;
}
