/** The kernel's random numbers (getrandom(2)). */

import { retrying } from "./errno.ts";
import { libc } from "./libc.ts";

/** Fills `into`, which may be a view of shared memory. Throws {@link SystemError}. */
export function fillRandom(into: Uint8Array): void {
  let done = 0;
  while (done < into.length) {
    const rest = into.subarray(done);
    done += retrying("getrandom", () => libc().getrandom(rest, rest.length, 0));
  }
}
