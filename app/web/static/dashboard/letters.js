// Dead letters: grouped by reason, searched, downloaded, dismissed, edited and sent again.

import * as api from "./api.js";
import { byId, element, fill } from "./elements.js";
import { clock, count } from "./format.js";

const SHOWN = 10;
/** All reasons that are not among the most common ones. */
const OTHERS = "<other>";
const SEARCH_MS = 300;

const search = byId("letters-search");
const reasons = byId("letters-reason");
const list = byId("letters");
const said = byId("letters-said");
let timezone = "UTC";
/** @type {number | undefined} */
let soon;

const filters = () => ({ reason: reasons.value, q: search.value.trim() });

/** @param {string} zone the time zone of the collector */
export async function show(zone = timezone) {
  timezone = zone;
  const asked = filters();
  const found = await api.get("/dead-letters", { ...asked, limit: SHOWN });
  if (JSON.stringify(asked) !== JSON.stringify(filters())) return;
  const { total } = found;
  byId("letters-number").textContent = total ? count(total) : "";
  showReasons(found.reasons);
  // Not from under somebody's hands.
  if (!list.contains(document.activeElement) && !list.querySelector("textarea")) {
    fill(list, found.items.map(item));
    if (list.children.length) wire(found.items);
  }
  const isFiltered = Boolean(asked.reason || asked.q);
  byId("letters-empty").hidden = total > 0;
  byId("letters-empty").textContent = isFiltered ? "No dead letter fits." : "None: every event could be counted.";
  byId("letters-more").hidden = total <= found.items.length;
  byId("letters-more").textContent = `and ${count(total - found.items.length)} more`;
  byId("letters-tools").hidden = !total && !isFiltered;
  byId("letters-download").href = api.address("/dead-letters", { ...asked, format: "ndjson" });
  byId("letters-dismiss").hidden = !isFiltered || !total;
  byId("letters-replay").hidden = !total;
  byId("letters-replay").textContent = isFiltered ? "Send these again" : "Send all again";
}

/** @param {{ reason: string, letters: number }[]} groups */
function showReasons(groups) {
  const chosen = reasons.value;
  // While one is chosen, the others are not known.
  if (chosen || document.activeElement === reasons) return;
  const options = groups.map(({ reason, letters }) => element("option", { value: reason, disabled: reason === OTHERS }, `${reason} (${count(letters)})`));
  fill(reasons, [element("option", { value: "" }, "All reasons"), ...options]);
}

/** @param {any} letter */
function item(letter) {
  const what = letter.queue ? `A batch of ${letter.queue}` : typeof letter.event === "string" ? letter.event : JSON.stringify(letter.event);
  const at = clock(new Date(letter.time), timezone, true);
  const button = (/** @type {string} */ name, /** @type {string} */ does) => {
    const made = element("button", { type: "button", "aria-label": `${name}: dead letter of ${at}` }, name);
    made.dataset.does = does;
    return made;
  };
  const buttons = [
    ...(letter.truncated ? [] : [button("Send again", "replay")]),
    ...(letter.queue || letter.truncated ? [] : [button("Edit", "edit")]),
    button("Dismiss", "dismiss"),
  ];
  return element(
    "li",
    {},
    element("code", {}, what),
    element("p", { className: "note" }, `${at}: ${letter.summary ?? api.words(letter.reason)}`),
    ...(letter.hint ? [element("p", { className: "hint" }, letter.hint)] : []),
    element("div", { className: "buttons" }, ...buttons),
  );
}

/** @param {any[]} letters */
function wire(letters) {
  for (const [place, one] of [...list.children].entries()) {
    const letter = letters[place];
    for (const button of one.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        if (button.dataset.does === "edit") edit(one, letter);
        else if (button.dataset.does === "replay") replay(letter, button);
        else dismiss(letter, button);
      });
    }
  }
}

/** @param {Element} one @param {any} letter */
function edit(one, letter) {
  const given = typeof letter.event === "string" ? letter.event : JSON.stringify(letter.event, null, 2);
  const area = element("textarea", { value: given, rows: 8, spellcheck: false, "aria-label": "The event, as JSON" });
  const submit = element("button", { type: "button", className: "primary" }, "Send");
  const cancel = element("button", { type: "button" }, "Cancel");
  submit.addEventListener("click", () => replay(letter, submit, area.value));
  cancel.addEventListener("click", () => {
    area.remove();
    list.replaceChildren();
    show();
  });
  one.replaceChildren(area, element("div", { className: "buttons" }, submit, cancel));
  area.focus();
}

/** @param {any} letter @param {any} button @param {string | undefined} body */
const replay = (letter, button, body = undefined) =>
  act(button, async () => {
    const { accepted } = await api.send("POST", `/dead-letters/${letter.id}/replay`, body);
    return `Sent again: ${count(accepted)} accepted.`;
  });

/** @param {any} letter @param {any} button */
const dismiss = (letter, button) =>
  act(button, async () => {
    await api.send("DELETE", `/dead-letters/${letter.id}`);
    return "Dismissed.";
  });

/** @param {any} button @param {() => Promise<string>} does returns what it did */
async function act(button, does) {
  button.disabled = true;
  try {
    said.textContent = await does();
    button.blur();
    list.replaceChildren();
  } catch (error) {
    said.textContent = error instanceof api.Failed ? `Still not accepted. ${error.message}` : "The collector does not answer.";
    button.disabled = false;
  }
  await show().catch(() => {});
}

search.addEventListener("input", () => {
  clearTimeout(soon);
  soon = setTimeout(() => show().catch(() => {}), SEARCH_MS);
});
reasons.addEventListener("change", () => {
  reasons.blur();
  show().catch(() => {});
});
byId("letters-tools").addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
byId("letters-replay").addEventListener("click", (/** @type {any} */ { currentTarget }) =>
  act(currentTarget, async () => {
    const { accepted, remaining } = await api.send("POST", api.address("/dead-letters/replay", filters()));
    return `Sent again: ${count(accepted)} accepted, ${count(remaining)} still not.`;
  }),
);
byId("letters-dismiss").addEventListener("click", (/** @type {any} */ { currentTarget }) => {
  if (!confirm("Dismiss all dead letters that fit? They are deleted for good.")) return;
  act(currentTarget, async () => {
    const { dropped } = await api.send("DELETE", api.address("/dead-letters", filters()));
    return `${count(dropped)} dismissed.`;
  });
});
