// A table of a report: sorted by the collector, with a bar behind a figure; each row is a filter.

import * as address from "./address.js";
import * as api from "./api.js";
import { byId, element, fill } from "./elements.js";
import { count, rate, ratio } from "./format.js";

/** @typedef {{ name: string, label: string, as?: "rate" | "ratio", sorts?: boolean }} Column */
/**
 * What a table shows.
 * @typedef {{
 *   path: string,
 *   parameters: Record<string, string | undefined>,
 *   columns: Column[],
 *   sort: string,
 *   name: (row: any) => { text: string, of?: string },
 *   changes: (row: any) => Record<string, string> | null,
 *   extra?: (row: any) => any,
 * }} Report
 */

const few = () => (matchMedia("(min-width: 45rem)").matches ? 8 : 6);
const MANY = 50;
const WRITTEN = { rate, ratio, count };

export class Table {
  /** @param {string} id @param {string} what how its rows are called */
  constructor(id, what) {
    this.id = id;
    this.card = byId(`card-${id}`);
    this.what = what;
    /** @type {string[]} the cursors of the pages before this one */
    this.cursors = [];
    /** @type {string | null} */
    this.next = null;
    this.asked = "";
    /** @type {any[] | null} */
    this.rows = null;
    this.card.querySelector(".previous").addEventListener("click", () => this.turn(this.cursors.slice(0, -1)));
    this.card.querySelector(".next").addEventListener("click", () => this.turn([...this.cursors, this.next ?? ""]));
    /** @type {() => void} */
    this.reload = () => {};
  }

  /** Whether it is shown whole, instead of everything else. */
  get isWhole() {
    return address.get("list") === this.id;
  }

  /** @param {string[]} cursors */
  turn(cursors) {
    this.cursors = cursors;
    this.reload();
    this.card.scrollIntoView();
  }

  /** By which column it is sorted. @param {Report} report */
  sortOf(report) {
    const given = address.get(`sort-${this.id}`);
    return report.columns.some((column) => column.sorts && column.name === given) ? given : report.sort;
  }

  /** @param {Report} report @param {any[] | null} known rows that need not be asked for */
  async read(report, known = null) {
    const sort = report.columns.some((column) => column.sorts) ? this.sortOf(report) : undefined;
    const parameters = { ...report.parameters, ...(sort ? { sort } : {}) };
    const asked = api.address(report.path, parameters);
    if (asked !== this.asked) this.cursors = [];
    this.asked = asked;
    if (known && !this.isWhole) {
      this.next = known.length > few() ? "more" : null;
      return { items: known.slice(0, few()) };
    }
    const limit = this.isWhole ? MANY : few();
    const answer = await api.get(report.path, { ...parameters, limit, cursor: this.isWhole ? this.cursors.at(-1) : undefined });
    if (asked === this.asked) this.next = answer.next_cursor;
    return answer;
  }

  /** @param {Report} report @param {any} answer @param {string} file the name of an export */
  show(report, answer, file) {
    const sort = this.sortOf(report);
    const rows = answer.items;
    this.rows = rows;
    const table = this.card.querySelector("table");
    fill(table.tHead.rows[0], [
      element("th", { scope: "col" }, table.dataset.name),
      ...report.columns.map((column) => this.heading(column, sort)),
    ]);
    // Months are in their own order: their bars show the first figure.
    const measure = report.columns.some((column) => column.name === sort) ? sort : report.columns[0].name;
    const most = Math.max(...rows.map((/** @type {any} */ row) => row[measure] ?? 0), 0);
    const made = rows.map((/** @type {any} */ row) => this.row(report, row, sort, measure, most));
    fill(table.tBodies[0], made);
    table.hidden = !rows.length;
    this.card.querySelector(".empty").hidden = Boolean(rows.length);
    const csv = this.card.querySelector(".export");
    const parameters = { ...report.parameters, ...(report.columns.some((column) => column.sorts) ? { sort } : {}) };
    csv.href = api.address(report.path, { ...parameters, limit: 1_000, format: "csv" });
    csv.download = `${file}.csv`;
    csv.hidden = !rows.length;
    const all = this.card.querySelector(".all");
    all.hidden = !this.isWhole && !this.next;
    all.textContent = this.isWhole ? "Back to everything" : `Show all ${this.what}`;
    address.leadTo(all, { list: this.isWhole ? "" : this.id });
    this.card.querySelector(".pages").hidden = !this.isWhole || (!this.next && !this.cursors.length);
    this.card.querySelector(".previous").disabled = !this.cursors.length;
    this.card.querySelector(".next").disabled = !this.next;
    this.card.querySelector(".place").textContent = `Page ${this.cursors.length + 1}`;
  }

  /** @param {Column} column @param {string} sort */
  heading(column, sort) {
    const isSorted = column.name === sort;
    const heading = element("th", { scope: "col", className: "count" });
    heading.dataset.column = column.name;
    if (isSorted) heading.setAttribute("aria-sort", "descending");
    if (!column.sorts) {
      heading.append(column.label);
      return heading;
    }
    const link = element("a", { className: "sort" }, column.label);
    link.dataset.key = `${this.id} ${column.name}`;
    heading.append(address.leadTo(link, { [`sort-${this.id}`]: column.name }));
    return heading;
  }

  /** @param {Report} report @param {any} row @param {string} sort @param {string} measure what the bar shows @param {number} most */
  row(report, row, sort, measure, most) {
    const { text, of } = report.name(row);
    const changes = report.changes(row);
    const label = [...(of ? [element("span", { className: "of" }, of)] : []), text];
    const name = element("td", { className: most ? "name bar" : "name", title: [of, text].filter(Boolean).join(" ") });
    if (most) name.style.setProperty("--share", `${(((row[measure] ?? 0) / most) * 100).toFixed(1)}%`);
    if (changes) {
      const link = element("a", {}, ...label);
      link.dataset.key = `${this.id} ${of ?? ""} ${text}`;
      name.append(address.leadTo(link, { list: "", ...changes }));
    } else name.append(element("span", {}, ...label));
    const cells = report.columns.map((column) => {
      const written = WRITTEN[column.as ?? "count"](row[column.name]);
      const cell = element("td", { className: column.name === sort ? "count sorted" : "count" }, written);
      cell.dataset.column = column.name;
      return cell;
    });
    return element("tr", {}, name, ...cells, ...(report.extra ? [report.extra(row)] : []));
  }
}
