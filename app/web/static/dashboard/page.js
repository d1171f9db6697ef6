// What the collector says about the page: for whom it is, and where its clock is.

import * as address from "./address.js";

export const main = /** @type {HTMLElement} */ (document.querySelector("main"));
export const isOperator = main.dataset.operator !== undefined;
/** Whether the reader sees only some ads, and no page. */
export const isOfAds = main.dataset.ads !== undefined;
export const timezone = main.dataset.timezone ?? "UTC";

export const isOnOperations = () => isOperator && address.get("tab") === "operations";
