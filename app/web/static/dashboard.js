// The dashboard: reads the reports, then moves its figures by what GET /live tells.
// Text of events is only ever set as textContent.

const KINDS = {
  page_view: { name: "Page views", color: "--page-view" },
  ad_impression: { name: "Impressions", color: "--ad-impression" },
  ad_click: { name: "Hits", color: "--ad-click" },
};
const COUNTED = ["views", "impressions", "visitors", "hits", "clicks"];
const MINUTES = 60;
const SHOWN_ROWS = 10;
const SHOWN_LETTERS = 5;
const POLL_MS = 10_000;
const QUIET_MS = 2_000;
const CONNECT_AGAIN_MS = 2_000;
const SETTLED_MS = 5_000; // after that the reports hold what was told

const byId = (id) => document.getElementById(id);
const main = document.querySelector("main");
const isOperator = Boolean(byId("letters")); // a reader's page lacks what only operators may read
const filters = byId("filters");
const number = new Intl.NumberFormat("en");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const state = {
  today: null,
  // As in `read`: figures, and rows by their key.
  counts: { figures: {}, minutes: new Map(), pages: new Map(), ads: new Map(), months: new Map() },
  folds: {},
  told: {},
  spikes: [],
  partial: [], // tables that do not hold all
  websites: new Set(),
};
let reading = 0; // the number of the latest reading: an older one that comes later is dropped
let isReading = false;
let readSoonUntil = 0; // until then nothing that is told puts off the next reading
let lately = []; // what was told, until the reports surely hold it
let readAgain; // timers
let readSoon = null;
let pollAgain;

// Filters live in the address.

const query = () => new URLSearchParams(location.search);
const website = () => query().get("website") || "";
const range = () => {
  const [first, last] = [query().get("from") || "", query().get("to") || ""];
  return first || last ? { first, last } : { first: state.today, last: state.today };
};
const inRange = (day) => {
  const { first, last } = range();
  return (!first || day >= first) && (!last || day <= last);
};
const isOf = (row) => row.website === (website() || "*");
const concerns = (row) => !website() || row.website === website();

function showFilters() {
  for (const input of filters.querySelectorAll("input")) input.value = query().get(input.name) || "";
  const { first, last } = range();
  const today = first === state.today && last === state.today;
  const days = today ? "today" : first === last ? first : [first && `from ${first}`, last && `to ${last}`].filter(Boolean).join(" ");
  byId("views-title").textContent = `Views ${days}`;
  const partial = (table) => (state.partial.includes(table) ? `${days}, in part` : days);
  byId("pages-note").textContent = partial("pages");
  byId("filtered-note").textContent = partial("filtered");
}

function setFilters(values) {
  const given = Object.entries(values).filter(([, value]) => value);
  const search = new URLSearchParams(given).toString();
  if (search === query().toString()) return;
  history.pushState(null, "", search ? `/?${search}` : "/");
  load();
}

filters.addEventListener("change", () => setFilters(Object.fromEntries(new FormData(filters))));
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setFilters({}));
addEventListener("popstate", () => load());

// Reading.

class Refused extends Error {}

async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  const response = await fetch(`${path}?${new URLSearchParams(given)}`, { cache: "no-store" });
  if (response.status === 401 || response.status === 403) throw new Refused();
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.errors ? Object.values(answer.errors).flat().join(" ") : answer.error);
  return answer;
}

async function load({ quietly = false } = {}) {
  const mine = ++reading;
  clearTimeout(readAgain);
  if (!quietly) main.setAttribute("aria-busy", "true");
  isReading = true;
  try {
    const [snapshot, letters] = await Promise.all([
      get("/live/snapshot", { website: website(), from: query().get("from"), to: query().get("to") }),
      isOperator ? get("/dead-letters", { limit: SHOWN_LETTERS }) : null,
    ]);
    if (mine !== reading) return;
    const { today, folds, told, spikes, partial } = snapshot;
    Object.assign(state, { today, folds, told, spikes, partial, counts: read(snapshot) });
    forgetTold();
    lately.forEach(add);
    if (!website()) for (const row of [...snapshot.pages, ...snapshot.ads]) state.websites.add(row.website);
    showProblem(null);
    main.setAttribute("aria-busy", "false");
    showFilters();
    if (isOperator) {
      showLetters(letters.items);
      showQueues(snapshot.queues);
    }
    showFiltered(snapshot);
    showSpikes();
    show();
    // What was read may be a second old.
    if (lately.length || !quietly) loadIn(QUIET_MS * (1 + Math.random()));
    if (!quietly) readSoonUntil = performance.now() + 2 * QUIET_MS;
  } catch (error) {
    if (mine !== reading) return;
    showProblem(error);
    loadIn(5_000 * (0.8 + Math.random() * 0.4), quietly);
  } finally {
    if (mine === reading) isReading = false;
  }
}

