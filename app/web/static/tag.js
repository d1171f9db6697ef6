// Tells an eventstream collector of page views, viewable ad impressions and ad clicks.
(() => {
  const script = document.currentScript;
  // Included twice.
  if (window[Symbol.for("eventstream")]) return;
  window[Symbol.for("eventstream")] = true;

  const { key } = script.dataset;
  const path = "events" + (key ? "?key=" + encodeURIComponent(key) : "");
  const collector = new URL(path, script.src).href;
  const ADS = '[data-ad-id]:not([data-ad-id=""])';
  const MOST = 200;
  // As long as they can be, these still fit the 64 KiB of fetch's keepalive.
  const AT_ONCE = 15;

  // The user may forbid it.
  let storage;
  try {
    storage = localStorage;
  } catch {}
  const anonymous =
    navigator.globalPrivacyControl || navigator.doNotTrack === "1" || !storage;

  // Not crypto.randomUUID, which pages without https lack.
  const random = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

  const store = (name, text) => {
    // It may be full.
    try {
      storage[name] = text;
    } catch {}
  };

  const OWN = "eventstream user";
  let own;
  const user = () => {
    if (anonymous) return;
    if (script.dataset.user) return script.dataset.user;
    own ??= storage[OWN] || random();
    store(OWN, own);
    return own;
  };

  // An event is kept, over pages too, until the collector has answered for it: its EventId makes
  // sending it again safe, for 7 days. In storage each has a key of its own, so that the tabs of a
  // site don't overwrite each other's.
  const prefix = `eventstream ${collector} `;
  const queue = new Map();
  let sending = [];
  let wait = 0;
  let timer;

  const forget = (name) => {
    queue.delete(name);
    storage?.removeItem(name);
  };

  const recall = () => {
    for (const name of Object.keys(storage || {})) {
      if (!name.startsWith(prefix)) continue;
      try {
        const event = JSON.parse(storage[name]);
        if (Date.now() - event.Timestamp < 6 * 864e5 && !(anonymous && event.Meta.UserId)) {
          queue.set(name, event);
          continue;
        }
      } catch {}
      forget(name);
    }
    if (anonymous) storage?.removeItem(OWN);
  };

  const body = (names) => JSON.stringify(names.map((name) => queue.get(name)));

  const send = async () => {
    clearTimeout(timer);
    timer = 0;
    if (sending.length || !queue.size || !navigator.onLine) return;
    sending = [...queue.keys()].slice(0, AT_ONCE);
    // 0: no connection.
    let status = 0;
    try {
      const init = { method: "POST", body: body(sending), keepalive: true, credentials: "omit" };
      ({ status } = await fetch(collector, init));
    } catch {}
    const later = [0, 408, 429].includes(status) || status > 499;
    if (!later) sending.forEach(forget);
    sending = [];
    wait = later ? Math.min(2 * wait || 2e3, 3e5) : 0;
    if (queue.size) soon();
  };
  const soon = () => {
    timer ||= setTimeout(send, wait || 500);
  };
  const now = () => (wait ? soon() : send());

  const record = (Type, AdId) => {
    const UserId = user();
    if (AdId && !UserId) return;
    const EventId = random();
    // Longer than is allowed stays so, and is among the collector's dead letters.
    const Url = location.href.split(/[?#]/)[0].slice(0, 2049);
    const event = { Type, Url, Meta: { UserId, AdId }, EventId, Timestamp: Date.now() };
    const name = prefix + EventId;
    queue.set(name, event);
    if (queue.size > MOST) forget(queue.keys().next().value);
    store(name, JSON.stringify(event));
    soon();
  };

  // MRC Viewable Impression Guidelines: half of the pixels for one continuous second.
  let seen = new WeakMap();
  const timers = new Map();

  const stop = (ad) => {
    clearTimeout(timers.get(ad));
    timers.delete(ad);
  };
  const shown = (ad, id, pixels) => {
    timers.delete(ad);
    observer.unobserve(ad);
    if (pixels && ad.dataset.adId === id) {
      seen.set(ad, id);
      record("AdImpression", id);
    } else {
      // It was empty, or is another ad by now: look again.
      observer.observe(ad);
    }
  };
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, intersectionRatio, boundingClientRect: box } of entries) {
        stop(target);
        if (intersectionRatio >= 0.5 && !document.hidden) {
          const id = target.dataset.adId;
          timers.set(target, setTimeout(shown, 1000, target, id, box.width * box.height));
        }
      }
    },
    { threshold: 0.5 },
  );
  const watch = () => {
    for (const ad of document.querySelectorAll(ADS)) {
      if (seen.get(ad) !== ad.dataset.adId) observer.observe(ad);
    }
  };
  const unwatch = () => {
    observer.disconnect();
    [...timers.keys()].forEach(stop);
  };

  let page;
  const view = () => {
    record("PageView");
    seen = new WeakMap();
    unwatch();
    watch();
  };
  const moved = () => {
    const address = location.href.split("#")[0];
    if (address === page) return;
    page = address;
    view();
  };

  const clicked = ({ target, button }) => {
    const ad = button < 2 && target.closest?.(ADS);
    if (!ad) return;
    record("AdClick", ad.dataset.adId);
    now();
  };

  const start = () => {
    recall();
    moved();
    for (const name of ["pushState", "replaceState"]) {
      const original = history[name];
      history[name] = function (...given) {
        original.apply(this, given);
        moved();
      };
    }
    addEventListener("popstate", moved);
    addEventListener("pageshow", ({ persisted }) => persisted && view());
    new MutationObserver(watch).observe(document, {
      subtree: true,
      childList: true,
      attributeFilter: ["data-ad-id"],
    });
    // auxclick: the middle button, which opens a link in another tab.
    for (const name of ["click", "auxclick"]) addEventListener(name, clicked, true);
    addEventListener("online", send);
    document.addEventListener("visibilitychange", () => {
      unwatch();
      if (document.hidden) now();
      else watch();
    });
    addEventListener("pagehide", () => {
      const rest = [...queue.keys()].filter((name) => !sending.includes(name)).slice(-AT_ONCE);
      if (rest.length) navigator.sendBeacon(collector, body(rest));
    });
  };
  if (document.prerendering) document.addEventListener("prerenderingchange", start, { once: true });
  else start();
})();
