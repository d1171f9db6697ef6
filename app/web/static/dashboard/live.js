// The live stream: says that something was counted, and what is out of the ordinary.

const AGAIN_MS = 2_000;

/**
 * @param {{ counted: () => void, announced: () => void, opened: () => void, lost: () => void }} on
 */
export function connect(on) {
  const source = new EventSource("/live");
  source.addEventListener("open", on.opened);
  source.addEventListener("counts", on.counted);
  source.addEventListener("spike", on.announced);
  source.addEventListener("drop", on.announced);
  source.addEventListener("error", () => {
    on.lost();
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(() => connect(on), AGAIN_MS * (0.75 + Math.random() * 0.5));
  });
}
