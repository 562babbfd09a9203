/** SIGINT, SIGTERM and SIGHUP end the microVM in order. */

import { constants } from "node:os";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Calls `stop` at the first of these signals; at the second the process ends at once. Returns a function that
 * gives the number of the signal that came, if one did.
 */
export function stopOnSignal(stop: () => void): () => number | undefined {
  let came: number | undefined;
  for (const name of SIGNALS) {
    process.on(name, () => {
      const number = constants.signals[name];
      if (came !== undefined) process.exit(128 + number);
      came = number;
      stop();
    });
  }
  return () => came;
}
