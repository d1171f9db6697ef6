// The table of contents: folded on narrow screens, and marked at what is being read.
import { find } from "./elements.js";

const BELOW_HEADER = 120; // pixels: what is above them has been read

/** Mark the current section in the contents, and fold them again where they cover the page. */
export function followContents() {
  const nav = find("nav");
  const folder = find("details", nav);
  const wide = matchMedia(`(min-width: ${folder.dataset.wide})`);
  nav.addEventListener("click", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.closest("a") && !wide.matches) folder.open = false;
  });
  nav.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || wide.matches || !folder.open) return;
    folder.open = false;
    find("summary", folder).focus();
  });

  let asked = 0;
  const mark = () => {
    asked = 0;
    markCurrent(nav, currentSection());
  };
  const markSoon = () => {
    asked ||= requestAnimationFrame(mark);
  };
  addEventListener("scroll", markSoon, { passive: true });
  addEventListener("resize", markSoon);
  mark();
}

/**
 * The last section that begins above what is being read; at the page's end, the one in the address
 * if it can be seen, as it may be too short to be scrolled up.
 * @returns {HTMLElement | undefined}
 */
function currentSection() {
  const shown = [...document.querySelectorAll("article")].filter((one) => one.offsetParent);
  const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  if (isAtEnd) {
    const asked = shown.find((one) => one.id === location.hash.slice(1));
    return asked && asked.getBoundingClientRect().bottom > 0 ? asked : shown.at(-1);
  }
  return shown.findLast((one) => one.getBoundingClientRect().top <= BELOW_HEADER);
}

/**
 * @param {HTMLElement} nav
 * @param {HTMLElement | undefined} section
 */
function markCurrent(nav, section) {
  const link = section && nav.querySelector(`a[href="#${CSS.escape(section.id)}"]`);
  const marked = nav.querySelector("[aria-current]");
  if (marked === (link ?? null)) return;
  marked?.removeAttribute("aria-current");
  if (!link) return;
  link.setAttribute("aria-current", "location");
  // Not scrollIntoView: it would also scroll the page.
  const [box, around] = [link.getBoundingClientRect(), nav.getBoundingClientRect()];
  if (box.top < around.top || box.bottom > around.bottom) {
    nav.scrollTop += box.top - around.top - around.height / 2;
  }
}