function read(snapshot) {
  const month = snapshot.months.find((row) => row.month === snapshot.today.slice(0, 7));
  const { impressions, visitors } = month ?? { impressions: 0, visitors: 0 };
  const by = (rows, key) => new Map(rows.map((row) => [key(row), row]));
  return {
    figures: { views: snapshot.views, impressions, visitors, ...snapshot.clicks },
    minutes: by(snapshot.minutes, (row) => row.time),
    pages: by(snapshot.pages, (row) => `${row.website} ${row.page}`),
    ads: by(snapshot.ads, (row) => `${row.website} ${row.ad_id}`),
    months: by(snapshot.months, (row) => row.month),
  };
}

function loadIn(milliseconds, quietly = true) {
  clearTimeout(readAgain);
  readAgain = setTimeout(() => load({ quietly }), milliseconds);
}

function showProblem(error) {
  const problem = byId("problem");
  problem.hidden = !error;
  main.classList.toggle("stale", Boolean(error));
  if (!error) return;
  problem.textContent =
    error instanceof Refused
      ? "Your session has ended. Load the page again to log in."
      : error instanceof TypeError
        ? "The collector does not answer. Trying again every 5 seconds."
        : `The figures can’t be read: ${error.message.replace(/ Try again\.$/, "")} Trying again every 5 seconds.`;
}

// Queues and letters, and the day, change without a count.
function poll() {
  clearTimeout(pollAgain);
  if (!document.hidden && main.getAttribute("aria-busy") === "false" && !isReading) load({ quietly: true });
  pollAgain = setTimeout(poll, POLL_MS * (0.8 + Math.random() * 0.4));
}

// What is told.

// A reading holds what was told if the reports were folded since: so nothing is added twice.
const isRead = ({ queue, folds }) => folds < state.folds[queue];
// The minutes are counted where it is told, at once.
const isInMinutes = ({ queue, first }) => first <= state.told[queue];

function forgetTold() {
  const settled = performance.now() - SETTLED_MS;
  lately = lately.filter(({ at, message }) => at > settled && !(isRead(message) && isInMinutes(message)));
}

function add({ minute, message }) {
  if (!isRead(message)) addToRows(message);
  if (!isInMinutes(message)) addToMinutes(minute, message);
}

function addToRows(message) {
  const { counts } = state;
  const { figures } = counts;
  for (const row of message.views ?? []) if (isOf(row) && inRange(row.day)) figures.views += row.views;
  for (const row of message.pages ?? []) {
    if (concerns(row) && inRange(row.day)) addRow(counts.pages, `${row.website} ${row.page}`, row);
  }
  for (const row of message.months ?? []) {
    if (!isOf(row)) continue;
    addRow(counts.months, row.month, { closed: false, ...row });
    if (row.month === state.today.slice(0, 7)) {
      figures.impressions += row.impressions;
      figures.visitors += row.visitors;
    }
  }
  for (const row of message.clicks ?? []) {
    if (!isOf(row)) continue;
    figures.hits += row.hits;
    figures.clicks += row.clicks;
  }
  for (const row of message.ads ?? []) {
    if (concerns(row)) addRow(counts.ads, `${row.website} ${row.ad_id}`, row);
  }
}

function addToMinutes(minute, message) {
  beginMinute(minute);
  const row = state.counts.minutes.get(minute);
  const told = { page_view: [message.views, "views"], ad_impression: [message.months, "impressions"], ad_click: [message.clicks, "hits"] };
  const [rows, name] = told[message.queue];
  for (const of of rows ?? []) if (row && isOf(of)) row[message.queue] += of[name];
}

function addRow(rows, key, row) {
  if (row.website !== "*") state.websites.add(row.website);
  const known = rows.get(key);
  // What was set down for a month stands until it is set down again.
  if (known?.closed) return;
  if (!known) rows.set(key, { ...row });
  else for (const name of COUNTED) if (name in row) known[name] += row[name];
}

// Not before the last one that was read, whose clock may be another.
const presentMinute = () => Math.max(Math.floor(Date.now() / 60_000) * 60, ...state.counts.minutes.keys());

function beginMinute(minute) {
  const { minutes } = state.counts;
  for (let time = [...minutes.keys()].at(-1) + 60; time <= minute; time += 60) {
    minutes.set(time, { time, page_view: 0, ad_impression: 0, ad_click: 0 });
    if (minutes.size > MINUTES) minutes.delete(minutes.keys().next().value);
  }
}

