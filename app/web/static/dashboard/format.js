// How figures, days and times are written.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** @param {number | null | undefined} value */
export const count = (value) => (value == null ? "–" : whole.format(value));

/** At most five letters long. @param {number} value */
export const compact = (value) => (value < 10_000 ? whole.format(value) : short.format(value));

/** @param {number | null | undefined} value */
export const ratio = (value) => (value == null ? "–" : value.toFixed(2));

/** A share as a percentage. @param {number | null | undefined} value */
export const rate = (value) => (value == null ? "–" : `${(value * 100).toFixed(2)} %`);

/**
 * The change from one figure to another, such as "+12 %"; empty if there is none to compare with.
 * @param {number | null | undefined} before
 * @param {number | null | undefined} now
 */
export function change(before, now) {
  if (before == null || now == null) return "";
  if (!before) return now ? "new" : "";
  const percent = Math.round(((now - before) / before) * 100);
  if (percent > 999) return `×${compact(Math.round(now / before))}`;
  return `${percent > 0 ? "+" : percent < 0 ? "−" : "±"}${Math.abs(percent)} %`;
}

/**
 * A day (2026-11-28), a month (2026-11) or an hour (2026-11-28T13+01:00) in words.
 * @param {string} time
 */
export function when(time) {
  const [year, month, rest = ""] = time.split("-", 3);
  const name = MONTHS[Number(month) - 1] ?? month;
  if (!rest) return `${name} ${year}`;
  const day = `${Number(rest.slice(0, 2))} ${name} ${year}`;
  return rest.length > 2 ? `${day}, ${rest.slice(3, 5)}:00` : day;
}

/**
 * The same for the axis of a chart, where the year is known.
 * @param {string} time
 * @param {boolean} isWithinDay
 */
export function tick(time, isWithinDay) {
  if (isWithinDay) return `${time.slice(11, 13)}:00`;
  const words = when(time);
  return time.length > 7 ? words.slice(0, -5) : words;
}

/**
 * The days from a first to a last day in words.
 * @param {string} first
 * @param {string} last
 */
export function days(first, last) {
  if (first === last) return when(first);
  const same = first.slice(0, 4) === last.slice(0, 4) ? -5 : undefined;
  return `${when(first).slice(0, same)} to ${when(last)}`;
}

/** @param {number} seconds */
export function age(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7_200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3_600)} h`;
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 1_000 && unit < units.length - 1; unit++) bytes /= 1_000;
  return `${bytes.toFixed(bytes < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

/**
 * A moment in the time zone of the collector.
 * @param {Date} moment
 * @param {string} timezone
 * @param {boolean} withDay
 */
export function clock(moment, timezone, withDay = false) {
  const options = { hour: "2-digit", minute: "2-digit", timeZone: timezone };
  const time = moment.toLocaleTimeString("en-GB", /** @type {any} */ (options));
  if (!withDay) return time;
  // Sweden writes days as ISO 8601 does.
  return `${when(moment.toLocaleDateString("sv", { timeZone: timezone }))}, ${time}`;
}
