// Sends a request, and reads at most so much of its answer, for at most so long.

export const MOST_BYTES = 64 * 1024;
const MOST_SECONDS = { answer: 30, open: 300 };
const HEADERS = [
  ...["Content-Type", "Content-Disposition", "Retry-After", "WWW-Authenticate", "Location"],
  ...["Link", "X-Request-Id"],
];

/**
 * @typedef {object} Shown
 * @property {(status: string, headers: [string, string][]) => void} begin
 * @property {(text: string) => void} more
 */

/**
 * Send a request, and show its answer as it comes.
 * @param {import("./request.js").Asked} asked
 * @param {boolean} isStream Whether the answer has no end.
 * @param {AbortSignal} stopped
 * @param {Shown} shown
 * @returns {Promise<string>} How it ended, if there is anything to say about it.
 */
export async function send(asked, isStream, stopped, shown) {
  const late = AbortSignal.timeout(1000 * MOST_SECONDS[isStream ? "open" : "answer"]);
  const signal = AbortSignal.any([stopped, late]);
  try {
    const { method, headers, body } = asked;
    /** @type {RequestInit} */
    const options = { method, headers, body, signal, cache: "no-store", redirect: "manual" };
    const answer = await fetch(asked.url, options);
    if (answer.type === "opaqueredirect") {
      shown.begin("A redirect", []);
      return "The browser does not say where to.";
    }
    const named = HEADERS.filter((name) => answer.headers.has(name));
    shown.begin(
      `${answer.status} ${answer.statusText}`,
      named.map((name) => [name, answer.headers.get(name) ?? ""]),
    );
    return await read(answer, shown.more);
  } catch (error) {
    return ending(error, stopped, late);
  }
}

/**
 * Open a WebSocket, and show the messages that come.
 * @param {URL} url
 * @param {AbortSignal} stopped
 * @param {Shown} shown
 * @returns {Promise<string>} How it ended.
 */
export function listen(url, stopped, shown) {
  const to = new URL(url);
  to.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(to);
  const late = AbortSignal.timeout(1000 * MOST_SECONDS.open);
  const signal = AbortSignal.any([stopped, late]);
  let left = MOST_BYTES;
  return new Promise((resolve) => {
    /** @param {string} how */
    const end = (how) => {
      socket.close();
      resolve(how);
    };
    signal.addEventListener("abort", () => end(ending(signal.reason, stopped, late)));
    socket.addEventListener("open", () => shown.begin("101 Switching Protocols", []));
    socket.addEventListener("message", ({ data }) => {
      shown.more(`${String(data).slice(0, left)}\n`);
      left -= data.length;
      if (left <= 0) end(CUT);
    });
    socket.addEventListener("close", ({ code }) => end(`The connection is closed (${code}).`));
  });
}

const EMPTY = "The body is empty.";
const CUT = "Only the first 64 KiB are shown.";

/**
 * @param {Response} answer
 * @param {(text: string) => void} more
 */
async function read(answer, more) {
  if (!answer.body) return EMPTY;
  const isText = !answer.headers.get("Content-Type")?.startsWith("image/");
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  for (let bytes = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) {
      if (!bytes) return EMPTY;
      return isText ? "" : `The body is an image of ${bytes} bytes.`;
    }
    if (isText) more(decoder.decode(value.subarray(0, MOST_BYTES - bytes), { stream: true }));
    bytes += value.length;
    if (bytes > MOST_BYTES) {
      await reader.cancel();
      return CUT;
    }
  }
}

/**
 * @param {any} error
 * @param {AbortSignal} stopped
 * @param {AbortSignal} late
 */
function ending(error, stopped, late) {
  if (stopped.aborted) return "Stopped.";
  if (late.aborted) return "Stopped, as it took too long.";
  return `The request failed: ${error.message}`;
}