function connect() {
  const source = new EventSource("/live");
  source.addEventListener("open", () => {
    showConnection("live", "Live");
    load({ quietly: main.getAttribute("aria-busy") === "false" });
  });
  source.addEventListener("counts", (event) => {
    const told = { at: performance.now(), minute: presentMinute(), message: JSON.parse(event.data) };
    if (!("folds" in told.message)) {
      // What a reading holds can't be told from what it lacks, so read again.
      readSoon ??= setTimeout(() => { readSoon = null; load({ quietly: true }); }, 1_000);
      return;
    }
    forgetTold();
    lately.push(told);
    if (state.today) add(told);
    show();
    // Once it is quiet, the reports have the last word.
    if (!isReading && told.at > readSoonUntil) loadIn(QUIET_MS * (1 + Math.random()));
  });
  source.addEventListener("spike", (event) => {
    const spike = JSON.parse(event.data);
    if (!concerns(spike)) return;
    state.spikes = [spike, ...state.spikes].slice(0, 50);
    showSpikes(true);
  });
  source.addEventListener("error", () => {
    showConnection("lost", "Reconnecting…");
    if (!state.today && !isReading) load();
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, CONNECT_AGAIN_MS * (0.75 + Math.random() * 0.5));
  });
}

function showConnection(name, text) {
  byId("connection").dataset.state = name;
  byId("connection").textContent = text;
}

// Showing.

let planned = false;
function show() {
  if (planned || !state.today) return;
  planned = true;
  setTimeout(() => {
    planned = false;
    for (const [name, value] of Object.entries(state.counts.figures)) showNumber(byId(name), value);
    showPages();
    showAds();
    showMonths();
    showChart();
    showWebsites();
  }, 50);
}

