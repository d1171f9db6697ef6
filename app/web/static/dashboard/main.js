// The dashboard: reads the reports of a period, and reads them again while events are counted.

import * as address from "./address.js";
import * as api from "./api.js";
import * as chart from "./chart.js";
import * as condition from "./condition.js";
import * as controls from "./controls.js";
import { byId } from "./elements.js";
import * as figures from "./figures.js";
import { connect } from "./live.js";
import * as minutes from "./minutes.js";
import { isOfAds, isOnOperations, main, timezone } from "./page.js";
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
  controls.showUnknown(filters, period, snapshot);
  if (!ofTables) {
    operations?.showSnapshot(snapshot, filters.website ?? "");
    return;
  }
  before = earlier;
  controls.showNote(filters, period, today, before);
  showFigures();
  minutes.show(snapshot.minutes, `${filters.website ? ` on ${filters.website}` : ""}${controls.isNarrow(filters) ? ", of all pages and ads" : ""}`);
  tables.show({ period, filters, isOfAds, snapshot }, ofTables);
  controls.showChips(filters, period);
});

async function readOperations() {
  operations ??= await import("./operations.js");
  letters ??= await import("./letters.js");
  await Promise.all([operations.showStatus(), letters.show(timezone)]);
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
  controls.show(filters, period, today);
  load();
}

address.listen(loadAnew);
tables.listen(loadRest);

addEventListener("beforeprint", () => {
  byId("printed").textContent = `Printed on ${new Date().toLocaleDateString("sv", { timeZone: timezone })}.`;
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
