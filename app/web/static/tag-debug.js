// Shows in the page what the tag saw, sent and was answered, and why an ad did not count. It comes
// before the tag, which calls `note`; each note says what and about what.
const panel = document.createElement("aside");
const root = panel.attachShadow({ mode: "open" });
// Neither markup nor a style element: a page's Content-Security-Policy may forbid both.
const style = new CSSStyleSheet();
style.replaceSync(`
  :host { all: initial; position: fixed; inset: auto 8px 8px auto; z-index: 2147483647 }
  div { width: 340px; max-height: 60vh; overflow: auto; padding: 8px 12px; border-radius: 6px;
    background: #111; color: #eee; font: 12px/1.5 system-ui; pointer-events: none }
  h1 { margin: 4px 0; font-size: 13px }
  p { margin: 2px 0; overflow-wrap: anywhere }
`);
root.adoptedStyleSheets = [style];
const box = document.createElement("div");
root.append(box);
const section = (title) => {
  const heading = document.createElement("h1");
  heading.textContent = title;
  const shown = document.createElement("section");
  box.append(heading, shown);
  return shown;
};
const adsShown = section("Ads");
const eventsShown = section("Events");
const MOST_LINES = 50;
const lines = new WeakMap();

const line = (parent, text) => {
  const element = document.createElement("p");
  element.textContent = text;
  parent.append(element);
  if (parent.childElementCount > MOST_LINES) parent.firstElementChild.remove();
  return element;
};
const say = (ad, text) => {
  if (!lines.get(ad)?.isConnected) lines.set(ad, line(adsShown, ""));
  lines.get(ad).textContent = `${ad.dataset.adId}: ${text}`;
};

const NOTES = {
  ad(ad, part, isCounted, isAnonymous) {
    if (isCounted) say(ad, "counted in this page view");
    else if (!part) say(ad, "nothing of it is drawn");
    else if (isAnonymous) {
      say(ad, "no user id may be kept: the visitor objects, has not consented, or storage is off");
    }
  },
  view(ad, ratio, least, isCounted) {
    if (isCounted) return;
    const shown = `${Math.round(ratio * 100)} % of its pixels are in view`;
    if (ratio < least) say(ad, `${shown}, it takes ${least * 100} %`);
    else say(ad, `${shown}: wait a second`);
  },
  count(ad, isCovered) {
    if (isCovered) say(ad, "something covers it");
  },
  event(type, ad, viewable) {
    const rendered = viewable === false ? "rendered" : "";
    line(eventsShown, `${new Date().toLocaleTimeString()} ${type} ${ad ?? ""} ${rendered}`);
  },
  async answer(body, answer) {
    line(eventsShown, `→ ${body}`);
    line(eventsShown, `← ${answer.status} ${await answer.text()}`);
  },
};
const note = (what, ...about) => {
  if (!panel.isConnected) document.body?.append(panel);
  NOTES[what](...about);
};
