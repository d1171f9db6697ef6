// The small strip of the last minutes.

import { byId, drawing } from "./elements.js";
import { count } from "./format.js";

const SHOWN = 30;
const KINDS = /** @type {const} */ ({ page_view: "views", ad_impression: "impressions", ad_click: "hits" });
const HEIGHT = 60;

/** @param {Record<string, any>[]} minutes the last hour, in order @param {string} where */
export function show(minutes, where) {
  const rows = minutes.slice(-SHOWN);
  const sums = rows.map((row) => Object.keys(KINDS).reduce((sum, kind) => sum + (row[kind] ?? 0), 0));
  const most = Math.max(...sums, 1);
  const bars = rows.flatMap((row, place) => {
    let top = HEIGHT;
    return Object.entries(KINDS).map(([kind, name]) => {
      const height = ((row[kind] ?? 0) / most) * (HEIGHT - 2);
      top -= height;
      return drawing("rect", { class: name, x: place * 10 + 1, width: 8, y: top.toFixed(1), height: height.toFixed(1) });
    });
  });
  byId("minutes").replaceChildren(...bars);
  const last = rows.at(-2) ?? {};
  const words = Object.entries(KINDS)
    .filter(([kind]) => last[kind] != null)
    .map(([kind, name]) => `${count(last[kind])} ${name}`);
  byId("minutes-text").textContent = `Received in the last whole minute: ${words.join(", ")}${where}.`;
  const total = sums.reduce((sum, number) => sum + number, 0);
  byId("minutes").setAttribute("aria-label", `Events in each of the last ${SHOWN} minutes, ${count(total)} together`);
}
