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
  let path = form.dataset.path;
  for (const field of form.querySelectorAll("[data-in]")) {
    if (field.dataset.in === "path") {
      path = path.replace(`{${field.name}}`, () => encodeURIComponent(field.value));
    } else if (field.value) query.set(field.name, field.value);
  }
  const url = new URL(path, location.origin);
  if (url.pathname !== path) throw new RangeError("A path can't contain such a value.");
  url.search = query;
  const headers = {};
  const key = form.dataset.key && document.getElementById(`key-${form.dataset.key}`);
  const value = key && valueOf(key);
  if (value) headers[key.dataset.header] = key.dataset.prefix + value;
  const body = form.querySelector("[data-body]")?.value || undefined;
  if (body) headers["Content-Type"] = form.querySelector("[data-content-type]").value;
  return { method: form.dataset.method, url, headers, body };
}

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
