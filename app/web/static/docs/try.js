// The forms that send requests. What comes back is only ever set as text.
import { find } from "./elements.js";
import { curlOf, mediaOf, requestOf } from "./request.js";
import { listen, send } from "./send.js";

/** Let the forms send. */
export function offerToTry() {
  const keys = find(".keys");
  // The browser may keep the page to come back to.
  addEventListener("pagehide", () => {
    for (const key of keys.querySelectorAll("input")) key.value = "";
  });
  /** @type {NodeListOf<HTMLDetailsElement>} */
  const boxes = document.querySelectorAll(".try");
  for (const box of boxes) {
    // Most of them are never opened.
    if (box.open) prepare(box);
    else box.addEventListener("toggle", () => prepare(box), { once: true });
  }
}

/** @param {HTMLDetailsElement} box */
function prepare(box) {
  const form = find("form", box);
  const showCurl = () => {
    find(".curl", box).textContent = inWords(() => curlOf(form));
  };
  showCurl();
  form.addEventListener("input", showCurl);
  const [media, text] = [mediaOf(form), form.querySelector("textarea")];
  if (media && text) {
    media.addEventListener("change", () => {
      if (media.value === "application/x-ndjson") text.value = asLines(text.value);
      showCurl();
    });
    find("button[data-example]", form).addEventListener("click", () => {
      text.value = text.dataset.example ?? "";
      media.value = "application/json";
      showCurl();
    });
  }
  find("[data-copy]", box).addEventListener("click", () => copy(box));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.hasAttribute("aria-busy")) return;
    form.setAttribute("aria-busy", "true");
    try {
      await ask(box, form);
    } finally {
      form.removeAttribute("aria-busy");
    }
  });
}

/**
 * Send what a form describes, and show what comes back.
 * @param {HTMLDetailsElement} box
 * @param {HTMLFormElement} form
 */
async function ask(box, form) {
  const [said, body] = [find(".said", box), find(".body", box)];
  const stop = find("[data-stop]", form);
  let asked;
  try {
    asked = requestOf(form, (key) => key.value);
  } catch (error) {
    said.textContent = /** @type {Error} */ (error).message;
    return;
  }
  if ("final" in form.dataset && !(await isSure(asked))) return;
  find(".headers", box).replaceChildren();
  body.textContent = "";
  body.hidden = true;
  said.textContent = "Sending…";
  stop.hidden = false;
  let status = "";
  /** @type {import("./send.js").Shown} */
  const shown = {
    begin(given, headers) {
      status = given.trim();
      said.textContent = form.dataset.kind ? `${status}. Events are shown as they come.` : status;
      find(".headers", box).replaceChildren(...headers.map(row));
    },
    more(text) {
      body.hidden = false;
      body.append(text);
    },
  };
  const stopping = new AbortController();
  const end = () => stopping.abort();
  stop.addEventListener("click", end);
  box.addEventListener("toggle", end); // nobody watches a folded one
  const how = await (form.dataset.kind === "socket"
    ? listen(asked.url, stopping.signal, shown)
    : send(asked, form.dataset.kind === "stream", stopping.signal, shown));
  stop.removeEventListener("click", end);
  box.removeEventListener("toggle", end);
  if (stop === document.activeElement) find("button", form).focus();
  stop.hidden = true;
  said.textContent = [status && `${status}.`, how].filter(Boolean).join(" ");
  if (!how) body.textContent = indented(body.textContent);
}

/**
 * Ask whether to send what nothing can undo.
 * @param {import("./request.js").Asked} asked
 * @returns {Promise<boolean>}
 */
function isSure(asked) {
  const dialog = find("dialog");
  find("#question", dialog).textContent =
    `Send ${asked.method} ${decodeURIComponent(asked.url.pathname)}? It can’t be undone.`;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "send"), { once: true });
  });
}

/** @param {HTMLDetailsElement} box */
async function copy(box) {
  const [curl, copied] = [find(".curl", box), find(".copied", box)];
  try {
    await navigator.clipboard.writeText(curl.textContent);
    copied.textContent = "Copied.";
  } catch {
    // Browsers have a clipboard only for https, and if it is allowed.
    getSelection()?.selectAllChildren(curl);
    copied.textContent = "Selected: copy it with your keyboard.";
  }
}

/** @param {[string, string]} header */
function row([name, value]) {
  const [line, term, told] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
  term.textContent = name;
  told.textContent = value;
  line.append(term, told);
  return line;
}

const TOKENS = /"(?:\\.|[^"\\])*"|\{\s*\}|\[\s*\]|[{}[\],:]|\s+/g;

/**
 * JSON with a line for each value. Written again, large numbers would be others.
 * @param {string} text
 */
function indented(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  return text.replace(TOKENS, (token) => {
    if (token === "{" || token === "[") {
      depth += 1;
      return token + line();
    }
    if (token === "}" || token === "]") {
      depth -= 1;
      return line() + token;
    }
    if (token === ",") return token + line();
    if (token === ":") return ": ";
    return token.trim();
  });
}

/**
 * One event on each line, if the text is JSON.
 * @param {string} text
 */
function asLines(text) {
  try {
    return [JSON.parse(text)].flat().map((one) => JSON.stringify(one)).join("\n");
  } catch {
    return text;
  }
}

/** @param {() => string} make */
function inWords(make) {
  try {
    return make();
  } catch (error) {
    return /** @type {Error} */ (error).message;
  }
}
