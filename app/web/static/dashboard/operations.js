// The tab of operators: queues, workers, disk, what is out of the ordinary and what was filtered.

import * as api from "./api.js";
import { byId, element, fill } from "./elements.js";
import { age, clock, count, size } from "./format.js";

/** @type {Record<string, string>} */
const NAMES = { page_view: "views", ad_impression: "impressions", ad_click: "hits" };
const STUCK_SECONDS = 60;

/** Shows how the parts of the collector are. */
export async function showStatus() {
  const found = await api.get("/status");
  const rows = (found.queues ?? []).map((/** @type {any} */ queue) => {
    const isStuck = queue.waiting && queue.oldest_seconds >= STUCK_SECONDS;
    const wait = queue.waiting ? age(queue.oldest_seconds) : "–";
    return element(
      "tr",
      { className: isStuck ? "stuck" : "" },
      element("td", {}, queue.queue.replace("_", " ")),
      element("td", { className: "count" }, count(queue.waiting)),
      element("td", { className: "count" }, count(queue.taken)),
      element("td", { className: "count" }, isStuck ? `stuck for ${wait}` : wait),
    );
  });
  fill(byId("queues").tBodies[0], rows);
  const { disk, redis } = found;
  /** @type {[string, string, boolean][]} */
  const facts = [
    ["Broker", found.parts.broker, found.parts.broker !== "ok"],
    ["Database", found.parts.database, found.parts.database !== "ok"],
    ["Workers", count(found.workers), found.workers === 0],
    ["Reports behind", found.reports_behind_seconds === undefined ? "–" : age(found.reports_behind_seconds), found.reports_behind_seconds >= STUCK_SECONDS],
    ["Redis memory", redis ? `${size(redis.used_bytes)}${redis.limit_bytes ? ` of ${size(redis.limit_bytes)}` : ""}` : "–", Boolean(redis?.limit_bytes && redis.used_bytes > 0.8 * redis.limit_bytes)],
    ["Disk free", disk ? `${size(disk.free_bytes)} of ${size(disk.total_bytes)}` : "–", Boolean(disk && disk.free_bytes < 0.1 * disk.total_bytes)],
  ];
  fill(byId("facts"), facts.map(([name, text, isBad]) => element("div", { className: isBad ? "bad" : "" }, element("dt", {}, name), element("dd", {}, text))));
}

/** @param {any} snapshot @param {string} website */
export function showSnapshot(snapshot, website) {
  const { filtered, other, spikes, timezone } = snapshot;
  const rows = filtered.map((/** @type {any} */ of) =>
    element(
      "tr",
      {},
      element("td", { title: of.website }, ...(website ? [] : [element("span", { className: "of" }, of.website), " "]), of.type),
      element("td", {}, of.reason),
      element("td", { className: "count" }, count(of.events)),
    ),
  );
  fill(byId("filtered").tBodies[0], rows.slice(0, 20));
  toggle("filtered", rows.length);
  const what = Object.entries(other).filter(([, events]) => events).map(([kind, events]) => `${count(events)} by ${kind}`);
  byId("other").hidden = !what.length;
  byId("other").textContent = `Counted under <other>, because their senders used too many new names: ${what.join(", ")}.`;
  fill(byId("spikes"), spikes.map((/** @type {any} */ spike) => announcement(spike, timezone)));
  toggle("spikes", spikes.length);
}

/** @param {any} spike @param {string} timezone */
function announcement(spike, timezone) {
  const at = clock(new Date(spike.time * 1000), timezone, true);
  const mean = spike.mean.toLocaleString("en", { maximumFractionDigits: 1 });
  const item = element("li");
  if (spike.kind === "drop") {
    item.append(element("strong", {}, spike.website), element("div", { className: "note" }, `Only ${count(spike.count)} ${NAMES[spike.queue]} in the hour from ${at}, usually ${mean}`));
  } else {
    const name = spike.queue === "page_view" ? spike.website + (spike.name.startsWith("/") ? "" : " ") + spike.name : `ad ${spike.name} on ${spike.website}`;
    item.append(element("strong", {}, name), element("div", { className: "note" }, `${count(spike.count)} ${NAMES[spike.queue]} in the minute at ${at}, usually ${mean}`));
  }
  if (spike.more) item.append(element("div", { className: "note" }, `and ${count(spike.more)} more`));
  return item;
}

/** @param {string} id @param {number} rows */
function toggle(id, rows) {
  byId(id).hidden = !rows;
  byId(id).closest("section").querySelector(".empty").hidden = Boolean(rows);
}
