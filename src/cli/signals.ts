/** SIGINT, SIGTERM and SIGHUP end the microVM in order. */

/** Their numbers in Linux. */
const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/**
 * Calls `stop` at the first of these signals; at the second the process ends at once. Returns a function that
 * gives the number of the signal that came, if one did.
 */
export function stopOnSignal(stop: () => void): () => number | undefined {
  let came: number | undefined;
  for (const [name, number] of Object.entries(SIGNALS)) {
    process.on(name, () => {
      if (came !== undefined) process.exit(128 + number);
      came = number;
      stop();
    });
  }
  return () => came;
}
