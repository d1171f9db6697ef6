// Reports page views, viewable ad impressions and ad clicks to an eventstream collector.
(() => {
  // A module is no current script.
  let script = document.currentScript;
  if (!script) for (const one of document.scripts) if (one.src.includes("TAG_NAME")) script = one;
  const { dataset: data, src } = script;
  // Included twice.
  if (window.eventstream?.consent) return;
  if (/[?&]eventstream-debug\b/.test(location.search) || "debug" in data) {
    // The same, but it shows what it does.
    if (!window.eventstream) return import((window.eventstream = new URL("DEBUG_NAME", src)));
  }

  // As it is now: pages wrap it later.
  const { fetch } = window;
  const path = "EVENTS_PATH" + (data.key ? "?key=" + encodeURIComponent(data.key) : "");
  const collector = new URL(path, src).href;
  const ADS = '[data-ad-id]:not([data-ad-id=""])';
  // As long as they can be, these still fit the 64 KiB of fetch's keepalive.
  const AT_ONCE = 15;

  // The user may forbid it.
  let storage;
  try {
    storage = localStorage;
  } catch {}
  const objects =
    navigator.globalPrivacyControl || navigator.doNotTrack === "1" || !storage;
  const anonymous = () => objects || data.consent === "wait";

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
    if (anonymous()) return;
    if (data.user) return data.user;
    store(OWN, (own ??= storage[OWN] || random()));
    return own;
  };

  // An event is kept, over pages too, until the collector has answered for it: its EventId makes
  // sending it again safe, for 7 days. In storage each has a key of its own, so that the tabs of a
  // site don't overwrite each other's. It is kept as text that is made by hand, as pages with an old
  // Prototype change what JSON.stringify makes of a list or a text.
  const prefix = `eventstream ${collector} `;
  const queue = new Map();
  let sending = [];
  let most = AT_ONCE;
  let warns = true;
  let wait = 0;
  let timer;

  const escaped = (letter) => "\\u" + (letter.charCodeAt() + 65536).toString(16).slice(1);
  const quoted = (text) => `"${text.replace(/[^ !#-[\]-~]/g, escaped)}"`;

  const forget = (name) => {
    queue.delete(name);
    storage?.removeItem(name);
  };

  const NAMED = /"UserId":/;
  const recall = (never) => {
    if (never) {
      own = 0;
      storage?.removeItem(OWN);
      for (const [name, text] of queue) if (NAMED.test(text)) forget(name);
    }
    for (const name in storage) {
      if (name.indexOf(prefix)) continue;
      const text = storage[name];
      const time = /(\d+)}$/.exec(text)?.[1];
      const named = NAMED.test(text);
      if (!(Date.now() - time < 6 * 864e5) || (named && never)) forget(name);
      else if (!named || !anonymous()) queue.set(name, text);
    }
  };

  const body = (names) => {
    let all = "";
    for (const name of names) {
      all += `${all && ","}${queue.get(name).slice(0, -1)},"SentAt":${Date.now()}}`;
    }
    return `[${all}]`;
  };

  const send = async () => {
    clearTimeout(timer);
    timer = 0;
    if (sending.length || !queue.size) return;
    sending = [...queue.keys()].slice(0, most);
    // 0: no connection.
    let status = 0;
    try {
      const init = { method: "POST", body: body(sending), keepalive: true, credentials: "omit" };
      const answer = await fetch(collector, init);
      note("answer", init.body, answer.clone());
      ({ status } = answer);
    } catch {}
    const later = /^(0|408|429|5..)$/.test(status);
    if (!later) {
      const isRefused = status > 399;
      // One of them may be to blame.
      if (isRefused && sending[1]) most = 1;
      else sending.forEach(forget);
      if (isRefused) warns &&= console.warn("eventstream: refused", status);
    }
    sending = [];
    wait = later ? Math.min(2 * wait || 2e3, 3e5) : 0;
    if (queue.size) soon();
  };
  const soon = () => {
    timer ||= setTimeout(send, wait || 500);
  };
  const now = () => (wait ? soon() : send());

  const record = (type, ad) => {
    const who = user();
    if (ad && !who) return;
    note("event", type, ad);
    const id = random();
    // Longer than is allowed stays so, and is among the collector's dead letters.
    const url = location.href.split(/[?#]/)[0].slice(0, 2049);
    let meta = who ? `"UserId":${quoted(who)}` : "";
    if (ad) meta += `,"AdId":${quoted(ad)}`;
    const name = prefix + id;
    const text = `{"Type":"${type}","Url":${quoted(url)},"Meta":{${meta}},"EventId":"${id}","Timestamp":${Date.now()}}`;
    queue.set(name, text);
    if (queue.size > 200) forget(queue.keys().next().value);
    store(name, text);
    soon();
    return true;
  };

  // The ad is what is drawn: the largest part that paints something, not the box of the marked
  // element, which may be empty, or as wide as the page. What clips its contents counts whole, if
  // any of them is drawn. A picture is drawn once it has come, a frame if there is room in it.
  const isClear = (color) => /^rgba.* 0\)|\/ 0\)/.test(color);
  const paints = (node) =>
    node.matches("video,canvas,svg,object,embed,input") ||
    node.naturalWidth ||
    (node.matches("iframe") && node.clientHeight > 1) ||
    ["", ":before", ":after"].some((pseudo) => {
      const style = getComputedStyle(node, pseudo);
      const { content } = style;
      // That of a pseudo-element may be an empty text, or there is none.
      const text = pseudo
        ? /"[^"]/.test(content)
        : [...node.childNodes].some(({ wholeText }) => wholeText?.trim());
      return (
        content !== "none" &&
        (style.backgroundImage !== "none" ||
          !isClear(style.backgroundColor) ||
          (text && style.fontSize !== "0px" && !isClear(style.color)))
      );
    });
  const isVisible = (node) =>
    node.checkVisibility?.({ checkOpacity: true, checkVisibilityCSS: true }) !== false;
  const drawn = (node, found = { area: 1, left: 200 }) => {
    const { width, height } = node.getBoundingClientRect();
    const clips = width * height && getComputedStyle(node).overflowX !== "visible";
    const inside = clips ? { area: 1, left: found.left } : found;
    const assigned = node.assignedElements?.({ flatten: true });
    for (const child of assigned || (node.shadowRoot || node).children) {
      if (inside.left-- > 0) drawn(child, inside);
    }
    found.left = inside.left;
    if (width * height > found.area && isVisible(node) && ((clips && inside.part) || paints(node))) {
      found.area = width * height;
      found.part = node;
    }
    return found;
  };

  // By most of the points of a diagonal: whether something else that paints lies over the part.
  const isCovered = (part, ad) => {
    const { x, y, width, height } = part.getBoundingClientRect();
    let over = 0;
    for (let i = 0.5; i < 9; i++) {
      const node = document.elementFromPoint(x + (width * i) / 9, y + (height * i) / 9);
      // Neither in the ad nor around it, nor in another tree.
      over +=
        node && /^[24]$/.test(ad.compareDocumentPosition(node)) && isVisible(node) && paints(node);
    }
    return over > 4;
  };

  // Also those in open shadow roots.
  const ads = (root, found = []) => {
    for (const node of root.querySelectorAll("*")) {
      if (node.matches(ADS)) found.push(node);
      if (node.shadowRoot) ads(node.shadowRoot, found);
    }
    return found;
  };

  // Once a page view for each ad and slot: that which is named, or else the first, second, … of
  // this ad in the page.
  let seen = new Set();
  const watched = new Map();

  const unwatch = (ad) => {
    watched.get(ad).stop();
    watched.delete(ad);
  };
  const unwatchAll = () => {
    for (const [ad] of watched) unwatch(ad);
  };
  const observe = (ad, slot, { part, area }) => {
    const id = ad.dataset.adId;
    // MRC Viewable Impression Guidelines: half of the pixels, or 30 % of a large ad, for one
    // continuous second.
    const least = area < 242500 ? 0.5 : 0.3;
    let second;
    const observer = new IntersectionObserver(
      (entries) => {
        const ratio = entries.pop().intersectionRatio;
        note("view", ad, ratio, least);
        if (ratio >= least) second ||= setTimeout(count, 1000);
        else second = clearTimeout(second);
      },
      { threshold: [0.3, 0.5] },
    );
    const count = () => {
      second = 0;
      const shown = drawn(ad).part === part;
      const covered = shown && isCovered(part, ad);
      note("count", ad, covered);
      if (shown && !covered && record("AdImpression", id)) {
        seen.add(slot);
        unwatch(ad);
      } else {
        // It may be in another second.
        observer.unobserve(part);
        observer.observe(part);
      }
    };
    observer.observe(part);
    const stop = () => {
      clearTimeout(second);
      observer.disconnect();
    };
    watched.set(ad, { part, slot, stop });
  };
  const watch = () => {
    if (document.hidden) return;
    const numbers = { __proto__: null };
    for (const [ad] of watched) if (!ad.isConnected) unwatch(ad);
    for (const ad of ads(document)) {
      const { adId, adSlot } = ad.dataset;
      numbers[adId] = -~numbers[adId];
      const slot = `${adSlot || numbers[adId]} ${adId}`;
      const shown = drawn(ad);
      const before = watched.get(ad);
      note("ad", ad, shown.part, seen.has(slot), anonymous());
      if (before?.part === shown.part && before?.slot === slot) continue;
      if (before) unwatch(ad);
      if (shown.part && !seen.has(slot)) observe(ad, slot, shown);
    }
  };

  let page;
  const view = () => {
    record("PageView");
    seen = new Set();
    unwatchAll();
  };
  // To replace only the query is to tidy it up, and no other page.
  const moved = (replaces) => {
    const before = page;
    page = location.href.split("#")[0];
    if (page === before || (replaces && page.split("?")[0] === before.split("?")[0])) return;
    view();
    watch();
  };

  // A person's: a script's are not trusted. One on a label is its control's too, at the same place.
  let last;
  let lastX;
  const clicked = (event) => {
    const path = event.composedPath();
    const [target] = path;
    if (target.labels && target !== last && event.x === lastX) return;
    if (!event.isTrusted || event.button > 1) return;
    for (const node of path) {
      if (!node.matches?.(ADS)) continue;
      last = target;
      lastX = event.x;
      record("AdClick", node.dataset.adId);
      return now();
    }
  };

  const start = () => {
    recall(objects);
    if (window.navigation) {
      navigation.addEventListener("currententrychange", ({ navigationType }) =>
        moved(navigationType === "replace"),
      );
    } else {
      for (const name of ["pushState", "replaceState"]) {
        const original = history[name];
        history[name] = function (...given) {
          original.apply(this, given);
          moved(name === "replaceState");
        };
      }
      addEventListener("popstate", () => moved());
    }
    // Ads come, and styles, images and shadow roots change what is drawn. And where a router kept
    // the history's own methods, only this shows that it moved.
    const look = () => {
      moved();
      watch();
    };
    look();
    setInterval(look, 500);
    addEventListener("pageshow", ({ persisted }) => persisted && view());
    // auxclick: the middle button, which opens a link in another tab.
    for (const name of ["click", "auxclick"]) addEventListener(name, clicked, true);
    addEventListener("online", send);
    document.addEventListener("visibilitychange", () => {
      unwatchAll();
      if (document.hidden) now();
      else watch();
    });
    addEventListener("pagehide", () => {
      const rest = [...queue.keys()].filter((name) => !sending.includes(name)).slice(-AT_ONCE);
      if (rest.length) navigator.sendBeacon(collector, body(rest));
    });
  };

  window.eventstream = {
    // For data-consent="wait": what the visitor agrees to, or no longer.
    consent(given) {
      data.consent = given ? "" : "wait";
      recall(objects || !given);
    },
  };

  if (document.prerendering) document.addEventListener("prerenderingchange", start);
  else start();
})();