const shown = new Map();
function showNumber(element, value) {
  if (value === null) { // of some ads there are no views
    element.textContent = "–";
    return;
  }
  const from = shown.get(element) ?? value;
  shown.set(element, value);
  if (element.textContent === number.format(value)) return;
  if (from !== value) {
    element.classList.remove("moved");
    requestAnimationFrame(() => element.classList.add("moved"));
  }
  const start = performance.now();
  const step = (now) => {
    if (shown.get(element) !== value) return;
    const part = still.matches || from === value ? 1 : Math.min(1, (now - start) / 300);
    element.textContent = number.format(Math.round(from + (value - from) * part));
    if (part < 1) requestAnimationFrame(step);
  };
  step(start);
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function fill(list, rows) {
  const body = list.tBodies?.[0] ?? list;
  body.replaceChildren(...rows);
  list.hidden = !rows.length;
  list.closest("section").querySelector(".empty").hidden = Boolean(rows.length);
}

function row(cells) {
  const made = element("tr");
  for (const cell of cells) made.append(typeof cell === "number" ? element("td", number.format(cell), "count") : cell);
  return made;
}

function named(of, name) {
  const cell = element("td");
  cell.title = `${of} ${name}`;
  if (!website()) cell.append(element("span", of, "of"));
  cell.append(element("span", `${website() || name.startsWith("/") ? "" : " "}${name}`));
  return cell;
}

function showPages() {
  const rows = [...state.counts.pages.values()].sort((a, b) => b.views - a.views);
  fill(byId("pages"), rows.slice(0, SHOWN_ROWS).map((page) => row([named(page.website, page.page), page.views])));
}

function showAds() {
  const rows = [...state.counts.ads.values()].sort((a, b) => b.clicks - a.clicks || b.hits - a.hits);
  fill(byId("ads"), rows.slice(0, SHOWN_ROWS).map((ad) => row([named(ad.website, `ad ${ad.ad_id}`), ad.hits, ad.clicks])));
}

function showMonths() {
  const rows = [...state.counts.months.values()].sort((a, b) => (a.month < b.month ? 1 : -1));
  const cells = rows.slice(0, 12).map((month) => {
    const state = element("td");
    state.append(element("span", month.closed ? "closed" : "open", month.closed ? "state closed" : "state"));
    return row([element("td", month.month), month.impressions, month.visitors, state]);
  });
  fill(byId("months"), cells);
}

function showQueues(queues) {
  const age = (seconds) => (seconds === null ? "–" : seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);
  fill(byId("queues"), queues.map((queue) => row([
    element("td", queue.queue.replace("_", " ")), queue.waiting, element("td", age(queue.oldest_seconds), "count"),
  ])));
}

function showFiltered({ filtered, other }) {
  fill(byId("filtered"), filtered.slice(0, SHOWN_ROWS).map((of) => row([named(of.website, of.type), element("td", of.reason), of.events])));
  const what = Object.entries(other).filter(([, events]) => events).map(([kind, events]) => `${number.format(events)} by ${kind}`);
  byId("other").hidden = !what.length;
  byId("other").textContent = `Counted under <other>, because their senders used too many new names: ${what.join(", ")}.`;
}

function showSpikes(isNew = false) {
  const what = { page_view: "views", ad_impression: "impressions", ad_click: "hits" };
  fill(byId("spikes"), state.spikes.map((spike, place) => {
    const item = element("li", "", isNew && place === 0 ? "new" : "");
    const at = new Date(spike.time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
    const name = spike.queue === "page_view" ? spike.website + (spike.name.startsWith("/") ? "" : " ") + spike.name : `ad ${spike.name} on ${spike.website}`;
    const mean = spike.mean.toLocaleString("en", { maximumFractionDigits: 1 });
    item.append(element("strong", name));
    item.append(element("div", `${number.format(spike.count)} ${what[spike.queue]} in the minute at ${at}, usually ${mean}`, "note"));
    if (spike.more) item.append(element("div", `and ${number.format(spike.more)} smaller spikes`, "note"));
    return item;
  }));
}

function showWebsites() {
  const names = [...state.websites].sort().slice(0, 200);
  if (byId("websites").childElementCount === names.length) return;
  byId("websites").replaceChildren(...names.map((name) => {
    const option = element("option");
    option.value = name;
    return option;
  }));
}

function showLetters(letters) {
  if (byId("letters").contains(document.activeElement) && letters.length) return; // not from under a hand
  fill(byId("letters"), letters.map((letter) => {
    const item = element("li");
    const what = letter.queue ? `A batch of ${letter.queue}` : JSON.stringify(letter.event);
    const button = element("button", "Replay");
    button.setAttribute("aria-label", `Replay the dead letter of ${letter.time}`);
    button.addEventListener("click", () => replay(letter, button));
    item.append(element("code", what), element("p", `${new Date(letter.time).toLocaleString("en-GB")}: ${reason(letter.reason)}`, "note"), button);
    return item;
  }));
}

function reason(why) {
  if (typeof why === "string") return why;
  if (Array.isArray(why)) return why.map(reason).join(" ");
  return Object.entries(why).map(([name, inner]) => `${name}: ${reason(inner)}`).join(" ");
}

async function replay(letter, button) {
  button.disabled = true;
  try {
    const response = await fetch(`/dead-letters/${letter.id}/replay`, { method: "POST" });
    const answer = await response.json();
    byId("replayed").textContent = response.ok
      ? `Replayed: ${number.format(answer.accepted)} accepted.`
      : `Still not accepted. ${reason(answer.rejected?.[0]?.errors ?? answer.error)}`;
  } catch {
    byId("replayed").textContent = "The collector does not answer.";
  }
  button.disabled = false;
  button.blur();
  load({ quietly: true });
}

// The chart.

let chart;

function showChart() {
  const rows = [...state.counts.minutes.values()];
  const data = [rows.map((minute) => minute.time), ...Object.keys(KINDS).map((kind) => rows.map((minute) => minute[kind]))];
  const empty = !rows.some((minute) => Object.keys(KINDS).some((kind) => minute[kind]));
  byId("chart-empty").hidden = !empty;
  byId("chart").hidden = empty;
  if (empty) return;
  if (chart) chart.setData(data);
  else chart = makeChart(data);
  tellPresent(chart);
  const last = rows.at(-1);
  byId("chart").setAttribute("aria-label", "Events a minute over the last hour. This minute: " +
    Object.entries(KINDS).map(([kind, { name }]) => `${last[kind]} ${name.toLowerCase()}`).join(", "));
}

// While no minute is pointed at, the legend tells of the present one.
function tellPresent(chart) {
  if (chart.cursor.left < 0) chart.setLegend({ idx: chart.data[0].length - 1 });
}

function makeChart(data) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--quiet"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const series = Object.values(KINDS).map((kind) => ({
    label: kind.name, stroke: color(kind.color), fill: `${color(kind.color)}22`, width: 2, points: { show: false },
    value: (_, value) => (value === null ? "–" : number.format(value)),
  }));
  const whole = { ...axis, size: 56, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] };
  return new uPlot({
    width: byId("chart").clientWidth, height: 208,
    scales: { y: { range: (_, low, high) => [0, Math.max(5, high * 1.1)] } },
    axes: [{ ...axis, values: [[60, "{HH}:{mm}", null, null, null, null, null, null, 1]] }, whole],
    series: [{ value: "{HH}:{mm}", label: "Minute" }, ...series],
    cursor: { y: false, drag: { x: false } },
    hooks: { ready: [tellPresent], setCursor: [tellPresent] },
  }, data, byId("chart"));
}

function drawAnew() {
  chart?.destroy();
  chart = undefined;
  if (state.today) showChart();
}
dark.addEventListener("change", drawAnew);
new ResizeObserver(() => {
  const width = byId("chart").clientWidth;
  if (chart && width && chart.width !== width) chart.setSize({ width, height: 208 });
}).observe(byId("chart"));
setInterval(() => { if (state.today) { beginMinute(presentMinute()); show(); } }, 5_000);

showFilters();
connect();
poll();
