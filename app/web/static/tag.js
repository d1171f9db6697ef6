// Reports page views, ads that are rendered or viewable, and ad clicks to an eventstream collector.
(() => {
  // A module is no current script. Others' scripts may have the same name, but are hardly modules.
  const { dataset: data, src } =
    document.currentScript || document.querySelector('[MODULE][src*="TAG_NAME"]');
  // Not by URL, as pages have variables of that name.
  const beside = (path) => src.replace(/[^/]*([?#].*)?$/, path);
  // Included twice.
  if (window.eventstream?.consent) return;
  // The same, but it shows what it does.
  if (location.search.includes("eventstream-debug")) data.debug = "";
  if ("debug" in data) return import(beside("DEBUG_NAME"));

  // As they are now: pages wrap fetch later. Constants of a page may hide the others.
  const { fetch, crypto, navigation } = window;
  const collector = beside(
    "EVENTS_PATH" + (data.key ? "?key=" + encodeURIComponent(data.key) : ""),
  );
  // Whether an ad that is rendered is reported before it is viewable, in an event of its own.
  const apart = data.rendered !== "off";
  // As long as they can be, these still fit the 64 KiB of fetch's keepalive, and of a beacon.
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
  // Neither Map nor Set is used, as old pages have classes of these names.
  const queue = {};
  const waiting = () => Object.keys(queue);
  let sending = [];
  let most = AT_ONCE;
  let warns = true;
  let wait;
  let timer;

  const quoted = (text) =>
    `"${text.replace(
      /[^ !#-[\]-~]/g,
      (letter) => "\\u" + (letter.charCodeAt() + 65536).toString(16).slice(1),
    )}"`;

  const forget = (name) => {
    delete queue[name];
    storage?.removeItem(name);
  };

  const NAMED = /"UserId":/;
  const recall = (never) => {
    if (never) {
      own = 0;
      forget(OWN);
    }
    for (const name of [...waiting(), ...Object.keys(storage || {})]) {
      if (name.indexOf(prefix)) continue;
      const text = queue[name] || storage[name];
      const time = /(\d+)}$/.exec(text)?.[1];
      const named = NAMED.test(text);
      if (!(Date.now() - time < 6 * 864e5) || (named && never)) forget(name);
      else if (!named || !anonymous()) queue[name] = text;
    }
  };

  const body = (names) => {
    let all = "";
    for (const name of names) {
      all += `${all && ","}${queue[name].slice(0, -1)},"SentAt":${Date.now()}}`;
    }
    return `[${all}]`;
  };

  const send = async () => {
    timer = clearTimeout(timer);
    if (sending[0]) return;
    sending = waiting().slice(0, most);
    if (!sending[0]) return;
    // 0: no connection.
    let status = 0;
    try {
      const text = body(sending);
      const answer = await fetch(collector, {
        method: "POST",
        body: text,
        keepalive: true,
        credentials: "omit",
      });
      note("answer", text, answer.clone());
      status = answer.status;
    } catch {}
    wait = /^(0|408|429|5..)$/.test(status) && Math.min(2 * wait || 2e3, 3e5);
    if (!wait) {
      const isRefused = status > 399;
      // One of them may be to blame.
      if (isRefused && sending[1]) most = 1;
      else sending.forEach(forget);
      if (isRefused) warns &&= console.warn("eventstream: refused", status);
    }
    sending = [];
    if (waiting()[0]) soon();
  };
  const soon = (delay = 500) => (timer ||= setTimeout(send, wait || delay));
  const now = () => (wait ? soon() : send());

  // Returns whether it may be: the number of a timer, unless no user id may be kept.
  const record = (type, ad, viewable) => {
    const who = user();
    if (ad && !who) return;
    note("event", type, ad, viewable);
    const id = random();
    // Longer than is allowed stays so, and is among the collector's dead letters.
    const url = page.split("?")[0].slice(0, 2049);
    const meta =
      (who ? `"UserId":${quoted(who)}` : "") +
      (ad ? `,"AdId":${quoted(ad)}` : "") +
      (apart && viewable != null ? `,"Viewable":${viewable}` : "");
    const name = prefix + id;
    const text = `{"Type":"${type}","Url":${quoted(url)},"Meta":{${meta}},"EventId":"${id}","Timestamp":${Date.now()}}`;
    queue[name] = text;
    if (waiting()[200]) forget(waiting()[0]);
    store(name, text);
    // An ad that is viewable at once goes into the same post as its rendering.
    return soon(ad && 1500);
  };

  // The ad is what is drawn: the largest part that paints something, not the box of the marked
  // element, which may be empty, or as wide as the page. What clips its contents counts whole, if
  // any of them is drawn. A picture is drawn once it has come, a frame if there is room in it.
  const isClear = (color) => /^rgba.* 0\)|\/ 0\)/.test(color);
  const paints = (node) =>
    /^(video|canvas|svg|object|embed|input)$/.test(node.localName) ||
    node.naturalWidth ||
    (node.localName === "iframe" && node.clientHeight > 1) ||
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
    node.checkVisibility?.({ checkOpacity: 1, checkVisibilityCSS: 1 }) !== false;
  const drawn = (node, found = { area: 1, left: 999 }) => {
    const { width, height } = node.getBoundingClientRect();
    const area = width * height;
    const { display, overflowX } = getComputedStyle(node);
    const clips = area && overflowX !== "visible" && display !== "inline";
    const inside = clips ? { area: 1, left: found.left } : found;
    const assigned = node.assignedElements?.({ flatten: true });
    // Not its children, as a form may have a field of that name.
    for (const child of assigned || (node.shadowRoot || node).childNodes) {
      if (child.localName && inside.left-- > 0) drawn(child, inside);
    }
    found.left = inside.left;
    if (area > found.area && isVisible(node) && ((clips && inside.part) || paints(node))) {
      found.area = area;
      found.part = node;
    }
    return found;
  };

  // By the points of a diagonal: whether less than this share of the part is in view, with nothing
  // else over it that paints.
  const isCovered = (part, ad, least) => {
    const place = part.getBoundingClientRect();
    let shown = 0;
    for (let i = 0.025; i < 1; i += 0.05) {
      const left = place.x + place.width * i;
      const top = place.y + place.height * i;
      const node = document.elementFromPoint(left, top);
      if (!node) continue;
      // A link may be stretched over more than its box, and a dialog has a backdrop.
      const box = node.getBoundingClientRect();
      const isThere = left >= box.x && left <= box.right && top >= box.y && top <= box.bottom;
      // Neither in the ad nor around it, nor in another tree.
      const isOther = /^[24]$/.test(ad.compareDocumentPosition(node));
      shown += !(isOther && isThere && isVisible(node) && paints(node));
    }
    return shown < 20 * least;
  };

  // Also those in open shadow roots.
  const ads = (root, found = []) => {
    for (const node of root.querySelectorAll("*")) {
      if (node.dataset?.adId) found.push(node);
      if (node.shadowRoot) ads(node.shadowRoot, found);
    }
    return found;
  };

  // Once a page view for each ad and slot: that which is named, or else the first, second, … of
  // this ad in the page.
  let reported = {};
  // Those of the page before, whose ads a router may leave in this one for a moment.
  let stale = {};
  let settled;
  const watched = new WeakMap();

  const watch = (anew) => {
    const numbers = {};
    for (const ad of ads(document)) {
      const { adId, adSlot } = ad.dataset;
      numbers[adId] = -~numbers[adId];
      const slot = `${adSlot || numbers[adId]} ${adId}`;
      const { part, area } = drawn(ad);
      // MRC Viewable Impression Guidelines: half of the pixels, or 30 % of a large ad, for one
      // continuous second.
      const least = area < 242500 ? 0.5 : 0.3;
      const what = slot + least;
      const report = (viewable) =>
        (reported[slot + viewable] ||=
          (viewable || apart) && record("AdImpression", adId, viewable));
      if (part && !stale[slot + false]) report(false);
      note("ad", ad, part, reported[slot + true], anonymous());
      const before = watched.get(ad);
      if (!anew && before?.part === part && before?.what === what) continue;
      before?.stop();
      let second;
      const count = () => {
        const isHidden = drawn(ad).part !== part || isCovered(part, ad, least);
        note("count", ad, isHidden);
        if (!isHidden) {
          // No impression without its rendering, which may have been stale until now.
          report(false);
          if (report(true)) return;
        }
        // It may be seen in another second.
        second = setTimeout(count, 1000);
      };
      // Where there is none, nothing can be measured, and ads are only rendered.
      const observer =
        window.IntersectionObserver &&
        new IntersectionObserver(
          (entries) => {
            const ratio = entries.pop().intersectionRatio;
            note("view", ad, ratio, least, reported[slot + true]);
            if (ratio >= least) second ||= setTimeout(count, 1000);
            else second = clearTimeout(second);
          },
          { threshold: least },
        );
      if (part && !document.hidden) observer?.observe(part);
      watched.set(ad, {
        part,
        what,
        stop() {
          clearTimeout(second);
          observer?.disconnect();
        },
      });
    }
  };

  let page;
  const view = () => {
    record("PageView");
    Object.assign(stale, reported);
    reported = {};
    clearTimeout(settled);
    settled = setTimeout(() => {
      stale = {};
    }, 1000);
    watch(true);
  };
  // To replace only the query is to tidy it up, and no other page.
  const moved = (how) => {
    const before = page;
    page = location.href.split("#")[0];
    if (
      page === before ||
      (/^replace/.test(how) && page.split("?")[0] === before.split("?")[0])
    ) {
      return;
    }
    view();
  };

  // A person's: a script's are not trusted. One on a label is its control's too, at the same place.
  let last = [];
  const clicked = (event) => {
    const path = event.composedPath();
    const [target] = path;
    if (target.labels && target !== last[0] && event.x === last[1]) return;
    if (!event.isTrusted || event.button > 1) return;
    for (const node of path) {
      if (!node.dataset?.adId) continue;
      last = [target, event.x];
      record("AdClick", node.dataset.adId);
      return now();
    }
  };

  const start = () => {
    recall(objects);
    // Where it tells nothing it has no entry, and it may be a variable of the page.
    if (navigation?.currentEntry) {
      navigation.addEventListener("currententrychange", ({ navigationType }) =>
        moved(navigationType),
      );
    } else {
      for (const name of ["pushState", "replaceState"]) {
        const original = history[name];
        history[name] = function (...given) {
          original.apply(this, given);
          moved(name);
        };
      }
      addEventListener("popstate", moved);
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
    addEventListener("click", clicked, true);
    addEventListener("auxclick", clicked, true);
    addEventListener("online", send);
    document.addEventListener("visibilitychange", () => {
      watch(true);
      if (document.hidden) now();
    });
    addEventListener("pagehide", () => {
      watch();
      const beacon = (names) => names[0] && navigator.sendBeacon(collector, body(names));
      const rest = waiting().filter((name) => !sending.includes(name));
      if (!beacon(rest)) beacon(rest.slice(-AT_ONCE));
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
