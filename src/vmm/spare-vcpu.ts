/** A vCPU's thread that comes up while its machine is still being configured. */

import type { VcpuCommand } from "./messages.ts";
import { VCPU_WORKER } from "./worker-urls.ts";

export class SpareVcpu {
  private worker: Worker | undefined = new Worker(VCPU_WORKER);

  /** Loads the code of a backend meanwhile; see `loadBackend`. */
  load(backend: string): void {
    this.worker?.postMessage({ kind: "load", backend } satisfies VcpuCommand);
  }

  /** Gives the thread away, once. */
  take(): Worker | undefined {
    const { worker } = this;
    this.worker = undefined;
    return worker;
  }
}
