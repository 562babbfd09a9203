/** A backend whose vCPU threads break, in the middle of the guest or before there is one. */

import { type Backend, loadBackend } from "../../src/vmm/backend.ts";
import { DEATH_PORT } from "./guest-code.ts";

/** In a Worker `exit` ends the thread and nothing else. */
export type Death = "exit" | "throw" | "exit at start" | "throw at start";

/** Backend `on` with vCPUs that die when they are made, or when the guest writes to DEATH_PORT. */
export async function dyingBackend(on: string, death: Death): Promise<Backend> {
  const whole = await loadBackend(on);
  const die = () => {
    if (death.startsWith("exit")) process.exit(3);
    throw new Error("on purpose");
  };
  return {
    ...whole,
    createVcpu(options) {
      if (death.endsWith("at start")) die();
      options.pio.insert(DEATH_PORT, 1, { read: () => 0, write: die });
      return whole.createVcpu(options);
    },
  };
}
