// The chart of the period: a metric by the hour, the day or the month, above the period before.

import { byId, element } from "./elements.js";
import { count, tick, when } from "./format.js";
import { NAMES, written } from "./tiles.js";

/** @typedef {import("./figures.js").Figures} Figures */
/** @typedef {import("./figures.js").Metric} Metric */
/** @typedef {{ figures: Figures, before: Figures | null, metric: Metric, until: number }} Shown */

const HEIGHT = 240;
const PRINTED = { width: 780, height: 170 };
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7, 1e8];
const COLORS = { views: "--page-view", impressions: "--ad-impression", reach: "--reach", clicks: "--ad-click", ctr: "--rate" };

const box = byId("chart");
/** @type {any} */
let chart;
/** @type {Shown | null} */
let shown = null;
let kind = "";

/** @param {Shown} what */
export function show(what) {
  shown = what;
  const { figures, before, metric, until } = what;
  const values = figures.rows.map((row) => row[metric]);
  byId("chart-title").textContent = `${NAMES[metric]} by ${figures.by}`;
  const isEmpty = values.every((value) => value === null);
  box.hidden = isEmpty;
  byId("chart-legend").hidden = isEmpty;
  const why = byId("chart-empty");
  why.hidden = !isEmpty;
  if (isEmpty) {
    why.textContent = metric === "reach" && figures.by === "hour" ? "Reach is counted by the day. Choose more days to see it here." : "There is nothing to show for these days.";
    destroy();
    return;
  }
  const data = [
    values.map((_, place) => place),
    values.map((_, place) => before?.rows[place]?.[metric] ?? null),
    values.map((value, place) => (place < until ? value : null)),
    values.map((value, place) => (place === until || place === until - 1 ? value : null)),
  ];
  // A line needs two points.
  const now = `${metric} ${figures.by} ${values.length === 1}`;
  if (chart && kind === now) chart.setData(data);
  else {
    destroy();
    kind = now;
    chart = make(data, metric, values.length === 1);
  }
  showLegend();
  showAsTable();
}

function destroy() {
  chart?.destroy();
  chart = undefined;
}

/** What the figures are at the place that is pointed at, or at the running or last one. */
function showLegend() {
  if (!shown) return;
  const { figures, before, metric, until } = shown;
  const place = chart?.cursor.idx ?? Math.min(until, figures.times.length - 1);
  const isRunning = place === until;
  const isAhead = place > until;
  const was = before?.rows[place]?.[metric];
  byId("chart-legend").replaceChildren(
    element("strong", {}, when(figures.times[place])),
    element("span", { className: "now" }, isAhead ? "–" : written(metric, figures.rows[place][metric])),
    ...(isRunning ? [element("span", { className: "note" }, "so far")] : []),
    ...(was == null ? [] : [element("span", { className: "before" }, `${written(metric, was)} on ${when(before?.times[place] ?? "")}`)]),
  );
  byId("chart-legend").dataset.metric = metric;
}

/** For those who can't see it. */
function showAsTable() {
  if (!shown) return;
  const { figures, before, metric, until } = shown;
  const rows = figures.times.slice(0, until + 1).map((time, place) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, when(time)),
      element("td", {}, written(metric, figures.rows[place][metric])),
      element("td", {}, written(metric, before?.rows[place]?.[metric] ?? null)),
    ),
  );
  byId("chart-table").tBodies[0].replaceChildren(...rows);
}

/** @param {any[]} data @param {Metric} metric @param {boolean} isOne */
function make(data, metric, isOne) {
  const style = getComputedStyle(document.documentElement);
  const color = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
  const own = color(COLORS[metric]);
  const font = "12px system-ui, sans-serif";
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font };
  const points = { show: isOne, size: 8, fill: own };
  const series = [
    {},
    { stroke: color("--before"), width: 2, points: { show: isOne, size: 8, fill: color("--before") } },
    { stroke: own, fill: `${own}14`, width: 2, points },
    { stroke: own, fill: `${own}0a`, width: 2, dash: [4, 4], points: { show: true, size: 8, fill: own, filter: () => (shown && data[3][shown.until] != null ? [shown.until] : []) } },
  ];
  const label = (/** @type {number} */ place) => {
    const time = shown?.figures.times[place];
    const isWithinDay = shown?.figures.by === "hour" && shown.figures.times.length <= 25;
    return time === undefined ? "" : tick(time, isWithinDay);
  };
  const isRate = metric === "ctr";
  const uPlot = /** @type {any} */ (window).uPlot;
  return new uPlot(
    {
      width: box.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      scales: {
        x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { range: (/** @type {any} */ _, /** @type {number} */ _low, /** @type {number} */ high) => [0, isRate ? Math.max(high * 1.15, 0.001) : Math.max(5, high * 1.15)] },
      },
      axes: [
        { ...axis, size: 32, gap: 8, grid: { show: false }, incrs: [1, 2, 3, 6, 7, 12, 14, 30, 60, 90, 180], space: 70, values: (/** @type {any} */ _, /** @type {number[]} */ places) => places.map((place) => (Number.isInteger(place) ? label(place) : "")) },
        { ...axis, size: 60, ...(isRate ? {} : { incrs: STEPS }), values: (/** @type {any} */ _, /** @type {number[]} */ values) => values.map((value) => (isRate ? `${+(value * 100).toFixed(2)} %` : count(value))) },
      ],
      series,
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      hooks: { setCursor: [showLegend] },
    },
    data,
    box,
  );
}

function drawAnew() {
  destroy();
  if (shown) show(shown);
}

/** @param {number} width */
const resize = (width) => {
  if (chart && width && chart.width !== width) chart.setSize({ width, height: HEIGHT });
};

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAnew);
new ResizeObserver(() => resize(box.clientWidth)).observe(box);
addEventListener("beforeprint", () => chart?.setSize(PRINTED));
addEventListener("afterprint", () => chart?.setSize({ width: box.clientWidth, height: HEIGHT }));
// By keyboard, from one time to the next.
box.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !chart || !shown) return;
  event.preventDefault();
  const last = shown.figures.times.length - 1;
  const place = Math.min(last, Math.max(0, (chart.cursor.idx ?? Math.min(shown.until, last)) + step));
  chart.setCursor({ left: chart.valToPos(place, "x"), top: HEIGHT / 2 });
});
