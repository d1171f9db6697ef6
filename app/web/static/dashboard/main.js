// The dashboard: reads the reports of a period, and reads them again while events are counted.

import * as address from "./address.js";
import * as api from "./api.js";
import * as chart from "./chart.js";
import * as condition from "./condition.js";
import { byId, element, fill } from "./elements.js";
import * as figures from "./figures.js";
import { days, when } from "./format.js";
import { connect } from "./live.js";
import * as minutes from "./minutes.js";
import * as tables from "./tables.js";
import * as tiles from "./tiles.js";
import * as welcome from "./welcome.js";

// While events are counted: how often the figures are read, and everything else.
const FIGURES_MS = 250;
const REST_MS = 2_000;
// After the last count the reports hold all of it within this time.
const SETTLED_MS = 5_000;
const IDLE_MS = 10_000;
const AGAIN_MS = 5_000;

const main = /** @type {HTMLElement} */ (document.querySelector("main"));
const isOperator = main.dataset.operator !== undefined;
const isOfAds = main.dataset.ads !== undefined;
let today = main.dataset.today ?? "";
/** The collector's time. */
let now = main.dataset.now ?? "";
/** @type {figures.Figures | null} */
let found = null;
/** @type {figures.Figures | null} */
let before = null;
/** @type {typeof import("./operations.js") | undefined} */
let operations;
/** @type {typeof import("./letters.js") | undefined} */
let letters;
let countedAt = -Infinity;

const isOnOperations = () => isOperator && address.get("tab") === "operations";
const isMoving = () => performance.now() - countedAt < SETTLED_MS;
/** @param {number} milliseconds */
const about = (milliseconds) => milliseconds * (0.8 + Math.random() * 0.4);

/** What the page shows, by its address. */
function shown() {
  const filters = address.filters();
  const period = address.period(today);
  return { filters, period, by: figures.granularity(period, filters) };
}

/**
 * A function that reads something now, and again and again from then on.
 * @param {string} name
 * @param {number} often the milliseconds between two readings while events are counted
 * @param {(isLatest: () => boolean) => Promise<void>} read must drop what it read if it isn't the latest
 */
function again(name, often, read) {
  let number = 0;
  /** @type {number | undefined} */
  let timer;
  return async function run() {
    const mine = ++number;
    clearTimeout(timer);
    let wait = about(IDLE_MS);
    try {
      await read(() => mine === number);
      if (mine !== number) return;
      condition.showProblem(name, null);
      if (isMoving()) wait = often;
    } catch (error) {
      if (mine !== number) return;
      condition.showProblem(name, error);
      wait = about(AGAIN_MS);
    }
    waiting.delete(name);
    main.setAttribute("aria-busy", String(waiting.size > 0));
    timer = setTimeout(run, document.hidden ? IDLE_MS : wait);
  };
}

/** What is read for the first time since something else is to be shown. @type {Set<string>} */
const waiting = new Set();

const loadFigures = again("figures", FIGURES_MS, async (isLatest) => {
  const { filters, period, by } = shown();
  if (isOnOperations()) return;
  const read = await figures.read(period, by, filters, isOfAds);
  if (!isLatest()) return;
  found = read;
  showFigures();
});

const loadRest = again("rest", REST_MS, async (isLatest) => {
  const { filters, period, by } = shown();
  const span = address.before(period);
  const fresh = api.get("/live/snapshot", { website: filters.website, from: period.first, to: period.last });
  const [snapshot, earlier, ofTables] = await Promise.all([
    fresh,
    isOnOperations() || span.first < "1971" ? null : figures.read(span, by, filters, isOfAds),
    isOnOperations() ? readOperations() : fresh.then((snapshot) => tables.read({ period, filters, isOfAds, snapshot })),
  ]);
  if (!isLatest()) return;
  now = snapshot.now;
  if (snapshot.today !== today) {
    today = snapshot.today;
    loadAnew();
    return;
  }
  condition.showBehind(snapshot.behind);
  welcome.show(snapshot.is_empty);
  showUnknown(filters, period, snapshot);
  if (!ofTables) {
    operations?.showSnapshot(snapshot, filters.website ?? "");
    return;
  }
  before = earlier;
  showNote(filters, period);
  showFigures();
  minutes.show(snapshot.minutes, `${filters.website ? ` on ${filters.website}` : ""}${isNarrow(filters) ? ", of all pages and ads" : ""}`);
  tables.show({ period, filters, isOfAds, snapshot }, ofTables);
  showChips(filters, period);
});

