/** The contracts between a device and the machine it hangs in. A device knows nothing else of either. */

/**
 * An edge-triggered interrupt line. May be called from any thread that was given one; each thread gets its
 * own object for the same line. Raising a line that is already pending is not an error and not counted.
 */
export interface IrqLine {
  trigger(): void;
}

/**
 * A device on the port or memory bus, as a vCPU thread sees it. `offset` is relative to the start of the
 * device's range; `size` is 1, 2 or 4 bytes (the bus splits wider accesses). Values are unsigned.
 * A read of something that is not there returns 0; a write to it is dropped. Neither ever throws.
 */
export interface BusDevice {
  read(offset: number, size: number): number;
  write(offset: number, size: number, value: number): void;
}
