// The figures of a period: for the tiles, their sparklines and the chart.

import * as address from "./address.js";
import { get } from "./api.js";

/** @typedef {"views" | "impressions" | "reach" | "clicks" | "ctr"} Metric */
/** @typedef {Record<Metric, number | null>} Row */
/**
 * Of a period: totals, and rows in order of their times. There are `hours`, `days` or `months`.
 * @typedef {{ totals: Row, times: string[], rows: Row[], by: string, notes: Record<string, string> }} Figures
 */

/** @type {Metric[]} */
export const METRICS = ["views", "impressions", "reach", "clicks", "ctr"];
const DAYS_BY_HOUR = 2;
const DAYS_BY_DAY = 366;

/** What makes a point of the chart. @param {address.Period} period @param {Record<string, string>} filters */
export function granularity(period, filters) {
  const days = address.length(period);
  if (days > DAYS_BY_DAY) return "month";
  const { page, ad_id, campaign, advertiser } = filters;
  return days <= DAYS_BY_HOUR && !(page || ad_id || campaign || advertiser) ? "hour" : "day";
}

/**
 * @param {{ first: string, last: string }} days
 * @param {string} by
 * @param {Record<string, string>} filters
 * @param {boolean} isOfAds whether the reader sees only some ads
 * @returns {Promise<Figures>}
 */
export async function read(days, by, filters, isOfAds) {
  const { page, ...others } = filters;
  const span = { from: days.first, to: days.last };
  if (page) return ofPage(await get("/reports/page-views/daily", { ...filters, ...span, limit: 1_000 }), by);
  const { website } = others;
  const isNarrow = isOfAds || Object.keys(others).some((name) => name !== "website");
  // Reach has no hours.
  const unit = by === "hour" ? (isNarrow ? "day" : "hour") : by;
  const perPeriod = unit === "hour" ? "day" : unit;
  const [traffic, ads] = await Promise.all([
    get("/reports/traffic", { by: unit, website, ...span, limit: 1_000 }),
    get("/reports/ads", { by: perPeriod, ...others, ...span, sort: perPeriod, limit: 1_000 }),
  ]);
  const ofAds = new Map(ads.items.map((/** @type {any} */ row) => [row[perPeriod], row]));
  const rows = traffic.items.map((/** @type {any} */ row) => {
    const views = isNarrow ? null : row.views;
    if (unit === "hour") {
      const { impressions, clicks } = row;
      return { views, impressions, clicks, reach: null, ctr: impressions ? clicks / impressions : null };
    }
    const { impressions = 0, clicks = 0, reach = 0, ctr = null } = ofAds.get(row.time) ?? {};
    return { views, impressions, clicks, reach, ctr };
  });
  const views = isNarrow ? null : traffic.items.reduce((/** @type {number} */ sum, /** @type {any} */ row) => sum + row.views, 0);
  return {
    totals: { ...ads.totals, views },
    times: traffic.items.map((/** @type {any} */ row) => row.time),
    rows,
    by: unit,
    notes: ads.notes ?? {},
  };
}

/**
 * @param {any} report
 * @param {string} by
 * @returns {Figures}
 */
function ofPage(report, by) {
  const none = { impressions: null, reach: null, clicks: null, ctr: null };
  /** @type {Map<string, number>} */
  const views = new Map();
  for (const row of report.items) {
    const time = by === "month" ? row.day.slice(0, 7) : row.day;
    views.set(time, (views.get(time) ?? 0) + row.views);
  }
  const rows = [...views.values()].map((number) => ({ ...none, views: number }));
  return {
    totals: { ...none, views: rows.reduce((sum, row) => sum + row.views, 0) },
    times: [...views.keys()],
    rows,
    by: by === "hour" ? "day" : by,
    notes: {},
  };
}

/**
 * Which of the times is still running; their number if all are over.
 * @param {string[]} times
 * @param {string} now such as 2026-11-28T13:20:05+01:00
 */
export function running(times, now) {
  // An hour that comes twice has the offset of its zone behind it.
  const hour = now.slice(0, 13) + now.slice(19);
  const place = times.findIndex((time) => time === (time.length > 10 ? hour : now.slice(0, time.length)));
  if (place >= 0) return place;
  return times.length && times[0].slice(0, 10) > now.slice(0, 10) ? 0 : times.length;
}
