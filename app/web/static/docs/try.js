// The forms that send requests. What comes back is only ever set as text.
import { curlOf, requestOf } from "./request.js";
import { listen, send } from "./send.js";

/** Show the forms, and let them send. */
export function offerToTry() {
  const keys = document.querySelector(".keys");
  keys.hidden = false;
  // The browser may keep the page to come back to.
  addEventListener("pagehide", () => {
    for (const key of keys.querySelectorAll("input")) key.value = "";
  });
  for (const box of document.querySelectorAll(".try")) {
    box.hidden = false;
    // Most of them are never opened.
    box.addEventListener("toggle", () => prepare(box), { once: true });
  }
}

/** @param {HTMLDetailsElement} box */
function prepare(box) {
  const form = box.querySelector("form");
  const text = form.querySelector("[data-body]");
  const showCurl = () => {
    box.querySelector(".curl").textContent = inWords(() => curlOf(form));
  };
  showCurl();
  form.addEventListener("input", showCurl);
  form.querySelector("[data-content-type]")?.addEventListener("change", (event) => {
    if (event.target.value === "application/x-ndjson") text.value = asLines(text.value);
    showCurl();
  });
  form.querySelector("button[data-example]")?.addEventListener("click", () => {
    text.value = text.dataset.example;
    form.querySelector("[data-content-type]").value = "application/json";
    showCurl();
  });
  box.querySelector("[data-copy]").addEventListener("click", () => copy(box));
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
  const said = box.querySelector(".said");
  const body = box.querySelector(".body");
  const stop = form.querySelector("[data-stop]");
  let asked;
  try {
    asked = requestOf(form, (key) => key.value);
  } catch (error) {
    said.textContent = error.message;
    return;
  }
  if ("final" in form.dataset && !(await isSure(asked))) return;
  box.querySelector(".headers").replaceChildren();
  body.textContent = "";
  body.hidden = true;
  said.textContent = "Sending…";
  stop.hidden = false;
  let status = "";
  const shown = {
    begin(given, headers) {
      status = given.trim();
      said.textContent = form.dataset.kind ? `${status}. Events are shown as they come.` : status;
      box.querySelector(".headers").replaceChildren(...headers.map(row));
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
  if (stop === document.activeElement) form.querySelector("button").focus();
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
  const dialog = document.querySelector("dialog");
  dialog.querySelector("#question").textContent =
    `Send ${asked.method} ${decodeURIComponent(asked.url.pathname)}? It can’t be undone.`;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "send"), { once: true });
  });
}

/** @param {HTMLDetailsElement} box */
async function copy(box) {
  const [curl, copied] = [box.querySelector(".curl"), box.querySelector(".copied")];
  try {
    await navigator.clipboard.writeText(curl.textContent);
    copied.textContent = "Copied.";
  } catch {
    // Browsers have a clipboard only for https, and if it is allowed.
    getSelection().selectAllChildren(curl);
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
    return error.message;
  }
}
