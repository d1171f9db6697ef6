// The five figures of the period, each with its change and a sparkline. A tile chooses the chart.

import * as address from "./address.js";
import { byId, drawing } from "./elements.js";
import { METRICS } from "./figures.js";
import { change, compact, count, rate } from "./format.js";

/** @type {Record<import("./figures.js").Metric, string>} */
export const NAMES = { views: "Views", impressions: "Impressions", reach: "Reach", clicks: "Clicks", ctr: "CTR" };
const COUNT_UP_MS = 300;
const WIDTH = 100;
const HEIGHT = 24;

const still = matchMedia("(prefers-reduced-motion: reduce)");
/** @type {Map<Element, number>} */
const shown = new Map();

/** @param {import("./figures.js").Metric} metric @param {number | null} value */
export const written = (metric, value) => (metric === "ctr" ? rate(value) : count(value));

/** The metric of the chart. @param {boolean} hasViews @returns {import("./figures.js").Metric} */
export function chosen(hasViews) {
  const given = /** @type {any} */ (address.get("metric"));
  if (METRICS.includes(given) && (hasViews || given !== "views")) return given;
  return hasViews ? "views" : "impressions";
}

/**
 * @param {import("./figures.js").Figures} figures
 * @param {import("./figures.js").Figures | null} before
 * @param {number} until the place of the time that is still running
 */
export function show(figures, before, until) {
  for (const metric of METRICS) {
    const tile = byId(`tile-${metric}`);
    const value = figures.totals[metric];
    showNumber(byId(metric), metric, value);
    const was = before?.totals[metric];
    const text = change(was, value);
    const note = tile.querySelector(".change");
    note.textContent = text;
    // What is not over yet is neither better nor worse.
    note.dataset.way = until < figures.times.length ? "" : text[0] === "+" || text[0] === "×" ? "up" : text[0] === "−" ? "down" : "";
    note.title = was == null ? "" : `Before: ${written(metric, was)}`;
    const why = metric === "reach" && value === null ? (figures.notes.reach ?? "") : "";
    tile.title = why;
    const line = sparkline(figures.rows.slice(0, until).map((row) => row[metric]));
    tile.querySelector("svg").replaceChildren(...line);
    tile.setAttribute("aria-pressed", String(metric === chosen(figures.totals.views !== null)));
    tile.disabled = value === null && figures.rows.every((row) => row[metric] === null);
  }
}

/** @param {any} output @param {import("./figures.js").Metric} metric @param {number | null} value */
function showNumber(output, metric, value) {
  const text = written(metric, value);
  const from = shown.get(output);
  if (output.title === text) return;
  // The whole figure, where a large one is shortened.
  output.title = text;
  const write = (/** @type {number | null} */ number) => {
    output.textContent = metric === "ctr" || number === null || number < 10_000_000 ? written(metric, number) : compact(number);
  };
  if (value === null || metric === "ctr" || from === undefined || still.matches) {
    if (value === null) shown.delete(output);
    else shown.set(output, value);
    write(value);
    return;
  }
  shown.set(output, value);
  const start = performance.now();
  const step = (/** @type {number} */ now) => {
    if (shown.get(output) !== value) return;
    const part = Math.min(1, Math.max(0, now - start) / COUNT_UP_MS);
    write(Math.round(from + (value - from) * part));
    if (part < 1) requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
}

/** @param {(number | null)[]} values */
function sparkline(values) {
  const known = values.map((value) => value ?? 0);
  if (known.length < 2 || values.every((value) => value === null)) return [];
  const most = Math.max(...known) || 1;
  const points = known.map((value, place) => {
    const left = (place / (known.length - 1)) * WIDTH;
    return `${left.toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 4)).toFixed(1)}`;
  });
  const line = points.join(" ");
  return [drawing("polygon", { points: `0,${HEIGHT} ${line} ${WIDTH},${HEIGHT}` }), drawing("polyline", { points: line })];
}

for (const metric of METRICS) {
  byId(`tile-${metric}`).addEventListener("click", () => address.go({ metric }));
}
