// The chip in the head: how the collector is.

import { Failed, Refused } from "./api.js";
import { byId } from "./elements.js";
import { age } from "./format.js";

const BEHIND_SECONDS = 5;
const STUCK_SECONDS = 60;
/** @type {Record<string, string>} */
const QUEUES = { page_view: "page views", ad_impression: "impressions", ad_click: "ad clicks" };

let isLive = false;

/** @param {boolean} live whether the live stream is open */
export function setLive(live) {
  isLive = live;
  if (!live) say("lost", "Reconnecting…");
}

/** @param {Record<string, number>} behind how many seconds the first batch of each queue waits */
export function showBehind(behind) {
  if (!isLive) return;
  const stuck = Object.entries(behind).filter(([, seconds]) => seconds >= STUCK_SECONDS);
  const most = Math.max(0, ...Object.values(behind));
  if (stuck.length) say("stuck", `${stuck.map(([queue]) => QUEUES[queue]).join(", ")} stuck`);
  else if (most >= BEHIND_SECONDS) say("behind", `${age(most)} behind`);
  else say("ok", "OK");
}

/** @type {Record<string, any>} */
const problems = {};

/** @param {string} what is read @param {any} problem why it can't be, null if it can */
export function showProblem(what, problem) {
  problems[what] = problem;
  const error = Object.values(problems).find(Boolean);
  const banner = byId("problem");
  banner.hidden = !error;
  document.querySelector("main")?.classList.toggle("stale", Boolean(error));
  if (!error) return;
  if (error instanceof Refused) {
    say("lost", "Logged out");
    banner.textContent = "Your session has ended. Load the page again to log in.";
  } else if (error instanceof Failed) {
    const part = /database|broker|live stream/.exec(error.message)?.[0];
    say("stuck", error.status === 503 && part ? `${part} away` : "Problem");
    banner.textContent = `The figures can’t be read: ${error.message.replace(/ Try again\.$/, "")}${error.status < 500 ? "" : " Trying again every 5 seconds."}`;
  } else {
    say("lost", "Reconnecting…");
    banner.textContent = "The collector does not answer. Trying again every 5 seconds.";
  }
}

/** @param {string} state @param {string} text */
function say(state, text) {
  const chip = byId("condition");
  if (chip.textContent === text) return;
  chip.dataset.state = state;
  chip.textContent = text;
}
