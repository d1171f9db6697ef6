// Which tables there are, and what a click on their rows does.

import * as address from "./address.js";
import { byId, element } from "./elements.js";
import { when } from "./format.js";
import { Table } from "./table.js";

/** @typedef {{ period: address.Period, filters: Record<string, string>, isOfAds: boolean, snapshot: any }} View */

/** @type {import("./table.js").Column[]} */
const OF_ADS = [
  { name: "impressions", label: "Impressions", sorts: true },
  { name: "reach", label: "Reach", sorts: true },
  { name: "frequency", label: "Frequency", as: "ratio", sorts: true },
  { name: "hits", label: "Hits", sorts: true },
  { name: "clicks", label: "Clicks", sorts: true },
  { name: "ctr", label: "CTR", as: "rate", sorts: true },
];
/** @type {import("./table.js").Column} */
const VIEWS = { name: "views", label: "Views", sorts: true };
const BRIEF = OF_ADS.filter(({ name }) => name !== "frequency" && name !== "hits");
const NO_PAGE = { page: "" };
const NO_AD = { ad_id: "", campaign: "", advertiser: "" };

const tables = {
  ads: new Table("ads", "ads"),
  pages: new Table("pages", "pages"),
  websites: new Table("websites", "websites"),
  campaigns: new Table("campaigns", "campaigns"),
  months: new Table("months", "months"),
};

/** @param {() => void} reload is called when a table needs other rows */
export function listen(reload) {
  for (const table of Object.values(tables)) table.reload = reload;
}

/** The table that is shown whole, or undefined. */
export const whole = () => Object.values(tables).find((table) => table.isWhole);

/** What an ad is called, if a row says so. @param {string} id @returns {string} */
export const nameOf = (id) => tables.ads.rows?.find((row) => row.ad_id === id)?.name ?? id;

/** @param {View} view @returns {Record<string, import("./table.js").Report>} */
function reports({ period, filters, isOfAds }) {
  const { page: _, ...ofAds } = filters;
  const { website } = filters;
  const days = { from: period.first, to: period.last };
  const hasAdFilter = isOfAds || Object.keys(ofAds).some((name) => name !== "website");
  return {
    ads: {
      path: "/reports/ads",
      parameters: { by: "ad", ...ofAds, ...days },
      columns: OF_ADS,
      sort: "impressions",
      name: (row) => ({ text: row.name ?? `ad ${row.ad_id}` }),
      changes: (row) => ({ ...NO_PAGE, ad_id: row.ad_id }),
    },
    pages: {
      path: "/reports/page-views",
      parameters: { website, ...days },
      columns: [{ name: "views", label: "Views" }],
      sort: "views",
      name: (row) => ({ text: row.page, of: website ? undefined : row.website }),
      changes: (row) => ({ ...NO_AD, metric: "", website: row.website, page: row.page }),
    },
    websites: hasAdFilter
      ? {
          path: "/reports/ads",
          parameters: { by: "website", ...ofAds, ...days },
          columns: BRIEF,
          sort: "impressions",
          name: (row) => ({ text: row.website }),
          changes: (row) => ({ ...NO_PAGE, website: row.website }),
        }
      : {
          path: "/reports/websites",
          parameters: { website, ...days },
          columns: [VIEWS, ...BRIEF],
          sort: "impressions",
          name: (row) => ({ text: row.website }),
          changes: (row) => ({ ...NO_PAGE, website: row.website }),
        },
    campaigns: {
      path: "/reports/ads",
      parameters: { by: "campaign", ...ofAds, ...days },
      columns: BRIEF,
      sort: "impressions",
      name: (row) => ({ text: row.campaign ?? "No campaign" }),
      changes: (row) => (row.campaign === null ? null : { ...NO_PAGE, campaign: row.campaign }),
    },
    months: {
      path: "/reports/impressions",
      parameters: { website: website ?? "*" },
      columns: [
        { name: "impressions", label: "Impressions" },
        { name: "visitors", label: "Visitors" },
      ],
      sort: "month",
      name: (row) => ({ text: when(row.month) }),
      changes: (row) => ({ period: "", from: `${row.month}-01`, to: address.lastOf(row.month) }),
      extra: (row) => element("td", {}, element("span", { className: row.closed ? "state closed" : "state" }, row.closed ? "closed" : "open")),
    },
  };
}

/**
 * What the tables are to show; null for those that do not fit the filters.
 * @param {View} view
 */
export async function read(view) {
  const all = reports(view);
  const { page, ...others } = view.filters;
  const hasPages = !view.isOfAds && !Object.keys(others).some((name) => name !== "website");
  /** @type {Record<string, boolean>} */
  const fits = { ads: !page, campaigns: !page, websites: !page, months: hasPages && !page, pages: hasPages && !page };
  const names = /** @type {(keyof typeof tables)[]} */ (Object.keys(tables));
  const shown = whole();
  const answers = await Promise.all(
    names.map((name) => {
      if (!fits[name] || (shown && shown !== tables[name])) return null;
      return tables[name].read(all[name], name === "pages" ? view.snapshot.pages : null);
    }),
  );
  return { all, answers: Object.fromEntries(names.map((name, place) => [name, answers[place]])) };
}

/** @param {View} view @param {Awaited<ReturnType<typeof read>>} what */
export function show({ period, snapshot }, { all, answers }) {
  for (const [name, table] of Object.entries(tables)) {
    const answer = answers[name];
    table.card.hidden = !answer || (name === "campaigns" && answer.items.every((/** @type {any} */ row) => row.campaign === null));
    if (!answer) continue;
    if (name === "months") answer.items.sort((/** @type {any} */ a, /** @type {any} */ b) => (a.month < b.month ? 1 : -1));
    table.show(all[name], answer, `${name}-${period.first}-${period.last}`);
  }
  byId("pages-note").hidden = !snapshot.partial.includes("pages");
}
