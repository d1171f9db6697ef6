// Asks the collector.

/** The session has ended, or never began. */
export class Refused extends Error {}

/** The collector answered that it can't. `status` is that of HTTP. */
export class Failed extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * The address of a path with these parameters; those without a value are left out.
 * @param {string} path
 * @param {Record<string, string | number | undefined>} parameters
 */
export function address(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return text ? `${path}?${text}` : path;
}

/**
 * What the collector answers. Reports may be a moment old.
 * @param {string} path
 * @param {Record<string, string | number | undefined>} parameters
 * @returns {Promise<any>}
 */
export async function get(path, parameters = {}) {
  const headers = { "Cache-Control": "max-stale=1" };
  return read(await fetch(address(path, parameters), { cache: "no-store", headers }));
}

/**
 * @param {string} method
 * @param {string} path
 * @param {string | undefined} body JSON
 * @returns {Promise<any>}
 */
export async function send(method, path, body = undefined) {
  return read(await fetch(path, { method, body }));
}

/** @param {Response} response */
async function read(response) {
  if (response.status === 401 || response.status === 403) throw new Refused();
  if (response.status === 204) return null;
  const answer = await response.json();
  if (response.ok) return answer;
  throw new Failed(words(answer.rejected?.[0]?.errors ?? answer.errors ?? answer.error), response.status);
}

/**
 * Errors by field, or a reason, as one text.
 * @param {any} errors
 * @returns {string}
 */
export function words(errors) {
  if (errors === null || typeof errors !== "object") return String(errors);
  if (Array.isArray(errors)) return errors.map(words).join(" ");
  return Object.entries(errors)
    .map(([name, inner]) => (name === "_schema" ? words(inner) : `${name}: ${words(inner)}`))
    .join(" ");
}