async function readOperations() {
  operations ??= await import("./operations.js");
  letters ??= await import("./letters.js");
  await Promise.all([operations.showStatus(), letters.show(main.dataset.timezone)]);
  return null;
}

function showFigures() {
  if (!found) return;
  const until = figures.running(found.times, now);
  tiles.show(found, before, until);
  chart.show({ figures: found, before, metric: tiles.chosen(found.totals.views !== null), until });
}

function load() {
  loadFigures();
  loadRest();
}

/** Something else is to be shown than before. */
function loadAnew() {
  found = before = null;
  waiting.add("figures").add("rest");
  main.setAttribute("aria-busy", "true");
  const { filters, period } = shown();
  showControls(filters, period);
  load();
}

/** The controls as the address says. @param {Record<string, string>} filters @param {address.Period} period */
function showControls(filters, period) {
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
  showNote(filters, period);
  showChips(filters, period);
}

/** Whether a filter is set that only some of the figures know. @param {Record<string, string>} filters */
const isNarrow = (filters) => Object.keys(filters).some((name) => name !== "website");

/** With what the figures are compared, and what they leave out. @param {Record<string, string>} filters @param {address.Period} period */
function showNote(filters, period) {
  const span = address.before(period);
  const sentences = [`${days(period.first, period.last)}, compared with ${days(span.first, span.last)}.`];
  if (period.last >= today && period.first <= today) sentences.push("Today is not over yet.");
  // Of an almost empty period before, any change looks like a success.
  const start = before && before.by !== "hour" ? before.rows.findIndex((row) => Object.values(row).some(Boolean)) : 0;
  if (before && start * 2 > before.rows.length) sentences.push(`In these earlier days, nothing was counted until ${when(before.times[start])}.`);
  if (filters.page) sentences.push("Only views are counted by page.");
  else if (isNarrow(filters) && !isOfAds) sentences.push("Views are not counted by ad.");
  byId("period-note").textContent = `${sentences.join(" ")} Times are in ${main.dataset.timezone}.`;
}

/** The filters that are set. @param {Record<string, string>} filters @param {address.Period} period */
function showChips(filters, period) {
  const labels = Object.entries(filters).map(([name, value]) => (name === "ad_id" ? `Ad: ${tables.nameOf(value)}` : `${name[0].toUpperCase() + name.slice(1)}: ${value}`));
  byId("folded").textContent = [days(period.first, period.last), ...labels].join(" · ");
  const chips = Object.keys(filters).map((name, place) => {
    const label = labels[place];
    const chip = element("a", { className: "chip", "aria-label": `${label}. Remove this filter` }, element("span", {}, label), element("span", { "aria-hidden": "true" }, "×"));
    return element("li", {}, address.leadTo(chip, { [name]: "", ...(name === "website" ? { page: "" } : {}) }));
  });
  fill(byId("chips"), chips);
}

/** @param {Record<string, string>} filters @param {address.Period} period @param {any} now */
function showUnknown(filters, period, now) {
  const name = filters.website;
  const sentences = [];
  if (name && now.unknown) sentences.push(`Nothing was ever counted for ${name}.`);
  if (address.get("from") && period.preset) sentences.push(`The address names no valid period, so these are the figures of ${days(period.first, period.last)}.`);
  byId("unknown").hidden = !sentences.length;
  byId("unknown").textContent = sentences.join(" ");
}

address.listen(loadAnew);
tables.listen(loadRest);

const filterForm = byId("filters");
filterForm.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
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
addEventListener("beforeprint", () => {
  byId("printed").textContent = `Printed on ${new Date().toLocaleDateString("sv", { timeZone: main.dataset.timezone })}.`;
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) load();
});

connect({
  counted() {
    const isQuiet = !isMoving();
    countedAt = performance.now();
    if (isQuiet) load();
  },
  announced: loadRest,
  opened() {
    condition.setLive(true);
    // What was announced before may not be in the reports yet.
    countedAt = performance.now();
    load();
  },
  lost: () => condition.setLive(false),
});
loadAnew();
