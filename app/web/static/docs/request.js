// What a form asks for, as a request and as the equal curl command.

/**
 * @typedef {object} Asked
 * @property {string} method
 * @property {URL} url
 * @property {Record<string, string>} headers
 * @property {string} [body]
 */

/**
 * The request that a form describes. Keys are only ever in its headers.
 * @param {HTMLFormElement} form
 * @param {(key: HTMLInputElement) => string} valueOf What to send for a key; nothing if empty.
 * @returns {Asked}
 * @throws {RangeError} A value can't be in a path.
 */
export function requestOf(form, valueOf) {
  const query = new URLSearchParams();
  let { path = "" } = form.dataset;
  /** @type {NodeListOf<HTMLInputElement>} */
  const fields = form.querySelectorAll("[data-in]");
  for (const field of fields) {
    if (field.dataset.in === "path") {
      path = path.replace(`{${field.name}}`, () => encodeURIComponent(field.value));
    } else if (field.value) query.set(field.name, field.value);
  }
  const url = new URL(path, location.origin);
  if (url.pathname !== path) throw new RangeError("A path can't contain such a value.");
  url.search = String(query);
  /** @type {Record<string, string>} */
  const headers = {};
  /** @type {HTMLInputElement | null} */
  const key = document.querySelector(`#key-${form.dataset.key}`);
  const value = key && valueOf(key);
  if (value) headers[key.dataset.header ?? ""] = key.dataset.prefix + value;
  const body = form.querySelector("textarea")?.value || undefined;
  if (body) headers["Content-Type"] = mediaOf(form)?.value ?? "";
  return { method: form.dataset.method ?? "GET", url, headers, body };
}

/**
 * Where one chooses the media type of the body, if there is a body.
 * @param {HTMLFormElement} form
 * @returns {HTMLSelectElement | null}
 */
export const mediaOf = (form) => form.querySelector("[data-content-type]");

const UPGRADE = {
  Connection: "Upgrade",
  Upgrade: "websocket",
  "Sec-WebSocket-Version": "13",
  "Sec-WebSocket-Key": btoa("eventstream docs"),
};

/**
 * The equal curl command. It names a variable of the shell instead of a key.
 * @param {HTMLFormElement} form
 */
export function curlOf(form) {
  const { method, url, headers, body } = requestOf(form, (key) => `$${key.dataset.variable}`);
  const isOpen = Boolean(form.dataset.kind);
  const parts = [`curl --include${isOpen ? " --no-buffer" : ""}`];
  if (form.dataset.kind === "socket") Object.assign(headers, UPGRADE);
  if (method !== (body ? "POST" : "GET")) parts.push(`--request ${method}`);
  parts.push(quoted(url.href));
  for (const [name, value] of Object.entries(headers)) {
    // Only between double quotes does the shell fill in the variable.
    const header = `${name}: ${value}`;
    parts.push(`--header ${value.includes("$") ? `"${header}"` : quoted(header)}`);
  }
  if (body) parts.push(`--data-binary ${quoted(body)}`);
  return parts.join(" \\\n  ");
}

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
