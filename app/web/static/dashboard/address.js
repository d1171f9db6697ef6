// What the page shows is in its address: a period, filters, a tab, and the metric of the chart.

/** @typedef {{ first: string, last: string, preset: string }} Period */

export const FILTERS = ["website", "page", "ad_id", "campaign", "advertiser"];
const MAX_DAYS = 4_000;

/** By its name in the address: what it is called, and from when to when, given today. */
/** @type {Record<string, { key: string, label: string, days: (today: string) => [string, string] }>} */
export const PRESETS = {
  today: { key: "t", label: "Today", days: (today) => [today, today] },
  yesterday: { key: "y", label: "Yesterday", days: (today) => [plus(today, -1), plus(today, -1)] },
  "7d": { key: "w", label: "7 days", days: (today) => [plus(today, -6), today] },
  "30d": { key: "", label: "30 days", days: (today) => [plus(today, -29), today] },
  month: { key: "m", label: "This month", days: (today) => [first(today), today] },
  "last-month": {
    key: "l",
    label: "Last month",
    days: (today) => [first(plus(first(today), -1)), plus(first(today), -1)],
  },
};
const DEFAULT = "7d";

/**
 * @param {string} day
 * @param {number} more
 */
export function plus(day, more) {
  const moment = new Date(`${day}T00:00Z`);
  moment.setUTCDate(moment.getUTCDate() + more);
  return moment.toISOString().slice(0, 10);
}

/** The first day of the month of a day. @param {string} day */
const first = (day) => `${day.slice(0, 7)}-01`;

/** The last day of a month (2026-11). @param {string} month */
export const lastOf = (month) => plus(first(plus(`${month}-01`, 31)), -1);

/** The number of days of a period. @param {{ first: string, last: string }} period */
export const length = (period) => (Date.parse(period.last) - Date.parse(period.first)) / 86_400_000 + 1;

/**
 * As many days, right before a period.
 * @param {{ first: string, last: string }} period
 */
export function before(period) {
  const days = length(period);
  return { first: plus(period.first, -days), last: plus(period.last, -days) };
}

/** Whether this is a day of the calendar. @param {string} text */
const isDay = (text) => /^\d{4}-\d\d-\d\d$/.test(text) && text > "1970" && !isNaN(Date.parse(text)) && plus(text, 0) === text;

const query = () => new URLSearchParams(location.search);

/** The value of a parameter, or an empty text. @param {string} name */
export const get = (name) => query().get(name) ?? "";

/** The filters that are set. */
export function filters() {
  return Object.fromEntries(FILTERS.map((name) => [name, get(name)]).filter(([, value]) => value));
}

/**
 * @param {string} today
 * @returns {Period}
 */
export function period(today) {
  const from = get("from");
  const to = get("to") || today;
  if (isDay(from) && isDay(to) && from <= to && length({ first: from, last: to }) <= MAX_DAYS) {
    return { first: from, last: to, preset: "" };
  }
  const preset = get("period") in PRESETS ? get("period") : DEFAULT;
  const [start, end] = PRESETS[preset].days(today);
  return { first: start, last: end, preset };
}

/**
 * The address that shows the same but for these parameters; an empty text takes one away.
 * @param {Record<string, string>} changes
 */
export function withChanges(changes) {
  const found = query();
  for (const [name, value] of Object.entries(changes)) {
    if (value && !(name === "period" && value === DEFAULT)) found.set(name, value);
    else found.delete(name);
  }
  const text = found.toString();
  return text ? `/?${text}` : "/";
}

/** What choosing a preset changes. @param {string} preset */
export const ofPreset = (preset) => ({ period: preset, from: "", to: "" });

/** @type {() => void} */
let onChange = () => {};

/** Call this whenever the address changes. @param {() => void} listener */
export function listen(listener) {
  onChange = listener;
  addEventListener("popstate", listener);
}

/** @param {Record<string, string>} changes */
export function go(changes) {
  const address = withChanges(changes);
  if (address === location.pathname + location.search) return;
  history.pushState(null, "", address);
  onChange();
}

/**
 * A link within the page.
 * @param {any} link
 * @param {Record<string, string>} changes
 */
export function leadTo(link, changes) {
  link.href = withChanges(changes);
  link.dataset.changes = JSON.stringify(changes);
  return link;
}

document.addEventListener("click", (event) => {
  const link = /** @type {Element} */ (event.target).closest?.("a[data-changes]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(JSON.parse(/** @type {any} */ (link).dataset.changes));
});
