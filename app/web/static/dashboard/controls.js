// The period, the website, the tabs and the chips: what the address says, and how to change it.

import * as address from "./address.js";
import * as api from "./api.js";
import { byId, element, fill } from "./elements.js";
import { days, when } from "./format.js";
import { isOfAds, isOnOperations, isOperator, timezone } from "./page.js";
import * as tables from "./tables.js";

/**
 * The controls as the address says.
 * @param {Record<string, string>} filters
 * @param {address.Period} period
 * @param {string} today
 */
export function show(filters, period, today) {
  const tab = isOnOperations() ? "operations" : "traffic";
  for (const link of document.querySelectorAll("#tabs a")) {
    const name = /** @type {any} */ (link).dataset.tab;
    address.leadTo(link, { tab: name === "traffic" ? "" : name, list: "" });
    if (name === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("traffic").hidden = tab !== "traffic";
  if (isOperator) byId("operations").hidden = tab !== "operations";
  byId("traffic").classList.toggle("whole", Boolean(tables.whole()));
  for (const link of document.querySelectorAll("#presets a")) {
    const name = /** @type {any} */ (link).dataset.preset;
    address.leadTo(link, address.ofPreset(name));
    if (name === period.preset) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const custom = byId("custom");
  custom.toggleAttribute("data-chosen", !period.preset);
  if (!custom.contains(document.activeElement)) {
    byId("from").value = period.first;
    byId("to").value = period.last;
  }
  const website = byId("website");
  if (document.activeElement !== website) website.value = filters.website ?? "";
  showNote(filters, period, today);
  showChips(filters, period);
}

/** Whether a filter is set that only some of the figures know. @param {Record<string, string>} filters */
export const isNarrow = (filters) => Object.keys(filters).some((name) => name !== "website");

/**
 * With what the figures are compared, and what they leave out.
 * @param {Record<string, string>} filters
 * @param {address.Period} period
 * @param {string} today
 * @param {import("./figures.js").Figures | null} before
 */
export function showNote(filters, period, today, before = null) {
  const span = address.before(period);
  const sentences = [`${days(period.first, period.last)}, compared with ${days(span.first, span.last)}.`];
  if (period.last >= today && period.first <= today) sentences.push("Today is not over yet.");
  // Of an almost empty period before, any change looks like a success.
  const start = before && before.by !== "hour" ? before.rows.findIndex((row) => Object.values(row).some(Boolean)) : 0;
  if (before && start * 2 > before.rows.length) sentences.push(`In these earlier days, nothing was counted until ${when(before.times[start])}.`);
  if (filters.page) sentences.push("Only views are counted by page.");
  else if (isNarrow(filters) && !isOfAds) sentences.push("Views are not counted by ad.");
  byId("period-note").textContent = `${sentences.join(" ")} Times are in ${timezone}.`;
}

/** The filters that are set. @param {Record<string, string>} filters @param {address.Period} period */
export function showChips(filters, period) {
  const labels = Object.entries(filters).map(([name, value]) => (name === "ad_id" ? `Ad: ${tables.nameOf(value)}` : `${name[0].toUpperCase() + name.slice(1)}: ${value}`));
  byId("folded").textContent = [days(period.first, period.last), ...labels].join(" · ");
  const chips = Object.keys(filters).map((name, place) => {
    const label = labels[place];
    const chip = element("a", { className: "chip", "aria-label": `${label}. Remove this filter` }, element("span", {}, label), element("span", { "aria-hidden": "true" }, "×"));
    return element("li", {}, address.leadTo(chip, { [name]: "", ...(name === "website" ? { page: "" } : {}) }));
  });
  fill(byId("chips"), chips);
}

/** @param {Record<string, string>} filters @param {address.Period} period @param {any} snapshot */
export function showUnknown(filters, period, snapshot) {
  const name = filters.website;
  const sentences = [];
  if (name && snapshot.unknown) sentences.push(`Nothing was ever counted for ${name}.`);
  if (address.get("from") && period.preset) sentences.push(`The address names no valid period, so these are the figures of ${days(period.first, period.last)}.`);
  byId("unknown").hidden = !sentences.length;
  byId("unknown").textContent = sentences.join(" ");
}

byId("filters").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
byId("website").addEventListener("change", (/** @type {any} */ { target }) => address.go({ website: target.value.trim(), page: "" }));
/** @type {number | undefined} */
let suggestSoon;
byId("website").addEventListener("input", (/** @type {any} */ { target }) => {
  clearTimeout(suggestSoon);
  suggestSoon = setTimeout(async () => {
    const { items } = await api.get("/live/websites", { q: target.value }).catch(() => ({ items: [] }));
    fill(byId("websites"), items.map((/** @type {string} */ name) => element("option", { value: name })));
  }, 150);
});
byId("website").addEventListener("focus", (/** @type {any} */ { target }) => target.dispatchEvent(new Event("input")));
byId("custom").addEventListener("change", () => {
  const [from, to] = [byId("from").value, byId("to").value];
  const wrong = from && to && from > to;
  byId("to").setCustomValidity(wrong ? "The last day comes before the first." : "");
  if (wrong) byId("to").reportValidity();
  else if (from && to) address.go({ period: "", from, to });
});
addEventListener("keydown", (event) => {
  const target = /** @type {Element} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || target.matches("input, textarea, select")) return;
  const key = event.key.toLowerCase();
  const preset = Object.entries(address.PRESETS).find(([, one]) => one.key && one.key === key);
  if (preset) address.go(address.ofPreset(preset[0]));
  else if (key === "c") {
    byId("folding").open = true;
    byId("from").focus();
    event.preventDefault();
  }
});
