// The first minute of an empty collector: what to paste, and a light for the first event.

import { byId } from "./elements.js";

let wasEmpty = false;

/** @param {boolean} isEmpty whether nothing was ever counted */
export function show(isEmpty) {
  const card = byId("welcome");
  if (isEmpty && !wasEmpty) {
    wasEmpty = true;
    card.hidden = false;
    byId("welcome-tag").textContent = `<script async src="${location.origin}/tag.js"></script>`;
    byId("welcome-curl").textContent = `curl ${location.origin}/events -H 'Content-Type: application/json' -d '{"Type": "PageView", "Url": "site1.com/page1"}'`;
  }
  if (isEmpty || !wasEmpty) return;
  byId("welcome-light").dataset.state = "ok";
  byId("welcome-light").textContent = "The first event was counted";
}

for (const button of document.querySelectorAll("button[data-copies]")) {
  button.addEventListener("click", async () => {
    const text = byId(/** @type {any} */ (button).dataset.copies).textContent;
    await navigator.clipboard?.writeText(text);
    button.textContent = "Copied";
  });
}
