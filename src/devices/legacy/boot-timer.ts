/** Boot timer: the guest's init writes one byte to say that it runs (Firecracker `--boot-timer`). */

import type { BusDevice } from "../types.ts";

/** The byte that the guest writes at offset 0. */
const BOOT_DONE = 123;

/** Bytes of shared memory that the timer takes; zeroed memory is a timer that has not fired. */
export const BOOT_TIMER_SHARED_BYTES = 64;

export class BootTimer implements BusDevice {
  private readonly fired: Int32Array;

  /** @param onBoot called once for the machine, on the thread of the vCPU that wrote. */
  constructor(
    shared: SharedArrayBuffer,
    offset: number,
    private readonly onBoot: () => void,
  ) {
    this.fired = new Int32Array(shared, offset, 1);
  }

  read(): number {
    return 0;
  }

  write(offset: number, size: number, value: number): void {
    if (offset !== 0 || size !== 1 || value !== BOOT_DONE) return;
    if (Atomics.exchange(this.fired, 0, 1) === 0) this.onBoot();
  }
}
